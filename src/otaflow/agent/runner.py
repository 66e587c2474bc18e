"""The deployments' runs in the agent's own process: a poll costs no interpreter and no import of its own.

What Prefect's process worker does, for the flows of one device: it registers them, looks for runs that are due, and
executes one at a time in each lane, so that going back does not wait until a slow network has brought an update. A poll
that a restart cut off is executed again: it goes on where the device is.
"""

import asyncio
import contextvars
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import Abort, Pause
from prefect.flow_engine import run_flow
from prefect.schedules import Schedule
from prefect.states import Cancelled, Crashed, Pending, Scheduled
from prefect.types.entrypoint import EntrypointType

from otaflow.flows.telling import deploy_sessions

log = logging.getLogger("otaflow.runner")

LOOK_SECONDS = 5.0
AWAY_SECONDS = 15.0
"""How long an API that does not answer is left alone."""
LOST_TRIES = 3
"""A run that was cut off so often is not begun again."""
WANTED_SECONDS = 300.0
"""How long a run that Prefect took without saying so may hang until nobody expects it to be executed any more."""
CHECK_SECONDS = 60.0
"""How often Prefect is asked for what it cannot tell: whether it still has the deployments, and what hangs."""


@dataclass(frozen=True)
class Deployed:
    """A flow that can be started from Prefect's UI; `schedule` starts it by itself, each time up to `jitter` later."""

    flow: Flow[..., Any]
    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule | None = None
    jitter: timedelta = timedelta(0)
    at_start: bool = False
    """Whether a run of it is due when the runner starts: after a restart the device looks at once."""
    again: bool = False
    """Whether a run that had begun when it was cut off is executed again. Not what acts each time anew, as going back
    does."""
    once: bool = False
    """Whether a run that is due while another one goes on is cancelled, as a button pressed twice; else it waits."""
    lane: str = "device"
    """What is in the same lane waits for its turn."""
    tags: tuple[str, ...] = ("otaflow",)


