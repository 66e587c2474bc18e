"""The session flow run: its state is the UCM's state, its subflow runs are the phases.

It is set through the client and never executed by Prefect's engine, so its history is exactly the UCM's history. What
could not be told to an API that is away is told later, from the journal; a phase whose API goes away is begun again
without it. Nothing here decides anything.
"""

import asyncio
import contextvars
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import LogCreate
from prefect.client.schemas.objects import State as RunState
from prefect.client.schemas.objects import StateType
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow
from prefect.types import DateTime

from otaflow.flows.phase import Phase
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

REACH_SECONDS = 3.0
BUSY_SECONDS = 0.02
"""How long a server rests that is busy; three times as long each time it is busy again."""


@flow(name="update session")
def update_session(device: str, session: str, what: str) -> None:
    """The run that carries the UCM's states. It has no body: the engine must never run it."""


@task(name="phase")
def _phase_place() -> None:
    """The place of a phase on the session's page: a subflow run hangs on a task run."""


class PrefectRuns:
    """The Prefect side of one device (the `Runs` of otaflow.service)."""

    def __init__(self, device: Device) -> None:
        """Connect to PREFECT_API_URL, or to Prefect's own embedded server, which is started when there is none."""
        self.device = device
        self.journal = device.journal
        self._opened = ExitStack()
        # A context of its own: the agent connects in one thread, works in a second and closes in a third.
        self._context = contextvars.copy_context()
        self.client = self._context.run(self._connect)
        self.client._client.event_hooks["response"].append(rest_shortly)
        self._phases = PhaseLoop(self._context)

    def close(self) -> None:
        """Let go of the clients."""
        self._phases.close()
        self._context.run(self._opened.close)

    def publish(self, state: State, message: str) -> None:
        """Show every transition that the API has not seen. Never raises: the journal is the truth."""
        try:
            self._expect_api()
            self._publish()
        except Exception as error:
            log.warning("cannot show the state %s in Prefect now: %s", state, error)

    def catch_up(self) -> None:
        """After a crash: close the phase run that nobody runs any more, and show what happened since. Never raises."""
        try:
            self._expect_api()
            self._publish()
            notes = self.journal.session.notes
            if notes.get("phase_run") and notes.get("phase_run") != notes.get("phase_ended"):
                crashed = RunState(
                    type=StateType.CRASHED, message="the device was cut off; the journal says how it went on"
                )
                run = self.client.read_flow_run(UUID(notes["phase_run"]))
                if not (run.state and run.state.is_final()):
                    self.client.set_flow_run_state(run.id, crashed, force=True)
                self.journal.note(durable=False, phase_ended=notes["phase_run"])
        except Exception as error:
            log.warning("cannot bring Prefect up to date now: %s", error)

    def run(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> Any:
        """Run a phase as a subflow run of the session; returns or raises what its story did."""
        phase.outcome = None
        self._run_in_prefect(phase, parameters)
        outcome = phase.outcome
        if outcome is None or (outcome.error and _is_api_trouble(outcome.error)):
            log.warning("running %s without Prefect", phase.name)
            return phase(**parameters)
        if outcome.error:
            raise outcome.error
        return outcome.value

    def behind(self) -> bool:
        """Whether there is a transition that Prefect has not been told. Asks nobody."""
        session = self.journal.session
        return int(session.notes.get("shown", 0)) < len(session.transitions)

    def pressed(self) -> tuple[str, State] | None:
        """The button that somebody pressed on the session's page, and the state in which: None when nobody did.

        It is "Resume", "Cancel", or the name of whatever else the run's state was set to. Raises what Prefect's client
        raises while the API is away.
        """
        session = self.journal.session
        count = len(session.transitions)
        if "run" not in session.notes or self.behind():
            return None
        transition = session.transitions[-1]
        expected = self._run_state(transition)
        self._expect_api()
        found = self.client.read_flow_run(UUID(session.notes["run"])).state
        if session is not self.journal.session or len(session.transitions) > count:
            return None  # it went on meanwhile: that is no button
        if found is None or (found.name, found.type) == (expected.name, expected.type):
            return None
        state = State(transition["to"])
        if found.type in (StateType.CANCELLING, StateType.CANCELLED):
            return "Cancel", state
        if found.type is StateType.RUNNING and expected.type is StateType.PAUSED:
            return "Resume", state
        return str(found.name), state

    def put_back(self, why: str) -> None:
        """Give the session's run its right state again; `why` goes into its log. Never raises."""
        session = self.journal.session
        try:
            self._expect_api()
            run = UUID(session.notes["run"])
            if why:
                line = LogCreate(
                    name="otaflow", level=logging.WARNING, message=why, timestamp=DateTime.now("UTC"), flow_run_id=run
                )
                self.client.create_logs([line])
            if int(session.notes.get("shown", 0)) == len(session.transitions):
                self.client.set_flow_run_state(run, self._run_state(session.transitions[-1]), force=True)
        except Exception as error:
            log.warning("cannot put the session's state back in Prefect now: %s", error)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _run_in_prefect(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> None:
        """Run it, its end being in `phase.outcome`; that is None where the API failed before the story began."""
        try:
            self._expect_api()
            flow_run = self._begin_phase(phase, parameters)
            self._phases.run(
                lambda: run_flow(phase.flow, flow_run=flow_run, parameters=parameters, return_type="state")
            )
            self.journal.note(durable=False, phase_ended=str(flow_run.id))
        except Exception as error:
            if phase.outcome is None or phase.outcome.error is None or _is_api_trouble(error):
                log.warning("Prefect's API failed in the phase %s: %s", phase.name, error)

    def _connect(self) -> SyncPrefectClient:
        """A client that every step shares: making one of its own costs a step 45 ms (it reads all CAs)."""
        try:
            return self._opened.enter_context(SyncClientContext.get_or_create()).client
        except Exception as error:
            # An API that is away may come back; what it should have seen is told it then.
            log.warning("cannot reach Prefect's API now: %s", error)
            return self._opened.enter_context(get_client(sync_client=True))

    def _expect_api(self) -> None:
        """Raise ConnectionError at once while nobody answers: Prefect's client would try again for a minute."""
        url = self.client.api_url
        if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
            return  # only the proxy knows
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.host, port), timeout=REACH_SECONDS).close()

    def _publish(self) -> None:
        session = self.journal.session
        if not session.transitions:
            return
        shown = int(session.notes.get("shown", 0))
        for number, transition in enumerate(session.transitions[shown:], shown + 1):
            state = self._run_state(transition)
            if "run" not in session.notes:
                self._open(transition, state, number)
                continue
            try:
                self.client.set_flow_run_state(UUID(session.notes["run"]), state, force=True)
                self.journal.note(durable=False, shown=number)
            except ObjectNotFound:
                log.warning("Prefect has lost the session's run: it gets a new one")
                self._open(transition, state, number)
        if shown < len(session.transitions) and self.journal.state is State.IDLE:
            self._log_states()

    def _log_states(self) -> None:
        """The session's states as its log, which the UI shows as text; in one call, since each costs some ms."""
        states = [self._run_state(transition) for transition in self.journal.session.transitions]
        run = UUID(self.journal.session.notes["run"])
        lines = [
            LogCreate(
                name="otaflow.ucm",
                level=logging.WARNING if "error" in transition else logging.INFO,
                message=f"{state.name}: {state.message}",
                timestamp=state.timestamp,
                flow_run_id=run,
            )
            for state, transition in zip(states, self.journal.session.transitions, strict=True)
        ]
        self.client.create_logs(lines)

    def _open(self, transition: Record, state: RunState[Any], shown: int) -> None:
        session = self.journal.session
        name = self.device.config.device.name
        what = str(session.transitions[0].get("what") or "recovery")
        run = self.client.create_flow_run(
            update_session,
            name=f"{name}: {what}",
            parameters={"device": name, "session": session.id, "what": what},
            tags=["otaflow", f"device:{name}"],
            state=state,
        )
        labels: dict[str, bool | int | float | str] = {
            "otaflow.device": name,
            "otaflow.session": session.id,
            "otaflow.what": what,
        }
        self.client.update_flow_run_labels(run.id, labels)
        self.journal.note(durable=False, run=str(run.id), shown=shown)

    def _run_state(self, transition: Record) -> RunState[Any]:
        state = State(transition["to"])
        message = str(transition.get("error") or MEANING[state])
        kind = TYPES.get(state) or self._ending(str(transition["event"]))
        return RunState(
            type=kind, name=str(state), message=message, timestamp=datetime.fromisoformat(transition["time"])
        )

    def _ending(self, event: str) -> StateType:
        if event == "$Success Finish" and self.journal.session.kept:
            return StateType.COMPLETED
        if event in ("$Success RevertProcessedSwPackages", "!ProcessSwPackageCancelled"):
            return StateType.CANCELLED
        return StateType.FAILED

    def _begin_phase(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> Any:
        session = self.journal.session
        place = None
        if self.journal.state is not State.IDLE and "run" in session.notes:
            place = self.client.create_task_run(
                _phase_place,
                name=phase.name,
                flow_run_id=UUID(session.notes["run"]),
                dynamic_key=f"{phase.name}-{len(session.transitions)}",
                state=RunState(type=StateType.PENDING),
            ).id
        name = self.device.config.device.name
        run = self.client.create_flow_run(
            phase.flow,
            name=f"{name}: {phase.name}",
            parameters=parameters,
            parent_task_run_id=place,
            tags=["otaflow", f"device:{name}", *([f"session:{session.id}"] if place else [])],
        )
        self.journal.note(durable=False, phase_run=str(run.id))
        return run


class PhaseLoop:
    """The event loop of the phases, one for all, so that they share one client with its connection.

    Not asyncio.run: there Ctrl-C would wait for the phase's end.
    """

    def __init__(self, context: contextvars.Context) -> None:
        """`context` holds the client that steps use outside of the loop."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outer = context
        self._context = context.copy()
        self._client: AsyncClientContext | None = None

    def run(self, start: Callable[[], Any]) -> Any:
        """Run a phase to its end."""
        try:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._client = AsyncClientContext()
                self._wait(self._client.__aenter__())
                self._client.client._client.event_hooks["response"].append(arest_shortly)
            return self._wait(start())
        except BaseException:
            # What was left waiting in the loop must not go on beside the next phase.
            self.close()
            raise

    def close(self) -> None:
        """Close the client and the loop; the next phase gets new ones. Never raises."""
        if self._loop is None:
            return
        loop = self._loop
        try:
            with suppress(Exception):
                if self._client:
                    self._wait(self._client.__aexit__(None, None, None))
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
            self._loop = self._client = None
            self._context = self._outer.copy()

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """All in one context: the client is found in it."""
        assert self._loop is not None
        return self._loop.run_until_complete(self._loop.create_task(work, context=self._context))


def rest_shortly(response: Any) -> None:
    """Say how long a busy server wants to rest, where it does not say so itself.

    With SQLite, Prefect's server refuses a writer at once, with a 503, while another one writes. That is over after
    milliseconds; its client, told nothing, would wait for 2 s, in nearly every phase.
    """
    if response.status_code == 503 and "Retry-After" not in response.headers:
        tries = response.request.extensions.setdefault("otaflow_tries", [])
        response.headers["Retry-After"] = str(BUSY_SECONDS * 3 ** len(tries))
        tries.append(response.status_code)


async def arest_shortly(response: Any) -> None:
    """The same for the client of the phases."""
    rest_shortly(response)


def _is_api_trouble(error: BaseException) -> bool:
    """Whether Prefect's client or engine failed, and not the story."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "prefect", "websockets")
