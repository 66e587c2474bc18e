"""The UCM: the one who decides. It owns the journal, asks the transition table, and runs a phase for each working
state.

Order of every transition: the intent is durable, the phase acts, the new state is durable, it is published, the caller
is answered. Who calls (command line, deployed flow, interface) passes through here; nobody else changes the state.
"""

import errno
import logging
from typing import Any, Protocol

from otaflow import errors, fault, history, progress
from otaflow.action import NAMES, Action
from otaflow.errors import HealthCheckFailed, OtaflowError, UcmError, UndoFailed
from otaflow.flows.activate import activate_backup, activate_slot, activate_snapshot, activate_update
from otaflow.flows.clean_up import commit, revert
from otaflow.flows.phase import Phase
from otaflow.flows.process import Processed, process
from otaflow.flows.restore import restore_backup, restore_previous_slot, restore_snapshot
from otaflow.flows.roll_back import roll_back
from otaflow.flows.verify import verify
from otaflow.platform.device import Device
from otaflow.tasks.configuration import kept_main_name
from otaflow.tasks.package import metadata_of
from otaflow.tasks.slots import kept_name
from otaflow.ucm.states import State
from otaflow.ucm.table import TABLE

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


class Restarting(Exception):
    """The machine is going down; the session goes on when it is up again."""


