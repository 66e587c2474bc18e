"""What Prefect is told: of each session its states, of each phase its run's, in the order in which they came to be.

The journal says what Prefect was not told yet, also of sessions that are over; it is told when the API is there. What
is told is noted in the journal, not durably: after a power cut something may be told twice.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from prefect import Flow, flow, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import FlowRunCreate, LogCreate
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, StateType
from prefect.client.schemas.objects import State as RunState
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import to_state_create

from otaflow.flows.phase import Phase
from otaflow.journal import Session
from otaflow.platform.device import Device
from otaflow.records import Record
from otaflow.ucm.states import MEANING, State

log = logging.getLogger("otaflow.runs")

TYPES = {
    State.PROCESSING: StateType.RUNNING,
    State.READY: StateType.PAUSED,
    State.ACTIVATING: StateType.RUNNING,
    State.VERIFYING: StateType.RUNNING,
    State.ACTIVATED: StateType.PAUSED,
    State.ROLLING_BACK: StateType.RUNNING,
    State.ROLLING_BACK_FAILED: StateType.PAUSED,
    State.ROLLED_BACK: StateType.PAUSED,
    State.CLEANING_UP: StateType.RUNNING,
}
"""Prefect's type for each UCM state; Idle ends the run, and its type says how."""
CUT_OFF = "it was cut off, or Prefect's API was away at its end; the session's log says how the device went on"


@flow(name="update session")
def update_session(device: str, session: str, what: str) -> None:
    """The run that carries the UCM's states. It has no body: the engine must never run it."""


@task(name="phases")
def _phases_place() -> None:
    """The place of the phases on the session's page: a subflow run hangs on a task run."""


def deploy_sessions(client: SyncPrefectClient, device: str) -> UUID:
    """The deployment to which a device's sessions belong: only of such runs Prefect's UI lets its users press Cancel.

    Nobody executes its runs, and it has no schedule.
    """
    return client.create_deployment(
        client.create_flow(update_session),
        name=device,
        tags=["otaflow", f"device:{device}"],
        description="The device's updates, one run each. They are not started here: run *update*, or *install a file*.",
        paused=True,
    )


def run_state(session: Session, transition: Record) -> RunState[Any]:
    """What the session's run shows after the transition."""
    state = State(transition["to"])
    message = str(transition.get("error") or MEANING[state])
    kind = TYPES.get(state) or _ending(session, str(transition["event"]))
    return RunState(type=kind, name=str(state), message=message, timestamp=datetime.fromisoformat(transition["time"]))


