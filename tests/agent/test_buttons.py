"""Prefect's own buttons on the session's page, on a real server: each is an event, or is put back."""

import signal
from itertools import groupby
from typing import Any

import pytest
from agent_rig import Signed, in_thread
from prefect_ui import SECONDS, Api, show_update
from update_world import World

from otaflow.errors import ProcessSwPackageCancelled


def make_ready(agents: Any, world: World, signed: Signed, api: Api) -> Any:
    """An agent that has processed a package, and Prefect knows of it."""
    agent = agents.start(world, **api.environment)
    agent.client.process_sw_package(agent.client.transfer(signed.path("good")))
    api.wait_for(world, "Ready", "PAUSED")
    return agent


def test_resume_and_resume(named: World, signed: Signed, agents: Any, api: Api) -> None:
    """Resume on Ready activates, on Activated finishes: a whole update by two buttons."""
    agent = make_ready(agents, named, signed, api)
    api.resume(named)
    agent.wait_for("Activated")
    api.wait_for(named, "Activated", "PAUSED")
    api.resume(named)
    agent.wait_for("Idle")
    api.wait_for(named, "Idle", "COMPLETED")
    wanted = ["Processing", "Ready", "Activating", "Verifying", "Activated", "Cleaning-Up", "Idle"]
    assert [name for name in api.states(named) if name != "Running"] == wanted
    assert agent.client.get_sw_cluster_info()[0]["version"] == "1.2.0"
    assert agent.kill(signal.SIGTERM) == 0


def test_cancel_in_each_state(named: World, signed: Signed, agents: Any, api: Api) -> None:
    """Cancel means Cancel, Revert or Rollback, as the state has it."""
    agent = agents.start(named, **api.environment)
    client = agent.client

    id = client.transfer(signed.path("slow"))
    processed = in_thread(agent.client.process_sw_package, id)
    api.wait_for(named, "Processing", "RUNNING")
    api.cancel(named)
    assert isinstance(processed.exception(SECONDS), ProcessSwPackageCancelled)
    api.wait_for(named, "Idle", "CANCELLED")

    id = client.transfer(signed.path("hanging"))
    client.process_sw_package(id)
    api.wait_for(named, "Ready", "PAUSED")
    api.cancel(named)
    agent.wait_for("Idle")
    api.wait_for(named, "Idle", "CANCELLED")

    client.process_sw_package(id)
    client.activate()
    api.wait_for(named, "Verifying", "RUNNING")
    api.cancel(named)
    agent.wait_for("Rolled-back")
    api.wait_for(named, "Rolled-back", "PAUSED")
    api.resume(named)
    agent.wait_for("Idle")
    api.wait_for(named, "Idle", "FAILED")

    good = client.transfer(signed.path("good"))
    client.process_sw_package(good)
    client.activate()
    agent.wait_for("Activated")
    api.wait_for(named, "Activated", "PAUSED")
    api.cancel(named)
    agent.wait_for("Rolled-back")
    client.finish()
    api.wait_for(named, "Idle", "FAILED")
    assert len(api.runs(named)) == 4
    assert agent.kill(signal.SIGTERM) == 0


def test_what_the_table_forbids_is_put_back(named: World, signed: Signed, agents: Any, api: Api) -> None:
    agent = agents.start(named, **api.environment)
    client = agent.client
    client.process_sw_package(client.transfer(signed.path("hanging")))
    client.activate()
    api.wait_for(named, "Verifying", "RUNNING")
    api.press(named, "PAUSED", "Paused")
    api.wait_for_line(named, "means nothing while the update manager is Verifying")
    api.wait_for(named, "Verifying", "RUNNING")
    client.rollback()
    api.wait_for(named, "Rolled-back", "PAUSED")
    api.cancel(named)
    api.wait_for_line(named, "Cancel means nothing while the update manager is Rolled-back")
    api.wait_for(named, "Rolled-back", "PAUSED")
    assert agent.wait_for("Rolled-back")
    client.finish()

    client.process_sw_package(client.transfer(signed.path("good")))
    api.wait_for(named, "Ready", "PAUSED")
    api.press(named, "FAILED", "Failed")
    api.wait_for_line(named, "Failed means nothing while the update manager is Ready")
    api.wait_for(named, "Ready", "PAUSED")
    assert agent.wait_for("Ready")
    assert agent.kill(signal.SIGTERM) == 0


