"""What a person sees in Prefect: the session's states, its phases, their tasks, a failed undo; and an API that dies."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.settings import PREFECT_API_URL
from update_world import STORIES, World, differences

from otaflow.action import Action
from otaflow.tasks.step import STEPS


@pytest.fixture
def kind() -> str:
    """Prefect does not know on what the slots are."""
    return "directories"


WORK = """
import json, os, sys
from pathlib import Path
from otaflow import progress
from otaflow.action import Action
from otaflow.errors import OtaflowError
from otaflow.flows.drain import drain_prefect
from otaflow.tasks.step import STEPS
from otaflow.work import load_device, working
from otaflow.flows import clients, session
# a test is not about how fast the machine is
clients.FIRST_SECONDS = session.FLUSH_SECONDS = session.PATIENCE_SECONDS = 120
job = json.loads(sys.argv[1])
def kill(event):
    if [event.kind, event.name] == job["kill"][1:]:
        os.killpg(job["kill"][0], 9)
with progress.listening(kill), working(load_device(Path(job["config"]))) as (ucm, _):
    for step in STEPS.values():
        if step.name != "connect":
            step.limits = lambda retries=step.limits()[0]: (retries, 0)
    try:
        if job["do"]:
            getattr(ucm, job["do"])(*[Action(**action) for action in job["actions"]])
    except OtaflowError as error:
        print(type(error).__name__, error)
    finally:
        drain_prefect()