class Lane:
    """One run at a time, in a thread of its own."""

    def __init__(self, name: str, wake: threading.Event) -> None:
        """`wake` is set when a run is over."""
        self.name = name
        self.run: FlowRun | None = None
        self.one: Deployed | None = None
        """What it is a run of."""
        self.is_over = False
        """Whether the run in hand is over; it stays in hand until somebody has looked what came beside it."""
        self._wake = wake
        self._thread: threading.Thread | None = None

    def begin(self, run: FlowRun, one: Deployed, work: Callable[[FlowRun], None], context: contextvars.Context) -> None:
        """Do `work` with `run`, which is one of `one`."""
        self.run, self.one, self.is_over = run, one, False
        name = f"otaflow-runner-{self.name}"
        self._thread = threading.Thread(target=context.run, args=(self._do, work, run), name=name, daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait for the run in hand; whether it is over."""
        if self._thread:
            self._thread.join(seconds)
        return not (self._thread and self._thread.is_alive())

    def _do(self, work: Callable[[FlowRun], None], run: FlowRun) -> None:
        try:
            work(run)
        finally:
            self.is_over = True
            self._wake.set()


Then = Callable[[SyncPrefectClient, dict[str, UUID]], None]


class Runner:
    """Registers `deployed` and executes their runs, in threads of its own, until it is stopped."""

    def __init__(
        self,
        deployed: Sequence[Deployed],
        look_seconds: float = LOOK_SECONDS,
        *,
        device: str = "",
        then: Then | None = None,
    ) -> None:
        """`device` is the one whose sessions are shown beside; `then` is called with the deployments, by flow."""
        self.then = then
        self.deployed = list(deployed)
        self.device = device
        self.sessions: UUID | None = None
        self.look_seconds, self.check_seconds = look_seconds, CHECK_SECONDS
        self.known: dict[UUID, Deployed] = {}
        self._started = datetime.now(UTC).isoformat()
        self._ended = threading.Event()
        self._wake = threading.Event()
        self._lanes = {name: Lane(name, self._wake) for name in {one.lane for one in deployed}}
        self._taken_up: Counter[UUID] = Counter()
        self._taken: dict[UUID, float] = {}
        """When the runs were taken of which Prefect did not say that they are."""
        self._began: dict[str, float] = {}
        """When a run of each flow began last."""
        self._former: set[UUID] = set()
        """Deployments that Prefect has lost, of which a run may have been in hand."""
        self._check_at = 0.0
        self._context = contextvars.copy_context()  # Prefect's settings are found in it
        context = self._context.copy()
        self._thread = threading.Thread(target=context.run, args=(self._go,), name="otaflow-runner", daemon=True)

    def start(self) -> None:
        """Begin. Prefect may be away: what is due is done when it is back."""
        self._thread.start()

    def stop(self, seconds: float = 60.0) -> bool:
        """End after the runs in hand; whether they ended within `seconds`."""
        end = time.monotonic() + seconds
        self._ended.set()
        self._wake.set()
        self._thread.join(seconds)
        lanes = [lane.join(max(0.0, end - time.monotonic())) for lane in self._lanes.values()]
        return not self._thread.is_alive() and all(lanes)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _go(self) -> None:
        while not self._ended.is_set():
            try:
                with get_client(sync_client=True) as client:
                    self._check_at = 0.0  # who knows what became of the last request
                    while not self._ended.is_set():
                        if time.monotonic() >= self._check_at:
                            self._check(client)
                        if self._look(client):
                            self._take_up(client, self.known)  # what ended may not have been able to say so
                        else:
                            self._wake.wait(self.look_seconds)
                        self._wake.clear()
            except Exception as error:
                log.warning("cannot ask Prefect what is due: %s", error)
                self._ended.wait(AWAY_SECONDS)

    def _check(self, client: SyncPrefectClient) -> None:
        """See to it that Prefect has the deployments, and that no run hangs that nobody executes."""
        if self._is_registered(client):
            self._take_up(client, self.known)
        else:
            self._begin(client)
        self._check_at = time.monotonic() + self.check_seconds

    def _is_registered(self, client: SyncPrefectClient) -> bool:
        """Not at first, nor when a deployment was deleted, nor when Prefect's database is another one."""
        if not self.known:
            return False
        ids = [*self.known, *([self.sessions] if self.sessions else [])]
        found = client.read_deployments(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=ids)))
        if len(found) == len(ids):
            return True
        log.warning("Prefect has %d of this device's %d deployments: they are made anew", len(found), len(ids))
        return False

    def _begin(self, client: SyncPrefectClient) -> None:
        """Once Prefect is there: all is registered, and what was cut off goes on."""
        self.sessions = deploy_sessions(client, self.device) if self.device else None
        known = dict(self._register(client))
        if self.then:
            try:
                self.then(client, {one.flow.name: id for id, one in known.items()})
            except Exception as error:  # the device does its work all the same
                log.warning("cannot make the automations: %s", error)
        self._take_up(client, known)
        self._create_at_start(client, known)
        self._former |= self.known.keys() - known.keys()
        self.known = known  # not before all of it is done: what fails half-way is done again

    def _register(self, client: SyncPrefectClient) -> Iterator[tuple[UUID, Deployed]]:
        for one in self.deployed:
            deployment = RunnerDeployment.from_flow(
                one.flow,
                name=one.name,
                schedule=one.schedule,
                parameters=one.parameters,
                description=one.flow.description,
                tags=list(one.tags),
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
            apply: Any = deployment.apply
            id = apply(_sync=True)
            yield id, one

    def _create_at_start(self, client: SyncPrefectClient, known: dict[UUID, Deployed]) -> None:
        """One run each, also when the answer was lost and this is done again."""
        for id, one in known.items():
            if one.at_start:
                key = f"start-{os.getpid()}-{self._started}-{id}"
                client.create_flow_run_from_deployment(id, tags=[*one.tags, "at-start"], idempotency_key=key)

    def _take_up(self, client: SyncPrefectClient, known: dict[UUID, Deployed]) -> None:
        """The runs that were cut off: nobody else executes them, so they are executed again, or closed.

        By the device's end, or by Prefect's: it may have taken a run's new state, and not been able to answer.
        """
        in_hand = {lane.run.id for lane in self._lanes.values() if lane.run}
        cut_off = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[*known, *self._former]),
            state=FlowRunFilterState(
                type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
            ),
        )
        for run in client.read_flow_runs(flow_run_filter=cut_off):
            assert run.state is not None
            if run.id in in_hand:
                continue
            self._taken_up[run.id] += 1
            tries = max(run.run_count, self._taken_up[run.id] - 1)
            one = known.get(run.deployment_id) if run.deployment_id else None
            if run.state.type is StateType.CANCELLING:
                state: Any = Cancelled(message="it was cut off")
            elif one is None or not (one.again or self._is_wanted(run, one)):
                state = Crashed(message="it was cut off; the session's run and the history say how the device went on")
            elif tries > LOST_TRIES:
                state = Crashed(message=f"it was cut off {tries} times")
            else:
                state = Scheduled(name="AwaitingRetry", message="it was cut off, and is begun again")
            client.set_flow_run_state(run.id, state, force=True)

    def _is_wanted(self, run: FlowRun, one: Deployed) -> bool:
        """Whether it has not begun, and nobody has found another way meanwhile, as pressing the button again."""
        taken = self._taken.get(run.id)  # not by an earlier process: it may have begun it
        if taken is None or run.run_count or time.monotonic() - taken > WANTED_SECONDS:
            return False
        return self._began.get(one.flow.name, taken) <= taken

    def _look(self, client: SyncPrefectClient) -> bool:
        """Execute what is due, the oldest first; of several polls that a schedule asked for, only the last.

        Whether a lane has become free: another look is worth it.
        """
        over = [lane for lane in self._lanes.values() if lane.run and lane.is_over]
        now = datetime.now(UTC)
        deployments = [*self.known, *([self.sessions] if self.sessions else [])]
        due = client.get_scheduled_flow_runs_for_deployments(deployments, scheduled_before=now)
        runs = [self._read(client, response) for response in due]
        for run in [run for run in runs if run.deployment_id == self.sessions]:
            self._put_back(client, run)
            runs.remove(run)
        # What was begun before is none of these: it was resumed, and brings the user's answer.
        late = [run for run in runs if run.auto_scheduled and not run.run_count]
        last = {run.deployment_id: run.id for run in late}
        for run in runs:
            if self._ended.is_set():
                break
            if run in late and last[run.deployment_id] != run.id:
                self._cancel(client, run, "the next one was due before this one could begin")
            elif self._begins(run) <= now:
                self._hand_over(client, run)
        for lane in over:
            lane.run = None
        return bool(over)

    def _hand_over(self, client: SyncPrefectClient, run: FlowRun) -> None:
        """Have the run executed if its lane is free. What waits stays with Prefect: there it can be cancelled."""
        assert run.deployment_id is not None
        one = self.known[run.deployment_id]
        lane = self._lanes[one.lane]
        if lane.run is None:
            self._taken[run.id] = time.monotonic()
            if self._take(client, run):
                del self._taken[run.id]
                self._began[one.flow.name] = time.monotonic()
                lane.begin(run, one, partial(self._execute, one.flow), self._context.copy())
            else:
                self._check_at = 0.0  # it was cancelled meanwhile, or was taken, and the answer lost
        elif one.once and lane.one is one:
            self._cancel(client, run, "another one was going on")

    def _cancel(self, client: SyncPrefectClient, run: FlowRun, why: str) -> None:
        state: Any = Cancelled(message=why)
        client.set_flow_run_state(run.id, state, force=True)

    def _read(self, client: SyncPrefectClient, response: Any) -> FlowRun:
        return client.read_flow_run(response.id) if not isinstance(response, FlowRun) else response

    def _put_back(self, client: SyncPrefectClient, run: FlowRun) -> None:
        """Retry was pressed on a session that is over, or Run on the sessions' deployment: neither means anything."""
        ends = [state for state in client.read_flow_run_states(run.id) if state.is_final()]
        state: Any = Cancelled(message="a session is begun by *update* or *install a file*, not here")
        if ends:
            end = max(ends, key=lambda one: one.timestamp)
            state = State(type=end.type, name=end.name, message=end.message)
        client.set_flow_run_state(run.id, state, force=True)

    def _begins(self, run: FlowRun) -> datetime:
        """When it begins: a scheduled one at a moment of its own, so that not all devices come at once."""
        at = run.expected_start_time or datetime.now(UTC)
        if not run.auto_scheduled or run.run_count or run.deployment_id not in self.known:
            return at
        return at + self.known[run.deployment_id].jitter * random.Random(run.id.int).random()

    def _take(self, client: SyncPrefectClient, run: FlowRun) -> bool:
        """Whether it is still to be executed: it may have been cancelled meanwhile."""
        pending: Any = Pending()
        return client.set_flow_run_state(run.id, pending).status == "ACCEPT"

    def _execute(self, flow: Flow[..., Any], run: FlowRun) -> None:
        try:
            result: Any = run_flow(flow, flow_run=run, parameters=run.parameters, return_type="state")
            if asyncio.iscoroutine(result):
                asyncio.run(result)
        except (Pause, Abort) as error:
            log.info("%s: %s", run.name, error)
        except Exception as error:
            log.warning("the run %s failed: %s", run.name, error)
