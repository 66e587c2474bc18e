"""The UCM: the one who decides. It owns the journal, asks the transition table, and runs a phase for each working
state.

Order of every transition: the intent is durable, the phase acts, the new state is durable, it is published, the caller
is answered. Who calls (command line, deployed flow, interface) passes through here; nobody else changes the state.
"""

import errno
import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

from otaflow import errors, fault, history, progress
from otaflow.action import NAMES, Action
from otaflow.errors import HealthCheckFailed, OtaflowError, Restarting, UcmError, UndoFailed
from otaflow.flows.activate import activate_backup, activate_slot, activate_snapshot, activate_update
from otaflow.flows.clean_up import commit, revert
from otaflow.flows.phase import Phase
from otaflow.flows.process import Processed, process
from otaflow.flows.restore import restore_backup, restore_previous_slot, restore_snapshot
from otaflow.flows.roll_back import roll_back
from otaflow.flows.verify import verify
from otaflow.package.metadata import Check
from otaflow.platform.device import Device
from otaflow.tasks.configuration import kept_main_name
from otaflow.tasks.package import metadata_of
from otaflow.tasks.slots import kept_name
from otaflow.tasks.step import compensate
from otaflow.ucm.states import State
from otaflow.ucm.table import TABLE, Row

log = logging.getLogger("otaflow.ucm")

ACTIVATIONS: dict[str, Phase[..., None]] = {
    "up": activate_update,
    "down": activate_update,
    "previous-slot": activate_slot,
    "backup": activate_backup,
    "snapshot": activate_snapshot,
}


