"""The UCM: the one who decides. It owns the journal, asks the transition table, and runs a phase for each working
state.

Order of every transition: the intent is durable, the phase acts, the new state is durable, it is published, the caller
is answered. Who calls (command line, deployed flow, interface) passes through here; nobody else changes the state.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

from otaflow import errors, fault, history, progress
from otaflow.action import TOGETHER, Action
from otaflow.ends import raise_alarm, record_end
from otaflow.errors import HealthCheckFailed, Restarting, UcmError, UndoFailed
from otaflow.flows.clean_up import commit, disown_rest, revert
from otaflow.flows.phase import Phase
from otaflow.flows.process import Processed
from otaflow.flows.roll_back import roll_back
from otaflow.flows.verify import verify
from otaflow.parts import Part, part_of, with_owners
from otaflow.phases import choose_activation, choose_processing
from otaflow.platform.device import Device
from otaflow.refusals import as_ucm_error, processing_event
from otaflow.tasks.configuration import kept_main_name
from otaflow.tasks.package import metadata_of
from otaflow.tasks.slots import kept_name
from otaflow.trial import ORDERLY, judge_boots, keep_boot_log, put_target_right
from otaflow.ucm.states import RESTING, State
from otaflow.ucm.table import TABLE, Row

log = logging.getLogger("otaflow.ucm")


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
        self._cancelling = False
        """A Cancel waits for its answer."""

    @property
    def state(self) -> State:
        return self.journal.state

    @property
    def is_resting(self) -> bool:
        """Whether nothing works, and nothing is to be done unless somebody asks for it."""
        return self.state in RESTING

    @property
    def where(self) -> tuple[str, int]:
        """The session, and how far it is: it is somewhere else as soon as anything has happened."""
        session = self.journal.session
        return session.id, len(session.transitions)

    # --- what a client may ask for --------------------------------------------------------------------------------

    def process(self, action: Action, *, unattended: bool = False) -> None:
        """ProcessSwPackage: prepare `action` in the spare slot. Answers on Ready; raises what went wrong."""
        self.begin_process(action, unattended=unattended)()

    def begin_process(self, action: Action, *, unattended: bool = False) -> Work:
        """Enter Processing, or refuse; returns the rest of the work.

        `unattended`: no client will say how it goes on, so a restart in Ready or Activated does not wait for one. A
        session stays what its first action made it: nobody takes another client's decisions away.
        """
        with self.deciding:
            self._refuse_mixture(action)
            if self.state is State.IDLE:
                self.device.boots.note_boot()  # what a session counts from; at the start the disk may have been full
            self._put_target_right()
            unattended = unattended and self.state is State.IDLE
            self.fire("<ProcessSwPackage", what=action.title(), action=action.record(), unattended=unattended)
            self._cancelling = False
            self.device.stop_work.clear()
        return lambda: self._process(action)

    def _put_target_right(self) -> None:
        """In Idle: what is written to must not be the slot that starts next. What fails here fails the processing."""
        try:
            put_target_right(self.device)
        except (errors.OtaflowError, OSError) as error:
            log.error("cannot put the boot target right: %s", error)  # noqa: TRY400

    def _refuse_mixture(self, action: Action) -> None:
        """Packages go together, one of each application; a way back, or taking one back, is a session of its own."""
        self.check("<ProcessSwPackage")
        if self.state is not State.READY:
            return
        others = [one for one, _ in self.processed()]
        if any(one.kind not in TOGETHER for one in [action, *others]):
            raise errors.OperationNotPermitted(
                f"cannot process {action.title()}: something else is processed already, and they cannot go together",
                hint="end the session first: Activate and Finish, or RevertProcessedSwPackages",
            )
        if not action.of_system and action.name in {one.name for one in others}:
            raise errors.OperationNotPermitted(
                f"cannot process {action.title()}: another package of {action.name} is processed already",
                hint="updates of one application follow each other: Activate and Finish the first one",
            )

    def cancel(self, refusal: str = "") -> None:
        """Cancel: ask the processing to stop. It answers when it has: see `begin_process`'s work.

        `refusal` says that the client named something else than what is processed, and which. Raises InvalidTransferId.
        """
        with self.deciding:
            self.fire("<Cancel")
            if refusal:
                self.fire("!InvalidTransferId (for Cancel)")
                raise errors.InvalidTransferId(refusal)
            self._cancelling = True
            self.device.stop_work.set()

    def _process(self, action: Action) -> None:
        try:
            if action.facts.get("refused"):
                raise errors.InvalidTransferId(str(action.facts["refused"]))
            processed = self.run(*choose_processing(self.device, action))
            # The checks are kept here: after a power cut the package in the cache may be gone, and the trial goes on.
            checks = self._health_of(action, processed)
            part = part_of(action, processed)
        except UndoFailed as error:
            record_end(self.device, action, history.FAILED, error=error)
            self._answer_cancel(stopped=False)
            raise
        except BaseException as error:
            refusal = as_ucm_error(error)
            if not action.facts.get("refused"):
                record_end(self.device, action, history.FAILED, error=refusal)
            self.device.stop_work.clear()
            with self.deciding:
                self._answer_cancel(stopped=isinstance(refusal, errors.ProcessSwPackageCancelled))
                self.fire(processing_event(refusal), error=str(refusal))
            if refusal is error or not isinstance(error, Exception):
                raise
            raise refusal from error
        with self.deciding:
            self._answer_cancel(stopped=False)
            self.fire("$Success ProcessSwPackage", processed=processed, checks=checks, part=part)

    def _answer_cancel(self, *, stopped: bool) -> None:
        """What became of a Cancel: its event, while it is still Processing."""
        if self._cancelling:
            self._cancelling = False
            self.fire("$Success Cancel" if stopped else "!CancelFailed (for Cancel)")

    def activate(self) -> None:
        """Activate: check dependencies and change the boot target. Answers on entering Verifying."""
        self.begin_activate()()

    def begin_activate(self) -> Work:
        """Enter Activating, or refuse; returns the rest of the work."""
        with self.deciding:
            self.fire("<Activate")
            self.device.stop_work.clear()
        return self._activate

    def _activate(self) -> None:
        try:
            self._refuse_half_reverted()
            self.run(*choose_activation(self.processed(), self._parts()))
        except UndoFailed:
            raise
        except Exception as error:
            known = isinstance(error, (errors.MissingDependencies, errors.ErrorNoValidProcessing))
            refusal = error if known else errors.ErrorDuringActivation(f"cannot activate: {error}")
            self.fire(f"!{type(refusal).__name__}", error=str(refusal))
            if self.journal.session.unattended:
                self.give_up(refusal)
            if refusal is error:
                raise
            raise refusal from error
        self.fire("$Success")

    def verify(self) -> None:
        """The trial: restart, and check the system's health; then Activated, or the automatic rollback.

        Raises Restarting when the machine is going down, HealthCheckFailed when the system was rolled back, Superseded
        when a client's Rollback came in between.
        """
        with self.deciding:
            self._refuse_superseded()
        try:
            self._count_trial()
            system = any(action.of_system for action, _ in self.processed())
            if not self.run(verify, {"checks": self._checks(), "system": system, "parts": self._parts()}):
                raise Restarting
        except Restarting:
            raise
        except Exception as error:
            failure = error if isinstance(error, HealthCheckFailed) else HealthCheckFailed(f"cannot verify: {error}")
            keep_boot_log(self.device)
            with self.deciding:
                self._refuse_superseded()
                for action, _ in self.processed():
                    record_end(self.device, action, history.VERIFICATION_FAILED, error=failure)
                self.fire("!Fail", error=str(failure))
            self.work_rollback()
            raise failure from error
        with self.deciding:
            self._refuse_superseded()
            self.fire("$Success")

    def rollback(self) -> None:
        """Rollback: bring the former system back, from Verifying or Activated. Answers on Rolled-back."""
        self.begin_rollback()()

    def begin_rollback(self) -> Work:
        """Enter Rolling-back, or refuse; a verification that is going on is stopped. Returns the rest of the work."""
        with self.deciding:
            origin = self.state
            self.fire("<Rollback")
            self.device.stop_work.set()
        return lambda: self.work_rollback(origin)

    def finish(self) -> None:
        """Finish: keep the new system (from Activated), or put the rolled-back one in order. Answers on Idle."""
        self.begin_finish()()

    def begin_finish(self) -> Work:
        """Enter Cleaning-Up, or refuse; returns the rest of the work."""
        with self.deciding:
            self.fire("<Finish")
            self.device.stop_work.clear()
        return self.work_clean_up

    def revert(self) -> None:
        """RevertProcessedSwPackages: give up what was processed. Answers on Idle, or raises and is Ready again."""
        self.begin_revert()()

    def begin_revert(self) -> Work:
        """Enter Cleaning-Up, or refuse; returns the rest of the work."""
        with self.deciding:
            self.fire("<RevertProcessedSwPackages")
            self.device.stop_work.clear()
        return self.work_clean_up

    # --- a whole update, for the one-shot commands ----------------------------------------------------------------

    def install(self, action: Action) -> None:
        """Process, activate, verify and finish `action`; what fails leaves the device as it was. Raises what failed."""
        self.process(action, unattended=True)
        self.go_on()

    def go_on(self) -> None:
        """Carry an unattended session from where it is to Idle. Raises what failed, after it is taken back."""
        if self.state is State.READY:
            self.activate()
        if self.state is State.VERIFYING:
            try:
                self.verify()
            except HealthCheckFailed:
                self.finish()
                raise
        if self.state in (State.ACTIVATED, State.ROLLED_BACK):
            self.finish()

    # --- inside ---------------------------------------------------------------------------------------------------

    def fire(self, event: str, **facts: Any) -> None:
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
        if following is self.state:
            self._note_event(event)
            return
        origin = self.state
        fault.point(f"{event} {origin}.before")
        self.journal.transition(event, following, **facts)
        fault.point(f"{event} {origin}.after")
        progress.tell("state", following, event=event, **facts)
        if self.runs:
            self.runs.publish(following, str(facts.get("error", "") or facts.get("what", "")))

    def _note_event(self, event: str) -> None:
        """What happens in a state without changing it is no transition: only the last such event is kept, as a note."""
        progress.tell("event", event, state=self.state)
        if self.journal.session.notes.get("event") != event:
            self.journal.note(durable=False, event=event)

    def run(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> Any:
        """Run a phase, as a flow run where Prefect is there; returns or raises what its story did."""
        self.journal.phase = phase.name
        if self.runs:
            return self.runs.run(phase, parameters)
        return phase(**parameters)

    def processed(self) -> list[tuple[Action, Processed]]:
        """The processed actions of this session, with what Processing handed over."""
        session = self.journal.session
        results = [t["processed"] for t in session.transitions if "processed" in t]
        return [(session.actions[place], result) for place, result in zip(session.processed, results, strict=True)]

    def _checks(self) -> list[dict[str, Any]]:
        """The health checks of the packages of this session."""
        return [check for transition in self.journal.session.transitions for check in transition.get("checks", ())]

    def _parts(self) -> list[Part]:
        """What the packages of this session do to applications, services and data, and whose data that is."""
        parts = [part for transition in self.journal.session.transitions if (part := transition.get("part"))]
        return with_owners(parts, self.device.applications)

    def _health_of(self, action: Action, processed: Processed) -> list[dict[str, Any]]:
        """A package's health checks, each with the application that it is of. A former system that returns has none."""
        if action.kind not in ("up", "install", "update"):
            return []
        application = "" if action.of_system else action.name
        return [check.model_dump() | {"application": application} for check in metadata_of(processed["folder"]).health]

    def give_up(self, why: Exception) -> None:
        """Revert what is processed, which nobody will activate any more."""
        for action, _ in self.processed():
            record_end(self.device, action, history.FAILED, error=why)
        self.revert()

    def work_rollback(self, origin: State | None = None) -> None:
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
            nothing = isinstance(error, errors.NothingToRollback)
            kind = errors.NothingToRollback if nothing else errors.NotAbleToRollback
            refusal = kind(str(error) if nothing else f"cannot roll back: {error}", hint=getattr(error, "hint", ""))
            untouched = before == [intent.id for intent in self.journal.open_intents()]
            if origin in (State.ACTIVATED, State.VERIFYING) and untouched:
                self.fire(f"!{refusal.name} (from {origin})", error=str(refusal))
            else:
                self.fire("!RollingBackFailed", error=str(refusal))
            raise refusal from error
        for action, _ in self.processed():
            # A failed verification is in the history already, and stays what it is there.
            record_end(self.device, action, history.ROLLED_BACK)
        self.fire("$Success")

    def _refuse_half_reverted(self) -> None:
        """What a refused Revert has taken back in part is not what was processed; a failed activation is no matter."""
        processed = set(self.journal.session.processed)
        prepared = [intent for intent in self.journal.session.intents.values() if intent.phase != "activate"]
        if any(intent.undone and intent.action in processed for intent in prepared):
            raise errors.ErrorNoValidProcessing(
                "cannot activate: a part of what was processed is reverted",
                hint="revert the rest (RevertProcessedSwPackages), and process the package again",
            )

    def _count_trial(self) -> None:
        """A machine that goes down whenever its new system is checked must not try for ever. Raises HealthCheckFailed.

        A power cut is not the system's fault, unless it happens again and again.
        """
        health = self.device.config.health
        trial = judge_boots(self.device)
        if trial.begun:  # in this very boot, and its process is gone
            trial.failed += 1
        trial.begun, trial.begins = True, trial.begins + 1
        self.journal.note(trial=vars(trial))
        if trial.failed >= health.trials:
            ways = f" ({', '.join(trial.ends)})" if trial.ends else ""
            raise HealthCheckFailed(
                f"the new system was begun to be verified {trial.failed} times, and never to the end{ways}"
            )
        if trial.cuts >= health.power_cuts:
            raise HealthCheckFailed(
                f"the power was cut {trial.cuts} times while the new system was on trial, which came never to the end"
            )
        if trial.begins > health.trials + health.power_cuts + ORDERLY:
            raise HealthCheckFailed(
                f"the new system was begun to be verified {trial.begins - 1} times, and never to the end"
            )

    def _refuse_superseded(self) -> None:
        if self.state is not State.VERIFYING:
            raise Superseded

    def work_clean_up(self) -> None:
        """The work of Cleaning-Up, whatever led to it: commit, or take back what is left."""
        match self._cleaning_came_from():
            case State.READY:
                self._revert()
            case State.ACTIVATED:
                self._commit()
                self.fire("$Success Finish")
            case _:
                self._put_in_order()
                self.fire("$Success Finish")

    def _commit(self) -> None:
        session = self.journal.session
        for place, (action, processed) in zip(session.processed, self.processed(), strict=True):
            record_end(self.device, action, history.ACTIVATED, place=place, backup=processed.get("backup", ""))
        self.journal.keep()
        kept = [kept_name(place) for place in session.processed if session.actions[place].of_system]
        mains = [kept_main_name(p) for p in session.processed if session.actions[p].kind == "snapshot"]
        packages = [session.actions[p].package for p in session.processed if session.actions[p].package]
        trees = [(action.name, processed["kept"]) for action, processed in self.processed() if not action.of_system]
        parameters = {"session": session.id, "kept": kept, "mains": mains, "packages": packages, "trees": trees}
        try:
            self.run(commit, parameters)
        except Exception as error:
            # The update is committed: what could not be removed is an alarm, not a state (design).
            raise_alarm(self.device, "the update is in place, but not all of its leavings could be removed", error)

    def _put_in_order(self) -> None:
        """Take back what a rollback left, a bounded number of times: what is still there then is an alarm, no state."""
        try:
            self.run(revert, {"session": self.journal.session.id})
        except Exception as error:
            tries = int(self.journal.session.notes.get("clean_ups", 0)) + 1
            self.journal.note(clean_ups=tries)
            if tries < self.device.config.health.clean_ups:
                raise
            disown_rest(self.device)
            raise_alarm(
                self.device,
                f"the former system runs, but the update could not be taken back wholly, {tries} times",
                error,
            )

    def _revert(self) -> None:
        if not self.journal.session.processed:
            self._refuse_revert(errors.NothingToRevert("cannot revert: nothing is processed"))
        try:
            self.run(revert, {"session": self.journal.session.id})
        except Exception as error:
            if any(self.journal.open_intents()):
                hint = getattr(error, "hint", "")
                self._refuse_revert(errors.NotAbleToRevertPackages(f"cannot revert: {error}", hint=hint))
            raise_alarm(self.device, "all is reverted, but not all of its leavings could be removed", error)
        self.fire("$Success RevertProcessedSwPackages")

    def _refuse_revert(self, error: UcmError) -> None:
        self.fire(f"!{error.name} (for RevertProcessedSwPackages)", error=str(error))
        raise error

    def _cleaning_came_from(self) -> State:
        return State([t["from"] for t in self.journal.session.transitions if t["to"] == State.CLEANING_UP][-1])