class Ucm:
    """The update and configuration manager of one device. The caller holds the device's lock."""

    def __init__(self, device: Device, runs: Runs | None = None) -> None:
        self.device = device
        self.journal = device.journal
        self.runs = runs

    @property
    def state(self) -> State:
        return self.journal.state

    # --- what a client may ask for --------------------------------------------------------------------------------

    def process(self, action: Action, *, unattended: bool = False) -> None:
        """ProcessSwPackage: prepare `action` in the spare slot. Answers on Ready; raises what went wrong.

        `unattended`: no client will say how it goes on, so a restart in Ready or Activated does not wait for one.
        """
        self._fire("<ProcessSwPackage", what=action.title(), action=action.record(), unattended=unattended)
        try:
            processed = self.run(*self._processing(action))
        except UndoFailed:
            raise
        except BaseException as error:
            refusal = as_ucm_error(error)
            self._record(action, history.FAILED, error=refusal)
            self._fire(f"!{_TABLE_NAMES.get(refusal.name, refusal.name)}", error=str(refusal))
            if refusal is error or not isinstance(error, Exception):
                raise
            raise refusal from error
        self._fire("$Success ProcessSwPackage", processed=processed)

    def activate(self) -> None:
        """Activate: check dependencies and change the boot target. Answers on entering Verifying."""
        self._fire("<Activate")
        try:
            for action, processed in self._processed():
                self.run(ACTIVATIONS[action.kind], {"processed": processed})
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

        Raises Restarting when the machine is going down, HealthCheckFailed when the system was rolled back.
        """
        try:
            if not self.run(verify, {"checks": self._checks()}):
                raise Restarting
        except Restarting:
            raise
        except Exception as error:
            failure = error if isinstance(error, HealthCheckFailed) else HealthCheckFailed(f"cannot verify: {error}")
            for action, _ in self._processed():
                self._record(action, history.VERIFICATION_FAILED, error=failure)
            self._fire("!Fail", error=str(failure))
            self._roll_back()
            raise failure from error
        self._fire("$Success")

    def rollback(self) -> None:
        """Rollback: bring the former system back, from Verifying or Activated. Answers on Rolled-back."""
        self._fire("<Rollback")
        for action, _ in self._processed():
            self._record(action, history.ROLLED_BACK)
        self._roll_back()

    def finish(self) -> None:
        """Finish: keep the new system (from Activated), or put the rolled-back one in order. Answers on Idle."""
        rolled_back = self.state is State.ROLLED_BACK
        self._fire("<Finish")
        self._clean_up(commits=not rolled_back)

    def revert(self) -> None:
        """RevertProcessedSwPackages: give up what was processed. Answers on Idle, or raises and stays Ready."""
        self._fire("<RevertProcessedSwPackages")
        self._clean_up(commits=False)

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
        unattended = self.journal.session.unattended
        match self.state:
            case State.PROCESSING:
                self._recover_processing()
            case State.ACTIVATING:
                self._recover_activating()
            case State.ROLLING_BACK:
                self._roll_back()
            case State.ROLLING_BACK_FAILED:
                self._fire("<Rollback")
                self._roll_back()
            case State.CLEANING_UP:
                self._clean_up(commits=self._commit_was_decided())
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
        row = TABLE[self.state, event]
        if event.startswith("<") and row.error:
            raise getattr(errors, row.error)(
                f"cannot {event[1:]}: the update manager is {self.state}",
                hint="`otaflow status` shows what is going on",
            )
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
                    "spare": spare,
                }

    def _processed(self) -> list[tuple[Action, Processed]]:
        """The processed actions of this session, with what Processing handed over."""
        session = self.journal.session
        results = [t["processed"] for t in session.transitions if "processed" in t]
        return [(session.actions[place], result) for place, result in zip(session.processed, results, strict=True)]

    def _checks(self) -> list[dict[str, Any]]:
        """The health checks of the packages of this session. A package taken back has none for the former system."""
        return [
            check.model_dump()
            for action, processed in self._processed()
            if action.kind == "up"
            for check in metadata_of(processed["folder"]).health
        ]

    def _activate_or_revert(self) -> None:
        try:
            self.activate()
        except OtaflowError as error:
            for action, _ in self._processed():
                self._record(action, history.FAILED, error=error)
            if self.state is State.READY:
                self.revert()
            raise

    def _roll_back(self) -> None:
        try:
            if not self.run(roll_back, {}):
                raise Restarting
        except Restarting:
            raise
        except Exception as error:
            self._fire("!RollingBackFailed", error=str(error))
            raise
        self._fire("$Success")

    def _clean_up(self, *, commits: bool) -> None:
        session = self.journal.session
        if commits:
            for place, (action, processed) in zip(session.processed, self._processed(), strict=True):
                self._record(action, history.ACTIVATED, place=place, backup=processed["backup"])
            self.journal.keep()
            kept = [kept_name(place) for place in session.processed]
            mains = [kept_main_name(p) for p in session.processed if session.actions[p].kind == "snapshot"]
            packages = [session.actions[p].package for p in session.processed if session.actions[p].package]
            parameters = {"session": session.id, "kept": kept, "mains": mains, "packages": packages}
            self.run(commit, parameters)
        else:
            self.run(revert, {"session": session.id})
        reverted = self._cleaning_came_from() == State.READY
        self._fire("$Success RevertProcessedSwPackages" if reverted else "$Success Finish")

    def _commit_was_decided(self) -> bool:
        return self._cleaning_came_from() == State.ACTIVATED

    def _cleaning_came_from(self) -> str:
        return str([t["from"] for t in self.journal.session.transitions if t["to"] == State.CLEANING_UP][-1])

    def _give_up(self) -> None:
        """Revert what was processed when nobody is there to activate it."""
        stopped = errors.ProcessSwPackageCancelled("it was interrupted before its activation")
        for action, _ in self._processed():
            self._record(action, history.FAILED, error=stopped)
        self.revert()

    def _recover_processing(self) -> None:
        session = self.journal.session
        from otaflow.tasks.step import compensate

        compensate(lambda intent: intent.action == session.current)
        stopped = errors.ProcessSwPackageCancelled(
            "the processing was interrupted: a power cut, or its process was ended"
        )
        self._record(session.actions[-1], history.FAILED, error=stopped)
        self._fire("!ProcessSwPackageCancelled", error=str(stopped))

    def _recover_activating(self) -> None:
        """Flipped: the trial follows. Not flipped: everything of the activation is taken back."""
        from otaflow.tasks.step import compensate

        actions = self._processed()
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
        for action, _ in actions:
            self._record(action, history.FAILED, error=errors.ErrorDuringActivation("the activation was interrupted"))

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
        place = session.actions.index(action) if place is None else place
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


_TABLE_NAMES = {"ProcessedSoftwarePackageInconsistent": "ProcessedSwPackageInconsistent"}
"""The errors that the specification's table spells otherwise than the interface."""
_NO_ROOM = ("No space left", "Wrote only")
"""What programs say on a full disk; the second one is tar's."""


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
