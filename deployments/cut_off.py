"""Worker's runs that were cut off, by the restart that an update takes, by the power, by a kill: they are closed.

A worker closes none that it lost. Until somebody does, such a run is shown as running, and holds its deployment's slot:
the next run would wait for ever, or be cancelled. Whether a run is executed is told by the processes of this machine,
on which agent and worker are.
"""

import logging
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkQueueFilter,
    WorkQueueFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Crashed

from otaflow.flows.clients import is_api_trouble

log = logging.getLogger("otaflow.runs")

BEGINS = timedelta(minutes=10)
"""How long a worker may take from when it takes a run until the run has a process."""
PROCESSES = Path("/proc")


def close_cut_off_beside() -> None:
    """Close those of the queue of the present run, where a worker executes it; an API that is away is no trouble."""
    context = FlowRunContext.get()
    this = context.flow_run if context else None
    if this and this.work_queue_name:
        close_cut_off(this.work_queue_name, this)


def close_cut_off(queue: str, this: FlowRun | None = None) -> list[UUID]:
    """Close the runs of the work queue `queue` that nobody executes; their ids. `this` is executed here.

    Of its own deployment no other is executed: one runs at a time. Never raises what the API's absence makes.
    """
    try:
        with get_client(sync_client=True) as client:
            return _close(client, queue, this)
    except Exception as error:
        if not is_api_trouble(error):
            raise
        log.warning("cannot look for runs that were cut off: %s", error)
        return []


def find_executed(runs: Iterable[UUID], processes: Path = PROCESSES) -> set[UUID]:
    """Those of `runs` that a process of this machine executes, or may do: one of Prefect's that tells us nothing."""
    left = set(runs)
    found: set[UUID] = set()
    for folder in processes.glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if b"prefect" not in command:
                continue
            words = command + (folder / "environ").read_bytes()
        except PermissionError:
            return left | found
        except OSError:  # it has ended
            continue
        found |= {run for run in left if str(run).encode() in words}
    return found


def _close(client: SyncPrefectClient, queue: str, this: FlowRun | None) -> list[UUID]:
    going_on = FlowRunFilter(
        state=FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
        )
    )
    runs = client.read_flow_runs(
        flow_run_filter=going_on, work_queue_filter=WorkQueueFilter(name=WorkQueueFilterName(any_=[queue]))
    )
    others = [run for run in runs if this is None or run.id != this.id]
    executed = find_executed(run.id for run in others) if others else set()
    lost = [run for run in others if run.id not in executed and not _may_begin(run, this)]
    for run in lost:
        state: Any = Crashed(message="it was cut off; the session's run and the history say how the device went on")
        if run.state and run.state.type is StateType.CANCELLING:
            state = Cancelled(message="it was cut off")
        client.set_flow_run_state(run.id, state, force=True)
    return [run.id for run in lost]


def _may_begin(run: FlowRun, this: FlowRun | None) -> bool:
    """Whether a worker has just taken it."""
    if not run.state or run.state.type is not StateType.PENDING or (this and run.deployment_id == this.deployment_id):
        return False
    return abs(datetime.now(UTC) - run.state.timestamp) < BEGINS


def queue_of(device: str) -> str:
    """The work queue of the device of that name, as the deployments were made."""
    return os.environ.get("OTAFLOW_DEVICE") or device
