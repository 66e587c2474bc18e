"""Polls of a central server: a moment of its own for each device, and the last of several."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import Pause
from prefect.states import Cancelled, Scheduled

WORTH = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.COMPLETED]
"""The states of a poll that will be made, or was."""


def wait_for_turn(run: str, jitter: timedelta) -> Any:
    """Let a run that a schedule asked for begin up to `jitter` later, so that not all devices come at once.

    Its process ends until then, and it holds no slot: raises Pause. Of several that are due, as after days without a
    network, only the last is worth it: of the others the state in which they end is returned. None: it is its turn.
    """
    with get_client(sync_client=True) as client:
        this = client.read_flow_run(UUID(run))
        if not this.auto_scheduled or this.run_count > 1:
            return None
        if _is_next_due(client, this):
            return Cancelled(message="the next one was due before this one could begin")
        later: Any = Scheduled(
            scheduled_time=datetime.now(UTC) + jitter * random.random(),
            message="it waits for a moment of its own, so that not all devices come at once",
        )
        client.set_flow_run_state(this.id, later, force=True)
    raise Pause(state=later)


def _is_next_due(client: SyncPrefectClient, this: FlowRun) -> bool:
    """It may have polled already: a worker takes runs that are due together in any order."""
    due = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=WORTH)),
        expected_start_time=FlowRunFilterExpectedStartTime(after_=this.expected_start_time, before_=datetime.now(UTC)),
    )
    return any(other.auto_scheduled for other in _find_others(client, this, due))


def _find_others(client: SyncPrefectClient, this: FlowRun, of: FlowRunFilter) -> list[FlowRun]:
    assert this.deployment_id is not None
    deployment = DeploymentFilter(id=DeploymentFilterId(any_=[this.deployment_id]))
    found = client.read_flow_runs(flow_run_filter=of, deployment_filter=deployment)
    return [other for other in found if other.id != this.id]