class Telling:
    """Tells Prefect, piece by piece. What it is told is asked for, and told, by one thread at a time."""

    def __init__(self, device: Device, client: SyncPrefectClient) -> None:
        self.journal, self.client = device.journal, client
        self.name = device.config.device.name
        self._states: deque[tuple[UUID, RunState[Any]]] = deque()
        """States of phases' runs that are to be told."""
        self._running: set[str] = set()
        """The phases' runs that began in this process, and whose end is not told."""
        self._flows: dict[str, UUID] = {}
        self._logged = ""
        """The run that has its session's log already."""

    def note_state(self, run: UUID, state: RunState[Any]) -> None:
        """A state of a phase's run, to be told soon."""
        self._states.append((run, state))

    def note_end(self, run: UUID) -> None:
        """The phase is over here. Where Prefect's engine did not say so, its run is closed as one that was cut off."""
        if not any(of == run and state.is_final() for of, state in list(self._states)):
            self._running.discard(str(run))

    def due(self) -> Iterator[Callable[[], None]]:
        """What is to be told, each piece of it a request or two."""
        while self._states:
            yield self._tell_phase
        while sessions := self.journal.untold():
            yield partial(self._tell_transition, sessions[0])
        for run in self._cut_off():
            yield partial(self.close_cut_off, run)

    def is_due(self) -> bool:
        """Whether there is anything to be told. Asks nobody."""
        return bool(self._states or self.journal.untold() or self._cut_off())

    def find_run(self, session: Session) -> FlowRun | None:
        """The session's run; None where Prefect has lost it: it gets a new one then, unless it is over."""
        run = session.notes["run"]
        try:
            return self.client.read_flow_run(UUID(run))
        except ObjectNotFound:
            if self.journal.state is not State.IDLE:
                self.forget(session, run)
            return None

    def is_known(self, run: str) -> bool:
        """Whether the phase's run goes on in this process, or its end is due to be told."""
        return run in self._running or run in self.journal.phase_runs

    def forget(self, session: Session, run: str) -> None:
        """Prefect has lost the session's run."""
        if session.notes.get("run") != run:
            return  # it has a new one already
        log.warning("Prefect has lost the session's run: it gets a new one")
        self._flows.clear()
        self.journal.note(durable=False, of=session.id, run="", place="", shown=0, told="")

    def tell_last(self, session: Session) -> None:
        """The session's present state once more, where somebody else has set another one."""
        run, state = UUID(session.notes["run"]), run_state(session, session.transitions[session.shown - 1])
        found = self.client.read_flow_run(run).state
        if found and (found.name, found.type) == (state.name, state.type):
            return
        told = self.client.set_flow_run_state(run, state, force=True).state
        self.journal.note(durable=False, of=session.id, told=_id_of(told))

    def begin_phase(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> FlowRun:
        """The phase's run, made as a subflow run of the session."""
        try:
            run = self._make_phase(phase, parameters)
        except PrefectHTTPStatusError:
            # It does not know what it should: has it lost its database, or the place where phases hang?
            self._flows.clear()
            session = self.journal.session
            if session.notes.get("run") and self.find_run(session):
                self.journal.note(durable=False, of=session.id, place="")
            run = self._make_phase(phase, parameters)
        self._running.add(str(run.id))
        self.journal.note(durable=False, phase_run=str(run.id))
        return run

    def write_log(self, session: Session, *lines: tuple[int, str, datetime]) -> None:
        """Lines of the session's log, in one call, since each costs some ms."""
        names = ("level", "message", "timestamp")
        facts = {"name": "otaflow.ucm", "flow_run_id": UUID(session.notes["run"])}
        self.client.create_logs(
            [LogCreate.model_validate(facts | dict(zip(names, line, strict=True))) for line in lines]
        )

    def close_cut_off(self, run: str) -> None:
        """Close a phase's run that nobody runs: it would be seen as running for ever, and hold what is limited."""
        try:
            found = self.client.read_flow_run(UUID(run))
            if not (found.state and found.state.is_final()):
                crashed: RunState[Any] = RunState(type=StateType.CRASHED, message=CUT_OFF)
                self.client.set_flow_run_state(found.id, crashed, force=True)
        except ObjectNotFound:
            log.debug("Prefect has lost the phase's run %s", run)
        self.journal.note(durable=False, phase_ended=run)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _cut_off(self) -> list[str]:
        return [run for run in list(self.journal.phase_runs) if run not in self._running]

    def _tell_phase(self) -> None:
        run, state = self._states[0]
        try:
            self.client.set_flow_run_state(run, state, force=True)
        except ObjectNotFound:
            log.debug("Prefect has lost the phase's run %s", run)
        self._states.popleft()
        if state.is_final():
            self._running.discard(str(run))
            self.journal.note(durable=False, phase_ended=str(run))

    def _tell_transition(self, session: Session) -> None:
        number = session.shown
        if number >= len(session.transitions):
            return
        transition = session.transitions[number]
        state = run_state(session, transition)
        if run := session.notes.get("run"):
            if transition["to"] == State.IDLE:
                self._log_states(session)
            try:
                told = self.client.set_flow_run_state(UUID(run), state, force=True).state
            except ObjectNotFound:
                self.forget(session, run)
                return
            self.journal.note(durable=False, of=session.id, shown=number + 1, told=_id_of(told))
        else:
            self._open(session, state)

    def _log_states(self, session: Session) -> None:
        """The session's states as its log, with the times at which they really were.

        Before the last state is told: that is told again until the log is there, too. What a server refuses is lost.
        """
        if self._logged == session.notes["run"]:
            return
        lines = []
        for transition in session.transitions:
            state = run_state(session, transition)
            level = logging.WARNING if "error" in transition else logging.INFO
            lines.append((level, f"{state.name}: {state.message}", state.timestamp))
        try:
            self.write_log(session, *lines)
        except PrefectHTTPStatusError as error:
            if error.response.status_code >= 500:
                raise
            log.warning("Prefect does not take the session's log: %s", error)
        self._logged = session.notes["run"]

    def _open(self, session: Session, state: RunState[Any]) -> None:
        what = str(session.transitions[0].get("what") or "recovery")
        run = self._make_run(
            update_session,
            deployment_id=deploy_sessions(self.client, self.name),  # made anew where somebody has deleted it
            name=f"{self.name}: {what}",
            parameters={"device": self.name, "session": session.id, "what": what},
            labels={"otaflow.device": self.name, "otaflow.session": session.id, "otaflow.what": what},
            tags=["otaflow", f"device:{self.name}"],
            # Killed before it could be noted, the run is found again.
            idempotency_key=f"{self.name} {session.id}",
            state=state,
        )
        told = _id_of(run.state)
        self.journal.note(durable=False, of=session.id, run=str(run.id), shown=1, told=told, place="")
        self._find_place(session)

    def _make_phase(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> FlowRun:
        session = self.journal.session
        place = self._find_place(session) if self.journal.state is not State.IDLE else None
        return self._make_run(
            phase.flow,
            name=f"{self.name}: {phase.name}",
            parameters=parameters,
            tags=["otaflow", f"device:{self.name}", *([f"session:{session.id}"] if place else [])],
            parent_task_run_id=place,
            state=RunState(type=StateType.PENDING),
        )

    def _find_place(self, session: Session) -> UUID:
        """Where the session's phases hang: one task run for all of them, made with the session's run."""
        while not session.notes.get("run"):
            self._tell_transition(self.journal.untold()[0])
        if not session.notes.get("place"):
            pending: RunState[Any] = RunState(type=StateType.PENDING)
            run = UUID(session.notes["run"])
            place = self.client.create_task_run(_phases_place, run, dynamic_key="phases", name="phases", state=pending)
            self.journal.note(durable=False, of=session.id, place=str(place.id))
        return UUID(session.notes["place"])

    def _make_run(self, flow: Flow[..., Any], state: RunState[Any], **facts: Any) -> FlowRun:
        """What `client.create_flow_run` does, with labels, and without asking for the flow each time."""
        if flow.name not in self._flows:
            self._flows[flow.name] = self.client.create_flow(flow)
        policy = FlowRunPolicy(retries=0, retry_delay=0)
        create = FlowRunCreate(
            flow_id=self._flows[flow.name],
            flow_version=flow.version,
            state=to_state_create(state),
            empirical_policy=policy,
            **facts,
        )
        answer = self.client.request("POST", "/flow_runs/", json=create.model_dump(mode="json", exclude_unset=True))
        run = FlowRun.model_validate(answer.json())
        run.parameters = facts["parameters"]
        return run


def _id_of(state: RunState[Any] | None) -> str:
    return str(state.id) if state else ""


def _ending(session: Session, event: str) -> StateType:
    if event == "$Success Finish" and session.kept:
        return StateType.COMPLETED
    if event in ("$Success RevertProcessedSwPackages", "!ProcessSwPackageCancelled"):
        return StateType.CANCELLED
    return StateType.FAILED