@pytest.mark.parametrize("state", ["Processing", "Verifying", "Activated"])
def test_killed_with_prefect(named: World, signed: Signed, agents: Any, api: Api, state: str) -> None:
    """After a kill the next agent brings the runs up to date: no run stays Running for ever."""
    agent = agents.start(named, **api.environment)
    kind = {"Processing": "slow", "Verifying": "hanging", "Activated": "good"}[state]
    id = agent.client.transfer(signed.path(kind))
    if state == "Processing":
        in_thread(agent.client.process_sw_package, id)
    else:
        agent.client.process_sw_package(id)
        agent.client.activate()
    agent.wait_for(state)
    api.wait_for(named, state, "PAUSED" if state == "Activated" else "RUNNING")
    agent.kill()
    agent = agents.start(named, **api.environment)
    if state == "Processing":
        agent.wait_for("Idle")
    else:
        agent.wait_for(state)
        agent.client.rollback()
        agent.client.finish()
    api.wait_for(named, "Idle", "CANCELLED" if state == "Processing" else "FAILED")
    assert agent.kill(signal.SIGTERM) == 0
    api.wait_until_none_runs(named)


def test_what_prefect_lost_in_a_power_cut_is_no_button(named: World, signed: Signed, agents: Any, api: Api) -> None:
    """Its database may lose its last commits: a run that is in an earlier state again was not resumed by anybody."""
    agent = make_ready(agents, named, signed, api)
    client = agent.client
    api.lose(api.runs(named)[-1]["id"], "Processing")
    api.wait_for(named, "Ready", "PAUSED")
    assert agent.wait_for("Ready")
    client.activate()
    api.wait_for(named, "Activated", "PAUSED")
    assert agent.kill(signal.SIGTERM) == 0
    api.lose(api.runs(named)[-1]["id"], "Activating")
    agent = agents.start(named, **api.environment)
    api.wait_for(named, "Activated", "PAUSED")
    assert agent.wait_for("Activated")
    states = api.states(named)
    assert [states.count(name) for name in ("Ready", "Verifying", "Activated")] == [1, 1, 1]
    agent.client.finish()
    api.wait_for(named, "Idle", "COMPLETED")
    assert agent.kill(signal.SIGTERM) == 0


def test_the_end_that_prefect_lost_is_told_again(named: World, signed: Signed, agents: Any, api: Api) -> None:
    """Left as it is, the session and its last phase would be seen as running for ever."""
    agent = agents.start(named, **api.environment)
    show_update(agent, api, signed.path("good"))
    assert agent.kill(signal.SIGTERM) == 0
    api.wait_until_none_runs(named)
    api.lose(api.runs(named)[-1]["id"], "Cleaning-Up")
    phase = api.phases(named)[-1]["id"]
    api.lose(phase, "Running")
    agent = agents.start(named, **api.environment)
    api.wait_for(named, "Idle", "COMPLETED")
    api.wait_until_none_runs(named)
    assert api.phases(named)[-1]["id"] == phase
    assert api.phases(named)[-1]["state"]["name"] == "Crashed"
    assert agent.kill(signal.SIGTERM) == 0


