"""What Prefect has lost: its SQLite database may lose its last commits in a power cut.

The session's run is then in a state that it was in before, or in one that a button made and that was answered long ago.
So the journal knows the id of the state that Prefect was told last: where Prefect knows it, nothing before it is lost,
and another state came after it. (Their times say nothing: a clock may be set back.)
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.objects import State as RunState

from otaflow import history
from otaflow.flows.telling import Telling, update_session
from otaflow.journal import Session
from otaflow.platform.device import Device
from otaflow.ucm.states import State

log = logging.getLogger("otaflow.runs")

OPEN = (StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING)
MOST = 50
"""So many runs that were left open are closed at a start."""
ENDED = "Prefect has lost how it ended: {}; the device's history has it"


class Lost:
    """Looks for what Prefect has lost of one device's runs; nothing is told meanwhile, but in `left_open`."""

    def __init__(self, device: Device, telling: Telling) -> None:
        self._device, self._telling = device, telling
        self._journal, self._client = device.journal, telling.client

    def look_for_session(self) -> None:
        """A session whose run Prefect has lost is told it again, from its beginning; one that is over stays lost."""
        session = self._journal.session
        if session.notes.get("run") and (run := self._telling.find_run(session)):
            self.tell_again(session, run)

    def tell_again(self, session: Session, run: FlowRun) -> bool:
        """Whether Prefect has lost something that it was told of the session: then the rest is due again."""
        last, found = session.notes.get("told"), run.state
        if not session.shown or not found or str(found.id) == last:
            return False
        states = self._client.read_flow_run_states(run.id)
        if last in [str(state.id) for state in states]:
            return False
        told = [str(transition["to"]) for transition in session.transitions[: session.shown]]
        if not last and (found.name == told[-1] or found.name not in list(State)):
            return False  # told by an otaflow that noted no ids: it is there, or looks like a button
        known = _common_beginning(told[:-1], Counter(str(state.name) for state in states))
        log.warning("Prefect has lost %s, which is told again", ", ".join(told[known:]))
        self._journal.note(durable=False, of=session.id, shown=known, told="")
        return True

    def left_open(self) -> Iterator[Callable[[], None]]:
        """What closes the runs whose end Prefect was told and has lost: each is a request, or a few."""
        alone = FlowRunFilterDeploymentId(is_null_=True)  # not a session's run, and none of the deployed flows'
        for phase in self._find_open(deployment_id=alone):
            yield partial(self._close_phase, str(phase.id))
        sessions, ends = self._find_open(flow=update_session.name), self._ends()
        for run in sessions:
            if resolutions := ends.get(str(run.labels.get("otaflow.session"))):
                yield partial(self._close_session, run, resolutions)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _ends(self) -> dict[str, list[str]]:
        """The sessions that are over and told: how their actions ended. Those that nothing came of are not known."""
        ends: dict[str, list[str]] = {}
        for record in self._device.history.mend():
            ends.setdefault(record.get("session", ""), []).append(str(record.get("resolution")))
        for session in [self._journal.session, *self._journal.untold()]:
            ends.pop(session.id, None)
        return ends

    def _find_open(self, flow: str = "", deployment_id: FlowRunFilterDeploymentId | None = None) -> list[FlowRun]:
        tags = FlowRunFilterTags(all_=["otaflow", f"device:{self._device.config.device.name}"])
        state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(OPEN)))
        return self._client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])) if flow else None,
            flow_run_filter=FlowRunFilter(tags=tags, state=state, deployment_id=deployment_id),
            limit=MOST,
        )

    def _close_phase(self, run: str) -> None:
        if not self._telling.is_known(run):
            self._telling.close_cut_off(run)

    def _close_session(self, run: FlowRun, resolutions: list[str]) -> None:
        state: RunState[None] = RunState(
            type=StateType.COMPLETED if history.ACTIVATED in resolutions else StateType.FAILED,
            name=str(State.IDLE),
            message=ENDED.format(", ".join(resolutions)),
        )
        self._client.set_flow_run_state(run.id, state, force=True)


def _common_beginning(told: list[str], known: Counter[str]) -> int:
    """How many states from the beginning on are known, each as often as it was told."""
    for place, name in enumerate(told):
        known[name] -= 1
        if known[name] < 0:
            return place
    return len(told)
