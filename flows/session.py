"""The session flow run: its state is the UCM's state, its subflow runs are the phases.

It is set through the client and never executed by Prefect's engine, so its history is exactly the UCM's history. What
happens is told to Prefect from a thread of its own, and nobody waits for that; what could not be told to an API that is
away is told later, from the journal. A phase whose API is away runs without it. Nothing here decides anything.
"""

import contextvars
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.objects import State as RunState
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow

from otaflow.flows.clients import PhaseLoop, connect, expect_api, is_api_trouble
from otaflow.flows.lost import Lost
from otaflow.flows.phase import Phase
from otaflow.flows.telling import Telling, run_state
from otaflow.platform.device import Device
from otaflow.ucm.states import State

log = logging.getLogger("otaflow.runs")

BREATH_SECONDS = 0.15
"""A phase that begins with a state is told before the state, but not before its session is there: somebody waits."""
PATIENCE_SECONDS = 8.0
"""How long a phase waits for its run, its turn to ask for it included."""
FLUSH_SECONDS = 10.0
CLOSE_SECONDS = 60.0
"""How long it rests until runs that were left open are closed again, where that failed."""
ASKS = "otaflow-asks"
"""The thread that asks for a phase's run."""


class PrefectRuns:
    """The Prefect side of one device (the `Runs` of otaflow.service)."""

    def __init__(self, device: Device) -> None:
        """Connect to PREFECT_API_URL, or to Prefect's own embedded server, which is started when there is none."""
        self.device = device
        self.journal = device.journal
        self._opened = ExitStack()
        # A context of its own: the agent connects in one thread, works in a second and closes in a third.
        self._context = contextvars.copy_context()
        self.client = self._context.run(connect, self._opened)
        self.telling = Telling(device, self.client)
        self._lost = Lost(device, self.telling)
        self._looked = False
        """Whether it is known that Prefect still knows what it was told of the session."""
        self._phases = PhaseLoop(self._context, self._note_phase)
        self._talking = threading.Lock()
        """One request after the other: SQLite has one writer."""
        self._asking: threading.Thread | None = None
        """Asks for a phase's run, or still does although nobody waits for it any more."""
        self._turn = threading.Event()
        self._turn.set()
        self._due = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._context.copy().run, args=(self._go,), name="otaflow-runs")
        self._thread.daemon = True
        self._until = 0.0
        self._thread.start()

    def close(self) -> None:
        """Tell what is still to be told, within seconds, and let go of the clients."""
        self._until = time.monotonic() + FLUSH_SECONDS
        self._ended = True
        self._due.set()
        self._thread.join(FLUSH_SECONDS)
        self._phases.close()
        self._context.run(self._opened.close)

    def publish(self, state: State, message: str) -> None:
        """Show, soon, every transition that the API has not seen. Never raises: the journal is the truth."""
        self._due.set()

    def catch_up(self) -> None:
        """After a start: show what happened since, and close the phases' runs that nobody runs any more."""
        self._due.set()

    def run(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> Any:
        """Run a phase as a subflow run of the session; returns or raises what its story did."""
        phase.outcome = None
        self._run_in_prefect(phase, parameters)
        outcome = phase.outcome
        if outcome is None or (outcome.error and is_api_trouble(outcome.error)):
            log.warning("running %s without Prefect", phase.name)
            return phase(**parameters)
        if outcome.error:
            raise outcome.error
        return outcome.value

    def behind(self) -> bool:
        """Whether there is anything that Prefect has not been told, or may have lost. Asks nobody."""
        return not self._looked or self.telling.is_due()

    def pressed(self) -> tuple[str, State] | None:
        """The button that somebody pressed on the session's page, and the state in which: None when nobody did.

        It is "Resume", "Cancel", or the name of whatever else the run's state was set to. Raises what Prefect's client
        raises while the API is away.
        """
        session = self.journal.session
        count, run = len(session.transitions), session.notes.get("run")
        if not run or session.behind:
            return None
        transition = session.transitions[-1]
        expected = run_state(session, transition)
        expect_api(self.client)
        try:
            shown = self.client.read_flow_run(UUID(run))
        except ObjectNotFound:
            with self._talking:
                self.telling.forget(session, run)
            self._due.set()
            return None
        if session is not self.journal.session or len(session.transitions) > count:
            return None  # it went on meanwhile: that is no button
        if session.behind or session.notes.get("run") != run:
            return None  # it is being told anew
        found = shown.state
        if found is None or (found.name, found.type) == (expected.name, expected.type):
            return None
        with self._talking:
            lost = self._lost.tell_again(session, shown)
        if lost:
            self._due.set()
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
            expect_api(self.client)
            with self._talking:
                if why:
                    self.telling.write_log(session, (logging.WARNING, why, datetime.now(UTC)))
                if not session.behind:
                    self.telling.tell_last(session)
        except Exception as error:
            log.warning("cannot put the session's state back in Prefect now: %s", error)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _run_in_prefect(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> None:
        """Run it, its end being in `phase.outcome`; that is None where the API failed before the story began."""
        try:
            expect_api(self.client)
            flow_run = self._begin(phase, parameters)
            try:
                start = partial(run_flow, phase.flow, flow_run=flow_run, parameters=parameters, return_type="state")
                self._phases.run(flow_run, start)
            finally:
                self.telling.note_end(flow_run.id)
                self._due.set()
        except Exception as error:
            if phase.outcome is None or phase.outcome.error is None or is_api_trouble(error):
                log.warning("Prefect's API failed in the phase %s: %s", phase.name, error)

    def _note_phase(self, run: UUID, state: RunState[Any]) -> None:
        self.telling.note_state(run, state)
        self._due.set()

    def _begin(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> FlowRun:
        """The phase's run. It is asked for before all that is only told: a caller waits. Raises TimeoutError.

        Nobody waits for a server that stands still: the request is given up, and while it goes on no other is made.
        """
        if self._asking and self._asking.is_alive():
            raise TimeoutError("it does not answer yet")
        found: Future[FlowRun] = Future()
        ask = partial(
            contextvars.copy_context().run, self._ask, found, partial(self.telling.begin_phase, phase, parameters)
        )
        self._asking = threading.Thread(target=ask, name=ASKS, daemon=True)
        self._turn.clear()
        try:
            self._asking.start()
            return found.result(PATIENCE_SECONDS)
        except TimeoutError:
            if not found.cancel():
                found.add_done_callback(self._drop)
            raise TimeoutError(f"it has not answered within {PATIENCE_SECONDS:.0f} s") from None
        finally:
            self._turn.set()

    def _ask(self, found: "Future[FlowRun]", begin: Callable[[], FlowRun]) -> None:
        with self._talking:
            if not found.set_running_or_notify_cancel():
                return
            try:
                found.set_result(begin())
            except BaseException as error:
                found.set_exception(error)

    def _drop(self, found: "Future[FlowRun]") -> None:
        """The run that came too late is closed as one that was cut off: its phase went without it."""
        if not found.exception():
            self.telling.note_end(found.result().id)
        self._due.set()

    def _go(self) -> None:
        """Tell what is due, until the end."""
        again: float | None = 0.0
        """When runs that were left open are to be closed; None: they are."""
        while True:
            self._due.wait(CLOSE_SECONDS if again else None)
            self._due.clear()
            ended = self._ended
            try:
                if self.behind() or again is not None:
                    expect_api(self.client)
                    self._look()
                    self._tell()
                    if again is not None and time.monotonic() >= again and not (again and ended):
                        again = None if self._close_left_open() else time.monotonic() + CLOSE_SECONDS
            except Exception as error:
                log.warning("cannot tell Prefect now: %s; it is told later", error)
                if ended and not isinstance(error, OSError) and time.monotonic() < self._until:
                    self._due.set()  # it is there, and was busy
                    time.sleep(BREATH_SECONDS)
                    continue
            if ended:
                return

    def _look(self) -> None:
        """Once: whether Prefect still knows what it was told."""
        if not self._looked:
            with self._talking:
                self._lost.look_for_session()
            self._looked = True

    def _close_left_open(self) -> bool:
        """Whether that is done. What cannot be closed holds nothing else up, and is tried again."""
        done = True
        try:
            for close in self._lost.left_open():
                self._turn.wait(PATIENCE_SECONDS)
                with self._talking:
                    done = self._try(close) and done
        except Exception as error:
            log.info("cannot look for runs that were left open in Prefect now: %s", error)
            return False
        return done

    def _try(self, close: Callable[[], None]) -> bool:
        try:
            close()
        except Exception as error:
            log.info("cannot close a run that was left open in Prefect now: %s", error)
            return False
        return True

    def _tell(self) -> None:
        if self.journal.session.notes.get("run") and not self._ended:
            time.sleep(BREATH_SECONDS)
        for tell in self.telling.due():
            self._turn.wait(PATIENCE_SECONDS)
            with self._talking:
                tell()