class Runs(Protocol):
    """Who makes sessions and phases visible (otaflow.flows.session does, in Prefect)."""

    def publish(self, state: State, message: str) -> None:
        """Show the new state of the session. Never raises: the journal is the truth."""

    def run(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> Any:
        """Run a phase as a flow run, and return or raise what the story did."""


Work = Callable[[], None]
"""What is left to do of a client's call once the state has changed; it raises what the call answers with."""


class Superseded(Exception):
    """The verification was ended by a client's Rollback, which goes on from here."""


class Ucm:
    """The update and configuration manager of one device. The caller holds the device's lock."""

    def __init__(self, device: Device, runs: Runs | None = None) -> None:
        self.device = device
        self.journal = device.journal
        self.runs = runs
        self.deciding = threading.RLock()
        """Held from asking the table until the new state is durable: clients call while a phase works."""

    @property
    def state(self) -> State:
        return self.journal.state

    # --- what a client may ask for --------------------------------------------------------------------------------

    def process(self, action: Action, *, unattended: bool = False) -> None:
        """ProcessSwPackage: prepare `action` in the spare slot. Answers on Ready; raises what went wrong."""
        self.begin_process(action, unattended=unattended)()

    def begin_process(self, action: Action, *, unattended: bool = False) -> Work:
        """Enter Processing, or refuse; returns the rest of the work.

        `unattended`: no client will say how it goes on, so a restart in Ready or Activated does not wait for one.
        """
        with self.deciding:
            self._fire("<ProcessSwPackage", what=action.title(), action=action.record(), unattended=unattended)
            self.device.stop_work.clear()
        return lambda: self._process(action)

    def cancel(self) -> None:
        """Cancel: ask the processing to stop. It answers when it has: see `begin_process`'s work."""
        with self.deciding:
            self._fire("<Cancel")
            self.device.stop_work.set()

    def _process(self, action: Action) -> None:
        try:
            if action.facts.get("refused"):
                raise errors.InvalidTransferId(str(action.facts["refused"]))
            processed = self.run(*self._processing(action))
            # The checks are kept here: after a power cut the package in the cache may be gone, and the trial goes on.
            checks = [check.model_dump() for check in self._health_of(action, processed)]
        except UndoFailed as error:
            self._record(action, history.FAILED, error=error)
            raise
        except BaseException as error:
            refusal = as_ucm_error(error)
            if not action.facts.get("refused"):
                self._record(action, history.FAILED, error=refusal)
            self.device.stop_work.clear()
            self._fire(processing_event(refusal), error=str(refusal))
            if refusal is error or not isinstance(error, Exception):
                raise
            raise refusal from error
        self._fire("$Success ProcessSwPackage", processed=processed, checks=checks)

    def activate(self) -> None:
        """Activate: check dependencies and change the boot target. Answers on entering Verifying."""
        self.begin_activate()()

    def begin_activate(self) -> Work:
        """Enter Activating, or refuse; returns the rest of the work."""
        with self.deciding:
            self._fire("<Activate")
            self.device.stop_work.clear()
        return self._activate

    def _activate(self) -> None:
        try:
            self._refuse_half_reverted()
            self.run(*self._activation())
        except UndoFailed:
            raise
        except Exception as error:
            known = isinstance(error, (errors.MissingDependencies, errors.ErrorNoValidProcessing))
            refusal = error if known else errors.ErrorDuringActivation(f"cannot activate: {error}")
            self._fire(f"!{type(refusal).__name__}", error=str(refusal))
            if refusal is error:
                raise
            raise refusal from error
        self._fire("$Success")

    def verify(self) -> None:
        """The trial: restart, and check the system's health; then Activated, or the automatic rollback.

        Raises Restarting when the machine is going down, HealthCheckFailed when the system was rolled back, Superseded
        when a client's Rollback came in between.
        """
        with self.deciding:
            self._refuse_superseded()
        try:
            self._count_trial()
            if not self.run(verify, {"checks": self._checks()}):
                raise Restarting
        except Restarting:
            raise
        except Exception as error:
            failure = error if isinstance(error, HealthCheckFailed) else HealthCheckFailed(f"cannot verify: {error}")
            with self.deciding:
                self._refuse_superseded()
                for action, _ in self.processed():
                    self._record(action, history.VERIFICATION_FAILED, error=failure)
                self._fire("!Fail", error=str(failure))
            self._roll_back()
            raise failure from error
        with self.deciding:
            self._refuse_superseded()
            self._fire("$Success")

    def rollback(self) -> None:
        """Rollback: bring the former system back, from Verifying or Activated. Answers on Rolled-back."""
        self.begin_rollback()()

    def begin_rollback(self) -> Work:
        """Enter Rolling-back, or refuse; a verification that is going on is stopped. Returns the rest of the work."""
        with self.deciding:
            origin = self.state
            self._fire("<Rollback")
            self.device.stop_work.set()
        return lambda: self._roll_back(origin)

    def finish(self) -> None:
        """Finish: keep the new system (from Activated), or put the rolled-back one in order. Answers on Idle."""
        self.begin_finish()()

    def begin_finish(self) -> Work:
        """Enter Cleaning-Up, or refuse; returns the rest of the work."""
        with self.deciding:
            rolled_back = self.state is State.ROLLED_BACK
            self._fire("<Finish")
            self.device.stop_work.clear()
        return lambda: self._clean_up(commits=not rolled_back)

    def revert(self) -> None:
        """RevertProcessedSwPackages: give up what was processed. Answers on Idle, or raises and is Ready again."""
        self.begin_revert()()

    def begin_revert(self) -> Work:
        """Enter Cleaning-Up, or refuse; returns the rest of the work."""
        with self.deciding:
            self._fire("<RevertProcessedSwPackages")
            self.device.stop_work.clear()
        return self._revert

    def _revert(self) -> None:
        if not self.journal.session.processed:
            self._refuse_revert(errors.NothingToRevert("cannot revert: nothing is processed"))
        try:
            self._clean_up(commits=False)
        except UndoFailed as error:
            self._refuse_revert(errors.NotAbleToRevertPackages(f"cannot revert: {error}", hint=error.hint))

    def _refuse_revert(self, error: UcmError) -> None:
        self._fire(f"!{error.name} (for RevertProcessedSwPackages)", error=str(error))
        raise error

    # --- a whole update, for the one-shot commands ----------------------------------------------------------------

    def install(self, action: Action) -> None:
        """Process, activate, verify and finish `action`; what fails leaves the device as it was. Raises what failed."""
        self.process(action, unattended=True)
        self.go_on()

    def go_on(self) -> None:
        """Carry an unattended session from where it is to Idle. Raises what failed, after it is taken back."""
        if self.state is State.READY:
            self._activate_or_revert()
        if self.state is State.VERIFYING:
            try:
                self.verify()
            except HealthCheckFailed:
                self.finish()
                raise
        if self.state in (State.ACTIVATED, State.ROLLED_BACK):
            self.finish()

    def needs_recovery(self) -> bool:
        """Whether a restart or a kill left something to be finished or taken back."""
        return self.journal.needs_recovery

    def recover(self, *, verifies: bool = True) -> bool:
        """After a restart or a kill: finish or take back what was going on (design: recovery at boot).

        Returns whether there was anything to do. With `verifies` false a system on trial is left to who comes later.
        Raises what failed on the way, after the device is in order.
        """
        if not self.needs_recovery():
            return False
        self.device.stop_work.clear()
        unattended = self.journal.session.unattended
        match self.state:
            case State.PROCESSING:
                self._recover_processing()
            case State.ACTIVATING:
                self._recover_activating()
            case State.ROLLING_BACK:
                self._roll_back()
            case State.ROLLING_BACK_FAILED if unattended:
                self.rollback()
            case State.CLEANING_UP if self._cleaning_came_from() == State.READY:
                self._revert()
            case State.CLEANING_UP:
                self._clean_up(commits=self._cleaning_came_from() == State.ACTIVATED)
        if self.state is State.VERIFYING and not verifies:
            return True
        if unattended:
            if self.state is State.READY:
                self._give_up()
            self.go_on()
        elif self.state is State.VERIFYING:
            self.verify()
        return True

    # --- inside ---------------------------------------------------------------------------------------------------

    def _fire(self, event: str, **facts: Any) -> None:
        """Take the table's way for `event`: refuse it, or make the new state durable and publish it."""
        with self.deciding:
            self._go(event, facts)

    def check(self, event: str) -> Row:
        """The table's row for `event` in the present state. Raises the error with which it refuses a client's call."""
        row = TABLE[self.state, event]
        if event.startswith("<") and row.error:
            raise getattr(errors, row.error)(
                f"cannot {event[1:]}: the update manager is {self.state}",
                hint="`otaflow status` shows what is going on",
            )
        return row

    def _go(self, event: str, facts: dict[str, Any]) -> None:
        row = self.check(event)
        others = len(self.journal.session.processed) > 0
        following = row.resolve(processed=others)
        if following is self.state and not facts:
            return
        origin = self.state
        fault.point(f"{event} {origin}.before")
        self.journal.transition(event, following, **facts)
        fault.point(f"{event} {origin}.after")
        progress.tell("state", following, event=event, **facts)
        if self.runs:
            self.runs.publish(following, str(facts.get("error", "") or facts.get("what", "")))

    def run(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> Any:
        """Run a phase, as a flow run where Prefect is there; returns or raises what its story did."""
        self.journal.phase = phase.name
        if self.runs:
            return self.runs.run(phase, parameters)
        return phase(**parameters)

    def _processing(self, action: Action) -> tuple[Phase[..., Processed], dict[str, Any]]:
        spare = self.device.spare()
        match action.kind:
            case "previous-slot":
                return restore_previous_slot, {"spare": spare}
            case "backup":
                return restore_backup, {"backup": action.backup, "spare": spare}
            case "snapshot":
                return restore_snapshot, {"backup": action.backup}
            case _:
                return process, {
                    "package": action.package,
                    "direction": action.kind,
                    "version": action.version,
                    "update_number": action.update_number,
                    "base": spare if self.journal.session.processed else self.device.boot.running(),
                    "spare": spare,
                }

    def _activation(self) -> tuple[Phase[..., None], dict[str, Any]]:
        """What makes the session's last action the system that starts next; it builds on those before it."""
        processed = self.processed()
        action, last = processed[-1]
        parameters: dict[str, Any] = {"processed": last}
        if action.kind in ("up", "down"):
            # What is taken back needs nothing any more.
            parameters["folders"] = [result["folder"] for one, result in processed if one.kind == "up"]
        return ACTIVATIONS[action.kind], parameters

    def processed(self) -> list[tuple[Action, Processed]]:
        """The processed actions of this session, with what Processing handed over."""
        session = self.journal.session
        results = [t["processed"] for t in session.transitions if "processed" in t]
        return [(session.actions[place], result) for place, result in zip(session.processed, results, strict=True)]

    def _checks(self) -> list[dict[str, Any]]:
        """The health checks of the packages of this session."""
        return [check for transition in self.journal.session.transitions for check in transition.get("checks", ())]

    def _health_of(self, action: Action, processed: Processed) -> list[Check]:
        """A package's health checks. One that is taken back has none for the former system."""
        return list(metadata_of(processed["folder"]).health) if action.kind == "up" else []

    def _activate_or_revert(self) -> None:
        try:
            self.activate()
        except OtaflowError as error:
            for action, _ in self.processed():
                self._record(action, history.FAILED, error=error)
            if self.state is State.READY:
                self.revert()
            raise

    def _roll_back(self, origin: State | None = None) -> None:
        """The work of Rolling-back; `origin` is the state in which a client asked for it, None for the automatic one.

        A client's rollback that could not even begin leaves the device where it was; one that took something back, and
        an automatic one, can only be tried again.
        """
        self.device.stop_work.clear()
        before = [intent.id for intent in self.journal.open_intents()]
        try:
            if not self.run(roll_back, {}):
                raise Restarting
        except Restarting:
            raise
        except Exception as error:
            refusal = errors.NotAbleToRollback(f"cannot roll back: {error}", hint=getattr(error, "hint", ""))
            untouched = before == [intent.id for intent in self.journal.open_intents()]
            if origin in (State.ACTIVATED, State.VERIFYING) and untouched:
                self._fire(f"!NotAbleToRollback (from {origin})", error=str(refusal))
            else:
                self._fire("!RollingBackFailed", error=str(refusal))
            raise refusal from error
        for action, _ in self.processed():
            # A failed verification is in the history already, and stays what it is there.
            self._record(action, history.ROLLED_BACK)
        self._fire("$Success")

    def _refuse_half_reverted(self) -> None:
        """What a refused Revert has taken back in part is not what was processed."""
        processed = set(self.journal.session.processed)
        if any(intent.undone and intent.action in processed for intent in self.journal.session.intents.values()):
            raise errors.ErrorNoValidProcessing(
                "cannot activate: a part of what was processed is reverted",
                hint="revert the rest (RevertProcessedSwPackages), and process the package again",
            )

    def _count_trial(self) -> None:
        """A machine that goes down whenever its new system is checked must not try for ever. Raises HealthCheckFailed.

        A power cut cannot be told from a crash here, so the limit is a generous one.
        """
        limit = self.device.config.health.trials
        begun = int(self.journal.session.notes.get("trials", 0))
        if begun >= limit:
            raise HealthCheckFailed(f"the new system was begun to be verified {begun} times, and never to the end")
        self.journal.note(trials=begun + 1)

    def _refuse_superseded(self) -> None:
        if self.state is not State.VERIFYING:
            raise Superseded

    def _clean_up(self, *, commits: bool) -> None:
        session = self.journal.session
        if commits:
            for place, (action, processed) in zip(session.processed, self.processed(), strict=True):
                self._record(action, history.ACTIVATED, place=place, backup=processed["backup"])
            self.journal.keep()
            kept = [kept_name(place) for place in session.processed]
            mains = [kept_main_name(p) for p in session.processed if session.actions[p].kind == "snapshot"]
            packages = [session.actions[p].package for p in session.processed if session.actions[p].package]
            parameters = {"session": session.id, "kept": kept, "mains": mains, "packages": packages}
            try:
                self.run(commit, parameters)
            except Exception as error:
                # The update is committed: what could not be removed is an alarm, not a state (design).
                self._alarm(error)
        else:
            self.run(revert, {"session": session.id})
        reverted = self._cleaning_came_from() == State.READY
        self._fire("$Success RevertProcessedSwPackages" if reverted else "$Success Finish")

    def _alarm(self, error: Exception) -> None:
        log.error("the update is in place, but not all of its leavings could be removed: %s", error)
        system = self.device.running_system()
        self.device.history.add(
            key=f"{self.journal.session.id}.alarm",
            name=system.name,
            version=system.version,
            action="CleanUp",
            resolution=history.FAILED,
            error=type(error).__name__,
            why=str(error),
        )

    def _cleaning_came_from(self) -> str:
        return str([t["from"] for t in self.journal.session.transitions if t["to"] == State.CLEANING_UP][-1])

    def _give_up(self) -> None:
        """Revert what was processed when nobody is there to activate it."""
        stopped = errors.ProcessSwPackageCancelled("it was interrupted before its activation")
        for action, _ in self.processed():
            self._record(action, history.FAILED, error=stopped)
        self.revert()

    def _recover_processing(self) -> None:
        session = self.journal.session
        compensate(lambda intent: intent.action == session.current)
        stopped = errors.ProcessSwPackageCancelled(
            "the processing was interrupted: a power cut, or its process was ended"
        )
        self._record(session.actions[-1], history.FAILED, error=stopped)
        self._fire("!ProcessSwPackageCancelled", error=str(stopped))

    def _recover_activating(self) -> None:
        """Flipped: the trial follows. Not flipped: everything of the activation is taken back."""
        actions = self.processed()
        steps = {"up": "flip_slot", "down": "flip_slot", "snapshot": "restore_main"}
        flipped = all(self.journal.is_done(steps.get(action.kind, "flip_slot")) for action, _ in actions)
        target = self.device.boot.target()
        started = self.device.boot.running() == target and any(
            processed["target"] == target and action.kind != "snapshot" for action, processed in actions
        )
        if flipped or started:
            # The counter as it was before the flip: what starts after it is a start into the target, or a fallback.
            self._fire("$Success", boots=self.journal.session.boots_at(State.ACTIVATING))
            return
        compensate(lambda intent: intent.phase == "activate")
        self._fire("!ErrorDuringActivation", error="the activation was interrupted")
        # No end yet: an unattended session is given up, and recorded, from Ready; a client may activate again.

    def _record(
        self,
        action: Action,
        resolution: str,
        *,
        error: Exception | None = None,
        place: int | None = None,
        backup: str = "",
    ) -> None:
        """Put the action's end into the history, once."""
        session = self.journal.session
        place = session.place(action) if place is None else place
        self.device.history.add(
            key=f"{session.id}.{place}",
            session=session.id,
            name=action.name,
            version=action.version,
            update_number=action.update_number,
            action=NAMES[action.kind],
            resolution=resolution,
            from_version=str(action.facts.get("from_version", "")),
            error=type(error).__name__ if error else "",
            why=str(error) if error else "",
            backup=backup,
        )


_TABLE_NAMES = {
    "ProcessedSoftwarePackageInconsistent": "ProcessedSwPackageInconsistent",
    "InvalidTransferId": "InvalidTransferId (for ProcessSwPackage)",
}
"""The errors that the specification's table spells otherwise than the interface."""
_NO_ROOM = ("No space left", "Wrote only")
"""What programs say on a full disk; the second one is tar's."""


def processing_event(refusal: UcmError) -> str:
    """The table's event for what stopped the processing; one that it has no line for is a GeneralReject."""
    event = f"!{_TABLE_NAMES.get(refusal.name, refusal.name)}"
    return event if (State.PROCESSING, event) in TABLE else "!GeneralReject"


def as_ucm_error(error: BaseException) -> UcmError:
    """The interface's error for whatever stopped the processing."""
    if isinstance(error, UcmError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.InsufficientMemory(f"cannot process the package: {error}", hint="`otaflow clean-up` makes room")
    if isinstance(error, errors.CommandFailed) and any(words in error.output for words in _NO_ROOM):
        return errors.InsufficientMemory(f"cannot process the package: {error}", hint="`otaflow clean-up` makes room")
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return errors.ProcessSwPackageCancelled("the processing was stopped")
    return errors.GeneralReject(f"cannot process the package: {error}")
