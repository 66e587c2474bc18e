"""The deployed flows on a real Prefect server: deployed from prefect.yaml, executed as a worker does it."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otaflow.cli.demo_site import Site, prefect_environment
from otaflow.config import load
from otaflow.platform.device import Device

ROOT = Path(__file__).parents[2]
SECONDS = 180.0
WHOLE = ["Processing", "Ready", "Activating", "Verifying", "Activated", "Cleaning-Up", "Idle"]

Prefect = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A device of directories, the repository with 1.1.0 behind TLS, a Prefect server."""
    site = Site(tmp_path_factory.mktemp("deployments"))
    try:
        url = f"{site.start_prefect()}/api"
        site.make_storage("a test")
        site.make_repository(["1.1.0"])
        repository = site.start_repository()
        site.make_device()
        site.wait_for("repository", repository)
        site.wait_for("prefect", f"{url}/health")
        yield site
    finally:
        site.remove()


@pytest.fixture(scope="module")
def prefect(site: Site) -> Prefect:
    """prefect(*arguments) runs Prefect's own command against the server, without a terminal."""

    def call(*arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        environment = {
            **os.environ,
            **prefect_environment(site.folder),
            "PREFECT_API_URL": f"{site.record['ui']}/api",
            "OTAFLOW_FOLDER": str(ROOT),
            "OTAFLOW_DEVICE": "device",
        }
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return call


@pytest.fixture(scope="module")
def deployed(site: Site, prefect: Prefect) -> Site:
    """The site with all of prefect.yaml deployed, by the two commands that it names."""
    prefect("work-pool", "create", "otaflow", "--type", "process")
    prefect("--no-prompt", "deploy", "--all")
    return site


def ask(site: Site, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask the server's API."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{site.record['ui']}/api/{path}", data=data, headers={"Content-Type": "application/json"}
    )
    end = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > end:  # SQLite has one writer; who comes second asks again
                raise
            time.sleep(0.1)


def run_deployment(site: Site, prefect: Prefect, name: str, **parameters: str) -> dict[str, Any]:
    """Start a run of the deployment, execute it in a process of its own, and return it as the server has it then."""
    given = {"config": str(site.config), **parameters}
    options = [word for key, value in given.items() for word in ("-p", f"{key}={value}")]
    created = prefect("deployment", "run", name, *options).stdout
    found = re.search(r"UUID: ([0-9a-f-]{36})", created)
    assert found, created
    prefect("flow-run", "execute", found[1], check=False)
    run: dict[str, Any] = ask(site, f"flow_runs/{found[1]}")
    return run


def session_states(site: Site) -> list[list[str]]:
    """The state names of every session run, in order; the oldest session first."""
    query = {"flows": {"name": {"any_": ["update session"]}}, "sort": "START_TIME_ASC"}
    runs = ask(site, "flow_runs/filter", query)
    states = [ask(site, f"flow_run_states/?flow_run_id={run['id']}") for run in runs]
    return [[state["name"] for state in sorted(one, key=lambda s: s["timestamp"])] for one in states]


def test_update_roll_back_and_clean_up(deployed: Site, prefect: Prefect) -> None:
    """One device's way: each run does its work, and each session's states are there to see."""
    slot = deployed.device / "slots"
    updated = run_deployment(deployed, prefect, "update/device")
    assert updated["state"]["name"] == "Completed", updated["state"]["message"]
    assert Device(load(deployed.config)).running_system().version == "1.1.0"

    back = run_deployment(deployed, prefect, "roll back/device")
    assert back["state"]["name"] == "Completed", back["state"]["message"]
    assert Device(load(deployed.config)).running_system().version == "1.0.0"
    assert (slot / Device(load(deployed.config)).boot.running() / "share" / "words").read_text() == "hello\n"

    for name in ("clean up backups", "send diagnostics"):
        run = run_deployment(deployed, prefect, f"{name}/device")
        assert run["state"]["name"] == "Completed", run["state"]["message"]

    # who installs has 10 s to tell Prefect; what it did not say then, the next one says
    end = time.monotonic() + SECONDS
    while (shown := session_states(deployed)) != [WHOLE, WHOLE]:
        assert time.monotonic() < end, shown
        time.sleep(0.1)


def test_a_file_is_installed(deployed: Site, prefect: Prefect) -> None:
    file = deployed.folder / "packages" / "demo-system-1.1.0.nsu"
    run = run_deployment(deployed, prefect, "install a file/device", file=str(file))
    assert run["state"]["name"] == "Completed", run["state"]["message"]
    assert Device(load(deployed.config)).running_system().version == "1.1.0"


def test_a_way_that_is_not_whole_changes_nothing(deployed: Site, prefect: Prefect) -> None:
    before = Device(load(deployed.config)).history.read()
    run = run_deployment(deployed, prefect, "roll back/device", way="backup")
    assert run["state"]["name"] == "Failed"
    assert "which one" in run["state"]["message"]
    assert Device(load(deployed.config)).history.read() == before
