"""A Prefect server that answers nobody, or cannot write, holds no update up; it is told when it goes on."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED, temporary_settings
from update_world import STORIES, World

from otaflow.config import parse
from otaflow.flows import clients, session
from otaflow.flows.drain import drain_prefect
from otaflow.flows.phase import phase
from otaflow.flows.session import PrefectRuns
from otaflow.platform.device import Device, using

SECONDS = 120.0
INSTALL = """
import json, os, signal, sys
from pathlib import Path
import otaflow.flows.session as session
from otaflow import progress
from otaflow.action import Action
from otaflow.flows.drain import drain_prefect
from otaflow.work import load_device, working
session.PATIENCE_SECONDS, session.FLUSH_SECONDS = 0.5, 0.5
job = json.loads(sys.argv[1])
def stop(event):
    if [event.kind, event.name] == ["step", job["step"]] and job["stop"]:
        os.kill(job["stop"], signal.SIGSTOP)
with progress.listening(stop), working(load_device(Path(job["config"]))) as (ucm, _):
    ucm.install(*[Action(**action) for action in job["actions"]])
drain_prefect()
"""


@phase("count", reverts=False)
def count() -> int:
    """A phase without a step."""
    return 3


@pytest.fixture
def kind() -> str:
    """Prefect does not know on what the slots are."""
    return "directories"


@pytest.fixture
def server(start_server: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server of the test's own, which goes on at its end."""
    monkeypatch.setattr(clients, "FIRST_SECONDS", SECONDS)
    found = start_server()
    drain_prefect()
    with temporary_settings({PREFECT_API_URL: found.url, PREFECT_SERVER_EPHEMERAL_ENABLED: False}):
        yield found
        os.kill(found.process.pid, signal.SIGCONT)
        drain_prefect()


def wait_until_told(runs: PrefectRuns) -> None:
    end = time.monotonic() + SECONDS
    while runs.behind() or runs._asking.is_alive():
        assert time.monotonic() < end
        time.sleep(0.01)


def states_of(run: UUID) -> list[str]:
    with get_client(sync_client=True) as client:
        found = sorted(client.read_flow_run_states(run), key=lambda state: state.timestamp)
        return [str(state.name) for state in found]


def test_a_phase_waits_once_and_not_for_long(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(parse({"device": {"name": "d", "model": "m", "root": "device"}}, tmp_path / "otaflow.toml"))
    device.nvm.mkdir(parents=True)
    monkeypatch.setattr(session, "PATIENCE_SECONDS", SECONDS)
    with using(device):
        runs = PrefectRuns(device)
        assert runs.run(count, {}) == 3
        wait_until_told(runs)
        os.kill(server.process.pid, signal.SIGSTOP)
        monkeypatch.setattr(session, "PATIENCE_SECONDS", 5)
        assert runs.run(count, {}) == 3
        asking = runs._asking
        assert asking.is_alive()
        monkeypatch.setattr(session, "PATIENCE_SECONDS", threading.TIMEOUT_MAX)  # nor is it asked a second time
        assert runs.run(count, {}) == 3
        assert runs._asking is asking
        os.kill(server.process.pid, signal.SIGCONT)
        asking.join(SECONDS)
        wait_until_told(runs)
        assert runs.run(count, {}) == 3
        wait_until_told(runs)
        runs.close()
    with get_client(sync_client=True) as client:
        found = sorted((run.created, str(run.state_name)) for run in client.read_flow_runs())
    # that of the second one, which nobody waited for, is closed; the third one has none
    assert [name for _, name in found] == ["Completed", "Crashed", "Completed"]
    assert list(device.journal.phase_runs) == []


@pytest.mark.parametrize(
    "how", ["before it begins", "in the middle of a phase", "somebody else has the server's database locked"]
)
def test_an_update_goes_on_to_its_end(world: World, server: Any, how: str) -> None:
    """It goes its whole way while the server stands still; what the server missed is told afterwards."""
    stop = server.process.pid if how == "in the middle of a phase" else 0
    if how == "before it begins":
        os.kill(server.process.pid, signal.SIGSTOP)
    actions = [action.record() for action in [STORIES["good"](world)]]
    job = {"config": str(world.config), "actions": actions, "step": "copy active slot", "stop": stop}
    environment = {**os.environ, "PREFECT_HOME": str(world.folder), "PREFECT_API_URL": server.url}

    def install(job: dict[str, Any]) -> None:
        subprocess.run([sys.executable, "-c", INSTALL, json.dumps(job)], env=environment, timeout=300, check=True)

    with closing(sqlite3.connect(server.home / "prefect.db", isolation_level=None)) as database:
        if "locked" in how:
            database.execute("PRAGMA busy_timeout = 60000")
            database.execute("BEGIN IMMEDIATE")
        install(job)
        assert world.resolutions()[1:] == [("1.2.0", "kActivated")]
        assert world.device().journal.session.behind
    os.kill(server.process.pid, signal.SIGCONT)
    with using(world.device()) as device:
        runs = PrefectRuns(device)
        runs.catch_up()
        end = time.monotonic() + SECONDS
        while runs.behind():
            assert time.monotonic() < end
            runs.catch_up()
            time.sleep(0.1)
        runs.close()
    run = UUID(world.device().journal.session.notes["run"])
    assert states_of(run)[-2:] == ["Cleaning-Up", "Idle"]
