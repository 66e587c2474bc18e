"""The flow runs that wait for the user, suspended: whether they wait, go on, or have no sense any more."""

import logging
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled

from otaflow.flows.clients import expect_api
from otaflow.platform.device import Device, using
from otaflow.tasks.policy import take_pointless_runs

log = logging.getLogger("otaflow.runs")


def is_waiting(run: UUID) -> bool:
    """Whether that run is there, and has not ended: also one that was just resumed, and brings an answer."""
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run).state
        except ObjectNotFound:
            return False
    return state is not None and not state.is_final()


def resume(run: str, choice: str) -> bool:
    """Let a run that waits go on with the answer; whether it could be told. Else the next poll acts on the answer."""
    try:
        with get_client(sync_client=True) as client:
            expect_api(client)
        if not is_waiting(UUID(run)):
            return False
        with get_client(sync_client=True) as client:
            client.resume_flow_run(UUID(run), run_input={"when": choice})
    except Exception as error:
        log.warning("cannot resume the run that waits for the answer: %s; the next poll acts on it", error)
        return False
    return True


def end_waiting(device: Device) -> None:
    """End the runs that wait for an answer to what is in place now, or to what nobody offers any more."""
    with using(device):
        pointless = take_pointless_runs()
    if not pointless:
        return
    own = FlowRunContext.get()
    with get_client(sync_client=True) as client:
        for run in pointless:
            if own and own.flow_run and str(own.flow_run.id) == run:
                continue
            try:
                state = client.read_flow_run(UUID(run)).state
            except ObjectNotFound:
                continue
            if state and state.type is StateType.PAUSED:
                ended: Any = Cancelled(
                    name="Superseded", message="what it asked about is in place, or not offered any more"
                )
                client.set_flow_run_state(UUID(run), ended, force=True)
