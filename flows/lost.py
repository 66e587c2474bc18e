"""What Prefect has lost: its SQLite database may lose its last commits in a power cut.

The session's run is then in a state that it was in before, or in one that a button made and that was answered long ago.
So the run's states are compared with what Prefect was told: what it lost is told again, and is no button.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from uuid import UUID

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
    """Looks for what Prefect has lost of one device's runs. The caller sees to it that nothing is told meanwhile."""

    def __init__(self, device: Device, telling: Telling) -> None:
        self._device, self._telling = device, telling
        self._journal, self._client = device.journal, telling.client

    def look_for_session(self) -> None:
        """A session whose run Prefect has lost is told it again, from its beginning; one that is over stays lost."""
        session = self._journal.session
        if session.notes.get("run") and (found := self._telling.find_run(session)):
            rest = {transition["to"] for transition in session.transitions[max(session.shown - 1, 0) :]}
            if found.state and found.state.name not in rest:
                self.tell_again(session, found.id)

    def tell_again(self, session: Session, run: UUID) -> bool:
        """Whether Prefect has lost something that it was told of the session: then the rest is due again.

        It has not when it knows the last two states, whatever a button made after them. (One is not enough: a session
        may be Ready twice.)
        """
        told = [str(transition["to"]) for transition in session.transitions[: session.shown]]
        states = sorted(self._client.read_flow_run_states(run), key=lambda state: state.timestamp)
        names = [str(state.name) for state in states if state.name in list(State)]
        if _last_two(names) == _last_two(told):
            return False
        places = [place for place, name in enumerate(told[:-1]) if [name] == names[-1:]]
        log.warning("Prefect has lost what followed %s: it is told again", names[-1] if names else "the beginning")
        self._journal.note(durable=False, of=session.id, shown=places[-1] + 1 if places else 0)
        return True

    def left_open(self) -> Iterator[Callable[[], None]]:
        """What closes the runs whose end Prefect was told and has lost: each is a request, or a few."""
        alone = FlowRunFilterDeploymentId(is_null_=True)  # not a session's run, and none of the deployed flows'
        for phase in self._find_open(deployment_id=alone):
            if not self._telling.is_known(str(phase.id)):
                yield partial(self._telling.close_cut_off, str(phase.id))
        ends = self._ends()
        for run in self._find_open(flow=update_session.name):
            if resolutions := ends.get(str(run.labels.get("otaflow.session"))):
                yield partial(self._close_session, run.id, resolutions)

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

    def _close_session(self, run: UUID, resolutions: list[str]) -> None:
        good = set(resolutions) == {history.ACTIVATED}
        state: RunState[None] = RunState(
            type=StateType.COMPLETED if good else StateType.FAILED,
            name=str(State.IDLE),
            message=ENDED.format(", ".join(resolutions)),
        )
        self._client.set_flow_run_state(run, state, force=True)


def _last_two(names: list[str]) -> list[str]:
    """A state that was put back is there twice, and counts once."""
    return [name for name, _ in groupby(names)][-2:]