"""


def work(world: World, do: str, *actions: Action, kill: Any = (0, "", ""), url: str = "", **environment: str) -> str:
    """Do something in a process of its own, shown in Prefect as the commands show it; returns the error's text."""
    job = {"config": str(world.config), "do": do, "actions": [a.record() for a in actions], "kill": kill}
    api = {"PREFECT_HOME": str(world.folder), "PREFECT_API_URL": url or str(PREFECT_API_URL.value())}
    done = subprocess.run(
        [sys.executable, "-c", WORK, json.dumps(job)],
        env={**os.environ, **api, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def session_run(world: World) -> UUID:
    return UUID(world.device().journal.session.notes["run"])


def states_of(run: UUID) -> list[tuple[str, str]]:
    with get_client(sync_client=True) as client:
        states = sorted(client.read_flow_run_states(run), key=lambda state: state.timestamp)
        return [(state.type.value, state.name or "") for state in states]


def phases_of(run: UUID) -> list[Any]:
    parent = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
    with get_client(sync_client=True) as client:
        return sorted(client.read_flow_runs(flow_run_filter=parent), key=lambda phase: phase.created)


def tasks_of(run: UUID, expected: int) -> list[tuple[str, str]]:
    """Name and state of the tasks of a run, in order; Prefect's server hears of them as events, a moment later."""
    import time

    from prefect.client.schemas.filters import FlowRunFilterId
    from prefect.client.schemas.sorting import TaskRunSort

    only = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
    deadline = time.monotonic() + 120
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_task_runs(flow_run_filter=only, sort=TaskRunSort.EXPECTED_START_TIME_ASC)
            final = [task for task in found if task.state and task.state.is_final()]
            if len(final) >= expected or time.monotonic() > deadline:
                final.sort(key=lambda task: task.start_time)
                return [(task.name, task.state_name) for task in final]
            time.sleep(0.1)


BEGIN = [("RUNNING", "Processing")]
READY = [*BEGIN, ("PAUSED", "Ready"), ("RUNNING", "Activating"), ("RUNNING", "Verifying")]
CLEAN = ("RUNNING", "Cleaning-Up")
HISTORIES = {
    "good": [*READY, ("PAUSED", "Activated"), CLEAN, ("COMPLETED", "Idle")],
    "sick system": [*READY, ("RUNNING", "Rolling-back"), ("PAUSED", "Rolled-back"), CLEAN, ("FAILED", "Idle")],
    "failing program": [*BEGIN, ("FAILED", "Idle")],
}
PHASES = {
    "good": ["process", "activate", "verify", "clean up"],
    "sick system": ["process", "activate", "verify", "roll back", "clean up"],
    "failing program": ["process"],
}


@pytest.mark.parametrize("story", HISTORIES)
def test_the_sessions_history_is_the_ucms(world: World, prefect_api: str, story: str) -> None:
    work(world, "install", STORIES[story](world))
    run = session_run(world)
    assert states_of(run) == HISTORIES[story]
    assert [phase.name for phase in phases_of(run)] == [f"demo: {name}" for name in PHASES[story]]


def test_the_tasks_of_a_phase_are_the_steps_of_the_story(world: World, prefect_api: str) -> None:
    assert "ProcessedSoftwarePackageInconsistent" in work(world, "install", STORIES["failing program"](world))
    tasks = tasks_of(phases_of(session_run(world))[0].id, 14)
    done = "extract_package check_metadata find_active_slot copy_active_slot back_up_incremental back_up_full"
    done += " snapshot_main_partition"
    undone = "run_update_program snapshot_main_partition back_up_full back_up_incremental copy_active_slot"
    undone += " extract_package"
    expected = [(STEPS[name].title, "Completed") for name in done.split()]
    expected += [(STEPS["run_update_program"].title, "Failed")]
    expected += [(f"undo: {STEPS[name].title}", "Completed") for name in undone.split()]
    assert tasks == expected


def test_an_undo_that_fails_can_be_seen(world: World, prefect_api: str) -> None:
    before = world.picture()
    fault = {"OTAFLOW_FAULT": "undo.copy_active_slot.before:fail"}
    answer = work(world, "install", STORIES["failing program"](world), **fault)
    assert answer.startswith("UndoFailed cannot take back 'copy active slot': a fault was asked for")
    phase = phases_of(session_run(world))[0]
    assert ("undo: copy active slot", "Failed") in tasks_of(phase.id, 13)
    assert states_of(session_run(world)) == BEGIN
    work(world, "")  # whatever comes next finishes it first
    assert states_of(session_run(world))[-1] == ("CANCELLED", "Idle")
    assert differences(before, world.picture()) == {}


def test_a_killed_session_is_closed_when_prefect_is_there_again(world: World, prefect_api: str, zygote: Any) -> None:
    """A kill, and a recovery without Prefect; whoever comes next tells Prefect how it went on."""
    assert work(world, "process", world.up()) == ""
    assert zygote.run(world, "revert", fault="undo.copy_active_slot.acted:kill") == -9
    assert zygote.run(world, "recover") == 0
    assert states_of(session_run(world))[-1] == ("PAUSED", "Ready")
    work(world, "")
    assert states_of(session_run(world))[-2:] == [("RUNNING", "Cleaning-Up"), ("CANCELLED", "Idle")]


DEATHS = {
    "in a good update": ("good", "back up in full", "step"),
    "in an undo": ("failing program", "back up in full", "undo"),
}


@pytest.mark.parametrize(("story", "step", "kind_of_event"), DEATHS.values(), ids=DEATHS.keys())
def test_an_api_that_dies_stops_nothing(
    world: World, worlds: Any, story: str, step: str, kind_of_event: str, start_server: Callable[[], Any]
) -> None:
    server = start_server()
    before = world.picture()
    kill = (server.process.pid, kind_of_event, step)
    work(world, "install", STORIES[story](world), kill=kill, url=server.url, PREFECT_CLIENT_MAX_RETRIES="1")
    assert server.process.wait() == -9
    if story == "good":
        assert differences(worlds.outcome(story, world.kind), world.outcome()) == {}
        assert world.resolutions()[1:] == [("1.2.0", "kActivated")]
    else:
        assert differences(before, world.picture()) == {}
        assert world.resolutions()[1:] == [("1.2.0", "kFailed")]