def test_a_button_that_prefect_has_again_is_not_pressed_again(
    named: World, signed: Signed, agents: Any, api: Api
) -> None:
    """Its database may end with what Resume made on Ready: that does not finish what is Activated by now."""
    agent = make_ready(agents, named, signed, api)
    api.resume(named)
    agent.wait_for("Activated")
    api.wait_for(named, "Activated", "PAUSED")
    assert agent.kill(signal.SIGTERM) == 0
    told = ["Processing", "Ready", "Running", "Activating", "Verifying", "Activated"]
    assert [name for name, _ in groupby(api.states(named))] == told
    api.lose(api.runs(named)[-1]["id"], "Running")
    agent = agents.start(named, **api.environment)
    api.wait_for(named, "Activated", "PAUSED")
    assert agent.wait_for("Activated")
    assert [name for name, _ in groupby(api.states(named))] == told
    api.resume(named)  # a button that is pressed now is one
    api.wait_for(named, "Idle", "COMPLETED")
    assert agent.kill(signal.SIGTERM) == 0


def test_a_button_after_the_clock_was_set_back(named: World, signed: Signed, agents: Any, api: Api) -> None:
    """By their times the first states come after the last ones: that is nothing that Prefect has lost."""
    agent = make_ready(agents, named, signed, api)
    api.set_clock_back(api.runs(named)[-1]["id"])
    agent.client.activate()
    api.wait_for(named, "Activated", "PAUSED")
    api.resume(named)
    api.wait_for(named, "Idle", "COMPLETED")
    assert api.states(named).count("Verifying") == 1
    assert agent.kill(signal.SIGTERM) == 0


def test_a_button_that_was_pressed_while_the_agent_was_away(
    named: World, signed: Signed, agents: Any, api: Api
) -> None:
    agent = make_ready(agents, named, signed, api)
    assert agent.kill(signal.SIGTERM) == 0
    api.resume(named)
    agent = agents.start(named, **api.environment)
    api.wait_for(named, "Activated", "PAUSED")
    assert agent.kill(signal.SIGTERM) == 0


def test_the_end_of_a_former_session_that_prefect_lost(named: World, signed: Signed, agents: Any, api: Api) -> None:
    """The history has it. A run that only has the same device's name is left alone."""
    agent = agents.start(named, **api.environment)
    client = agent.client
    show_update(agent, api, signed.path("good"))
    client.go_back("previous-slot")
    api.wait_for(named, "Ready", "PAUSED")
    client.revert_processed_sw_packages()
    api.wait_for(named, "Idle", "CANCELLED")
    assert agent.kill(signal.SIGTERM) == 0
    first, last = (run["id"] for run in api.runs(named))
    api.lose(first, "Cleaning-Up")
    other = api.copy_run(first, {"otaflow.session": "another"})
    agent = agents.start(named, **api.environment)
    api.wait_until(lambda: api.ask(f"flow_runs/{first}")["state"]["type"] == "COMPLETED", "the first one is open")
    state = api.ask(f"flow_runs/{first}")["state"]
    assert state["name"] == "Idle"
    assert "kActivated" in state["message"]
    assert agent.kill(signal.SIGTERM) == 0
    assert api.ask(f"flow_runs/{last}")["state"]["type"] == "CANCELLED"
    assert api.ask(f"flow_runs/{other}")["state"]["type"] == "RUNNING"


def test_the_place_of_the_phases_that_prefect_lost(named: World, signed: Signed, agents: Any, api: Api) -> None:
    agent = make_ready(agents, named, signed, api)
    client = agent.client
    client.revert_processed_sw_packages()
    api.wait_for(named, "Idle", "CANCELLED")
    client.process_sw_package(client.transfer(signed.path("good")))
    api.wait_for(named, "Ready", "PAUSED")
    place = api.phases(named)[-1]["parent_task_run_id"]
    api.ask(f"task_runs/{place}", method="DELETE")
    client.activate()
    api.wait_for(named, "Activated", "PAUSED")
    client.finish()
    api.wait_for(named, "Idle", "COMPLETED")
    names = [phase["name"].partition(": ")[2] for phase in api.phases(named)]
    assert names[-3:] == ["activate", "verify", "clean up"]
    assert agent.kill(signal.SIGTERM) == 0
