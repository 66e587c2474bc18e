"""Prefect's server goes, comes back, or has lost its database: the device goes on, and what was missed is shown."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_rig import Signed, in_thread
from prefect_ui import SECONDS, Api, remove_database, show_update, start_again, stop_server
from update_world import World

from otaflow.cli.demo_site import Site
from otaflow.errors import ProcessSwPackageCancelled
from otaflow.journal import now

REVERTED = ["Processing", "Ready", "Cleaning-Up", "Idle"]
FINISHED = ["Processing", "Ready", "Activating", "Verifying", "Activated", "Cleaning-Up", "Idle"]


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[Site]:
    """A Prefect server of this test's own."""
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    try:
        site.wait_for("prefect", f"{site.start_prefect()}/api/health")
        yield site
    finally:
        site.remove()


@pytest.fixture
def own_api(own_site: Site) -> Api:
    return Api(own_site)


@pytest.mark.parametrize("end", [None, signal.SIGKILL], ids=["the same agent", "another agent after a kill"])
def test_a_session_that_prefect_missed(
    named: World, signed: Signed, agents: Any, own_site: Site, own_api: Api, end: signal.Signals | None
) -> None:
    """It is shown when the API is back, also when the next session goes on; a phase that was cut off is closed."""
    agent = agents.start(named, **own_api.environment)
    slow, good = (agent.client.transfer(signed.path(kind)) for kind in ("slow", "good"))
    processed = in_thread(agent.client.process_sw_package, slow)
    own_api.wait_for(named, "Processing", "RUNNING")
    stop_server(own_site)
    agent.client.cancel(slow)
    assert isinstance(processed.exception(SECONDS), ProcessSwPackageCancelled)
    agent.client.process_sw_package(good)
    agent.client.revert_processed_sw_packages()
    if end:
        agent.kill(end)
        agent = agents.start(named, **own_api.environment)
    agent.client.process_sw_package(good)
    start_again(own_site)
    own_api.wait_for_runs(named, 3)  # the second session, too, was Ready for a moment
    own_api.wait_for(named, "Ready", "PAUSED")
    assert [own_api.states(named, session) for session in (-3, -2, -1)] == [
        ["Processing", "Idle"],
        REVERTED,
        ["Processing", "Ready"],
    ]
    assert own_api.runs(named)[-2]["state"]["type"] == "CANCELLED"
    own_api.wait_until_none_runs(named)
    agent.client.activate()
    agent.wait_for("Activated")
    agent.client.finish()
    own_api.wait_for(named, "Idle", "COMPLETED")
    assert agent.kill(signal.SIGTERM) == 0


@pytest.mark.parametrize("state", ["Processing", "Ready", "Verifying", "Activated", "Idle"])
def test_killed_and_the_database_is_gone(
    named: World, signed: Signed, agents: Any, own_site: Site, own_api: Api, state: str
) -> None:
    """The next agent goes on in the right state, its session gets a new run, and the next update is shown."""
    agent = agents.start(named, **own_api.environment)
    kind = {"Processing": "slow", "Verifying": "hanging"}.get(state, "good")
    id = agent.client.transfer(signed.path(kind))
    good = id if kind == "good" else agent.client.transfer(signed.path("good"))
    if state == "Processing":
        in_thread(agent.client.process_sw_package, id)
    else:
        agent.client.process_sw_package(id)
    if state in ("Verifying", "Activated"):
        agent.client.activate()
    if state == "Idle":
        agent.client.revert_processed_sw_packages()
    agent.wait_for(state)
    agent.kill()
    stop_server(own_site)
    remove_database(own_site)
    start_again(own_site)
    agent = agents.start(named, **own_api.environment)
    agent.wait_for("Idle" if state == "Processing" else state)
    if state == "Verifying":
        own_api.wait_for(named, "Verifying", "RUNNING")
        agent.client.rollback()
        own_api.wait_for(named, "Rolled-back", "PAUSED")
        agent.client.finish()
    if state in ("Ready", "Activated"):
        own_api.wait_for(named, state, "PAUSED")
        assert own_api.states(named) == FINISHED[: FINISHED.index(state) + 1]
    else:
        agent.client.process_sw_package(good)
    if state != "Activated":
        agent.client.activate()
        agent.wait_for("Activated")
    agent.client.finish()
    own_api.wait_for(named, "Idle", "COMPLETED")
    assert own_api.states(named) == FINISHED
    own_api.wait_until_none_runs(named)
    assert agent.client.get_sw_cluster_info()[0]["version"] == "1.2.0"
    assert agent.kill(signal.SIGTERM) == 0


def test_the_database_goes_under_a_running_agent(
    named: World, signed: Signed, agents: Any, own_site: Site, own_api: Api
) -> None:
    """A session that rests gets a new run, with its whole history, and its buttons."""
    agent = agents.start(named, **own_api.environment)
    client = agent.client
    client.process_sw_package(client.transfer(signed.path("good")))
    own_api.wait_for(named, "Ready", "PAUSED")
    stop_server(own_site)
    client.activate()
    agent.wait_for("Activated")
    remove_database(own_site)
    start_again(own_site)
    own_api.wait_for(named, "Activated", "PAUSED")
    assert own_api.states(named) == FINISHED[: FINISHED.index("Activated") + 1]
    own_api.resume(named)
    agent.wait_for("Idle")
    own_api.wait_for(named, "Idle", "COMPLETED")
    own_api.wait_until_none_runs(named)
    assert agent.kill(signal.SIGTERM) == 0


def test_it_has_lost_an_end_and_comes_later_than_the_agent(
    named: World, signed: Signed, agents: Any, own_site: Site, own_api: Api
) -> None:
    """As on a device that starts both after a power cut: nothing is due to be told, and it looks all the same."""
    agent = agents.start(named, **own_api.environment)
    show_update(agent, own_api, signed.path("good"))
    assert agent.kill(signal.SIGTERM) == 0
    own_api.wait_until_none_runs(named)
    own_api.lose(own_api.runs(named)[-1]["id"], "Cleaning-Up")
    own_api.lose(own_api.phases(named)[-1]["id"], "Running")
    stop_server(own_site)
    (named.device().nvm / "retention").write_text(f"{now()}\n")  # no phase of it that would tell the rest, too
    agent = agents.start(named, **own_api.environment)
    own_api.wait_until(lambda: "cannot tell Prefect now" in agent.log, "the agent has not tried")
    start_again(own_site)
    own_api.wait_for(named, "Idle", "COMPLETED")
    own_api.wait_until_none_runs(named)
    assert agent.kill(signal.SIGTERM) == 0
