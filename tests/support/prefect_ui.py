"""Prefect's API as its UI asks it, and its server, which can be stopped and started again."""

import json
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from update_world import World

from otaflow.cli.demo_site import Site
from otaflow.platform.run import Server, stop
from otaflow.prefect_server import PROGRAM, server_environment

SECONDS = 180.0


class Api:
    """Prefect's API, asked as its UI asks it."""

    def __init__(self, site: Site) -> None:
        """`site` has the server."""
        url, home = f"{site.record['ui']}/api", site.folder / "client"
        self.url, self.database = url, site.folder / "prefect" / "prefect.db"
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
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    content = answer.read()
                return json.loads(content) if content else None
            except urllib.error.HTTPError as error:
                if error.code != 503:  # SQLite has one writer; who comes second asks again
                    raise
                time.sleep(0.1)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, what
            time.sleep(0.1)

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

    def states(self, world: World, session: int = -1) -> list[str]:
        """Every state name that a session's run had."""
        run = self.runs(world)[session]["id"]
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

    def wait_for_runs(self, world: World, count: int) -> None:
        """Wait until so many sessions are there to see."""
        end = time.monotonic() + SECONDS
        while len(self.runs(world)) < count:
            assert time.monotonic() < end, self.runs(world)
            time.sleep(0.1)

    def running(self, world: World) -> list[str]:
        """The runs that Prefect believes to be running."""
        runs = {"tags": {"all_": [f"device:{name_of(world)}"]}, "state": {"type": {"any_": ["RUNNING"]}}}
        return [run["name"] for run in self.ask("flow_runs/filter", {"flow_runs": runs})]

    def wait_until_none_runs(self, world: World) -> None:
        """Wait until every run is closed or rests."""
        end = time.monotonic() + SECONDS
        while running := self.running(world):
            assert time.monotonic() < end, f"{running} run for ever"
            time.sleep(0.1)

    def resume(self, world: World) -> None:
        """The button Resume."""
        self.ask(f"flow_runs/{self.runs(world)[-1]['id']}/resume", {})

    def press(self, world: World, kind: str, name: str) -> None:
        """A button that sets a state: Cancel, Pause."""
        run = self.runs(world)[-1]["id"]
        self.ask(f"flow_runs/{run}/set_state", {"state": {"type": kind, "name": name}, "force": False})

    def lose(self, run: str, name: str) -> None:
        """What Prefect's database in a power cut does: what followed the run's last state of that name was never."""
        with closing(sqlite3.connect(self.database, timeout=SECONDS)) as database, database:
            found = "SELECT id, type, name, timestamp FROM flow_run_state WHERE flow_run_id = ? AND name = ?"
            last = "ORDER BY timestamp DESC LIMIT 1"
            state = database.execute(f"{found} {last}", (run, name)).fetchone()
            columns = "state_id = ?, state_type = ?, state_name = ?, state_timestamp = ?, end_time = NULL"
            database.execute(f"UPDATE flow_run SET {columns} WHERE id = ?", (*state, run))
            later = "DELETE FROM flow_run_state WHERE flow_run_id = ? AND timestamp > ?"
            assert database.execute(later, (run, state[-1])).rowcount

    def set_clock_back(self, run: str) -> None:
        """As if an hour were said twice: what the run has been in by now was an hour later than it was."""
        later = "strftime('%Y-%m-%d %H:%M:%f', timestamp, '+1 hour')"
        with closing(sqlite3.connect(self.database, timeout=SECONDS)) as database, database:
            database.execute(f"UPDATE flow_run_state SET timestamp = {later} WHERE flow_run_id = ?", (run,))

    def phases(self, world: World) -> list[dict[str, Any]]:
        """The phases' runs of the device, the oldest first."""
        runs = {"tags": {"all_": ["otaflow", f"device:{name_of(world)}"]}, "deployment_id": {"is_null_": True}}
        found: list[dict[str, Any]] = self.ask("flow_runs/filter", {"flow_runs": runs, "sort": "START_TIME_ASC"})
        return found

    def copy_run(self, run: str, labels: dict[str, str]) -> str:
        """Another run of the same flow, with the same tags, as another device of that name would make it."""
        like = self.ask(f"flow_runs/{run}")
        state = {"type": "RUNNING", "name": "Processing"}
        same = {name: like[name] for name in ("flow_id", "deployment_id", "tags")}
        return str(self.ask("flow_runs/", {**same, "labels": labels, "state": state})["id"])

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


def show_update(agent: Any, api: Api, package: Path) -> None:
    """A whole update by a client of `agent` (an AgentProcess), which Prefect knows to its end, phases included."""
    client = agent.client
    client.process_sw_package(client.transfer(package))
    api.wait_for(agent.world, "Ready", "PAUSED")  # the agent is connected: what comes now is a run in Prefect
    client.activate()
    agent.wait_for("Activated")
    client.finish()
    api.wait_for(agent.world, "Idle", "COMPLETED")


def name_of(world: World) -> str:
    return world.device().config.device.name


def stop_server(site: Site) -> None:
    """Prefect's server goes; its database stays."""
    stop(Server(*site.record["servers"]["prefect"]))


def start_again(site: Site) -> None:
    """The same server at the same port."""
    port = site.record["ui"].rpartition(":")[2]
    site._start(
        "prefect", [*PROGRAM, port, "--no-services"], server_environment(site.folder / "prefect", site.record["ui"])
    )
    site.wait_for("prefect", f"{site.record['ui']}/api/health")


def remove_database(site: Site) -> None:
    """What a server that is stopped knew is lost."""
    for file in (site.folder / "prefect").glob("prefect.db*"):
        file.unlink()
