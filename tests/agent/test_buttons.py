"""Prefect's own buttons on the session's page, on a real server: each is an event, or is put back."""

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_rig import Signed, in_thread
from update_world import World

from otaflow.cli.demo_site import Site
from otaflow.errors import ProcessSwPackageCancelled

SECONDS = 60.0


class Api:
    """Prefect's API, asked as its UI asks it."""

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self.environment = {
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/{path}", data=data, headers={"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def runs(self, world: World) -> list[dict[str, Any]]:
        """The session runs of one test's device, the oldest first."""
        query = {
            "flows": {"name": {"any_": ["update session"]}},
            "flow_runs": {"tags": {"all_": [f"device:{name_of(world)}"]}},
            "sort": "START_TIME_ASC",
        }
        found: list[dict[str, Any]] = self.ask("flow_runs/filter", query)
        return found

    def state_of(self, world: World) -> tuple[str, str]:
        """Name and type of the last session's state."""
        run = self.runs(world)[-1]
        return run["state"]["name"], run["state"]["type"]

    def states(self, world: World) -> list[str]:
        """Every state name that the last session's run had."""
        run = self.runs(world)[-1]["id"]
        states = self.ask(f"flow_run_states/?flow_run_id={run}")
        return [state["name"] for state in sorted(states, key=lambda state: str(state["timestamp"]))]

    def wait_for(self, world: World, name: str, kind: str) -> None:
        """Wait until the last session is shown so."""
        end = time.monotonic() + SECONDS
        found: Any = None
        while time.monotonic() < end:
            found = self.state_of(world) if self.runs(world) else None
            if found == (name, kind):
                return
            time.sleep(0.1)
        raise AssertionError(f"Prefect shows {found}, not {(name, kind)}")

    def resume(self, world: World) -> None:
        """The button Resume."""
        self.ask(f"flow_runs/{self.runs(world)[-1]['id']}/resume", {})

    def press(self, world: World, kind: str, name: str) -> None:
        """A button that sets a state: Cancel, Pause."""
        run = self.runs(world)[-1]["id"]
        self.ask(f"flow_runs/{run}/set_state", {"state": {"type": kind, "name": name}, "force": False})

    def cancel(self, world: World) -> None:
        self.press(world, "CANCELLING", "Cancelling")

    def wait_for_line(self, world: World, words: str) -> None:
        """Wait for a line in the session's log."""
        run = self.runs(world)[-1]["id"]
        end = time.monotonic() + SECONDS
        lines: list[str] = []
        while time.monotonic() < end:
            found = self.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
            lines = [line["message"] for line in found]
            if any(words in line for line in lines):
                return
            time.sleep(0.1)
        raise AssertionError(f"no line says {words!r}: {lines}")


def name_of(world: World) -> str:
    return world.device().config.device.name


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A folder with a Prefect server."""
    site = Site(tmp_path_factory.mktemp("prefect"))
    try:
        site.wait_for("prefect", f"{site.start_prefect()}/api/health")
        yield site
    finally:
        site.remove()


@pytest.fixture(scope="module")
def api(site: Site) -> Api:
    return Api(f"{site.record['ui']}/api", site.folder / "client")


@pytest.fixture
def named(trusting: World, tmp_path: Path) -> World:
    """A device with a name of its own, so that its runs can be told from those of other tests."""
    text = trusting.config.read_text()
    trusting.config.write_text(text.replace('name = "demo"', f'name = "demo-{os.getpid()}-{time.monotonic_ns()}"', 1))
    return trusting


def test_resume_and_resume(named: World, signed: Signed, agents: Any, api: Api) -> None:
    """Resume on Ready activates, on Activated finishes: a whole update by two buttons."""
    agent = agents.start(named, **api.environment)
    agent.client.process_sw_package(agent.client.transfer(signed.path("good")))
    api.wait_for(named, "Ready", "PAUSED")
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
    query = {
        "flow_runs": {"tags": {"all_": [f"device:{name_of(named)}"]}, "state": {"type": {"any_": ["RUNNING"]}}},
    }
    assert [run["name"] for run in api.ask("flow_runs/filter", query)] == []


def test_the_api_goes_and_comes_back(named: World, signed: Signed, agents: Any, tmp_path: Path) -> None:
    """The update manager works without the API; what it missed is shown when it is back, also with a new database."""
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    try:
        url = site.start_prefect()
        api = Api(f"{url}/api", site.folder / "client")
        site.wait_for("prefect", f"{url}/api/health")
        agent = agents.start(named, **api.environment)
        client = agent.client
        client.process_sw_package(client.transfer(signed.path("good")))
        api.wait_for(named, "Ready", "PAUSED")
        stop_server(site)
        client.activate()
        agent.wait_for("Activated")
        for file in (site.folder / "prefect").glob("prefect.db*"):
            file.unlink()
        start_again(site)
        site.wait_for("prefect", f"{url}/api/health")
        client.finish()
        assert client.get_sw_cluster_info()[0]["version"] == "1.2.0"
        assert agent.wait_for("Idle")
        api.wait_for(named, "Idle", "COMPLETED")
        assert agent.kill(signal.SIGTERM) == 0
    finally:
        site.remove()


def stop_server(site: Site) -> None:
    from otaflow.platform.run import Server, stop

    stop(Server(*site.record["servers"]["prefect"]))


def start_again(site: Site) -> None:
    """The same server at the same port."""
    import sys

    from otaflow.cli.demo_site import prefect_environment

    port = site.record["ui"].rpartition(":")[2]
    serve = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port, "--no-services"]
    site._start("prefect", [sys.executable, *serve], prefect_environment(site.folder))
