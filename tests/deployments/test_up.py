"""A device that is operated through Prefect: `otaflow up` on btrfs, its schedule, the user's form, the way back."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from otaflow.cli.demo_site import Site, free_port
from otaflow.config import load
from otaflow.platform.device import Device

SECONDS = 180.0
pytestmark = pytest.mark.btrfs


class Up:
    """`otaflow up` on the site's device, as a process of its own."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.process: subprocess.Popen[bytes] | None = None
        self.port = load(site.config).prefect.port

    @property
    def device(self) -> Device:
        return Device(load(self.site.config))

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        command = [sys.executable, "-c", "from otaflow.cli import main; main()", "up", "-c", str(self.site.config)]
        with (self.site.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.wait(lambda: b"Prefect   http" in (self.site.folder / "up.log").read_bytes(), "it starts")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit status. Its Prefect server dies with it."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(SECONDS)
        self.wait(lambda: self.ask("health") is None, "the server is gone")
        (self.site.folder / "up.log").write_bytes(b"")
        return status

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """Prefect's API, with the device's login; None while it does not answer."""
        login = (self.device.nvm / "prefect" / "login").read_bytes().strip()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {b64encode(login).decode()}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer) if answer.status != 204 else {}
        except urllib.error.HTTPError as error:
            if error.code != 503:  # SQLite has one writer; who comes second asks again
                raise
            time.sleep(0.1)
            return self.ask(path, body, method)
        except OSError:
            return None

    def runs(self, flow: str, **filters: Any) -> list[dict[str, Any]]:
        body = {"flows": {"name": {"any_": [flow]}}, "flow_runs": filters, "sort": "START_TIME_ASC"}
        return self.ask("flow_runs/filter", body) or []

    def wait(self, what: Callable[[], Any], why: str) -> Any:
        end = time.monotonic() + SECONDS
        while not (found := what()):
            assert time.monotonic() < end, f"{why}: {(self.site.folder / 'up.log').read_text()[-3000:]}"
            time.sleep(0.2)
        return found

    def wait_for_run(self, flow: str, state: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = self.wait(
            lambda: [run for run in self.runs(flow) if run["state_name"] == state], f"{flow} becomes {state}"
        )
        return found[-1]

    def start_run(self, flow: str, **parameters: Any) -> str:
        deployment = self.ask(f"deployments/name/{flow.replace(' ', '%20')}/demo")
        given = {"config": str(self.site.config), **parameters}
        run = self.ask(f"deployments/{deployment['id']}/create_flow_run", {"parameters": given})
        return str(run["id"])


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    with ExitStack() as stack:
        stack.callback(site.remove)
        assert site.make_storage() == "btrfs on a loop file"
        site.make_repository(["1.1.0"])
        repository = site.start_repository()
        site.make_device()
        more = f"\n[prefect]\nport = {free_port()}\n[poll]\ninterval_minutes = 0.2\njitter_minutes = 0\n"
        site.config.write_text(site.config.read_text() + more)
        site.wait_for("repository", repository)
        up = Up(site)
        up.start()
        yield up
        if up.process and up.process.poll() is None:
            assert up.stop() == 0


def test_a_device_that_is_operated_through_prefect(up: Up) -> None:
    # the poll at the start finds an update, and waits for the user without a process
    waiting = up.wait_for_run("check", "Suspended")
    # a schedule that fires is seen firing; what waits is not announced twice
    scheduled = up.wait(
        lambda: [r for r in up.runs("check") if r["auto_scheduled"] and r["state_type"] == "COMPLETED"], "it polls"
    )
    assert {run["state_name"] for run in scheduled} == {"Waiting for the user"}
    inbox = (up.device.nvm / "policy" / "inbox").read_text()
    assert inbox.count('"kind":"available"') == 1
    # nobody without the login gets in
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{up.port}/api/flow_runs/count", data=b"{}", timeout=30)
    # the power goes; in a new process the run is resumed with the form's input
    up.stop(signal.SIGKILL)
    up.start()
    answer = {"run_input": {"when": "now", "by": "the test"}}
    up.wait(lambda: up.ask(f"flow_runs/{waiting['id']}/resume", answer), "it is resumed")
    ended = up.wait(
        lambda: [r for r in up.runs("check", id={"any_": [waiting["id"]]}) if r["state_type"] == "COMPLETED"], "it ends"
    )
    assert ended[0]["state_name"] == "Installed"
    assert up.device.running_system().version == "1.1.0"
    kinds = {
        one["key"] for one in up.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [waiting["id"]]}}})
    }
    assert {"slots-demo", "report-demo"} <= kinds
    # the way back, by hand
    back = up.start_run("roll back", way="previous slot")
    up.wait(lambda: up.ask(f"flow_runs/{back}")["state_type"] == "COMPLETED", "it goes back")
    assert up.device.running_system().version == "1.0.0"
    assert (up.device.slots.path(up.device.boot.running()) / "share" / "words").read_text() == "hello\n"
    # what a person went back from does not come again with the next poll
    up.wait(lambda: [r for r in up.runs("check") if r["state_name"] == "Not now"], "the next poll leaves it alone")
    # Prefect's server dies: it is started again, with all it knew
    record = up.device.nvm / "prefect" / "server.json"
    first = json.loads(record.read_text())["pid"]
    os.kill(first, signal.SIGKILL)
    up.wait(lambda: json.loads(record.read_text())["pid"] != first and up.ask("health"), "the server is back")
    # a report
    report = up.start_run("report")
    up.wait(lambda: up.ask(f"flow_runs/{report}")["state_type"] == "COMPLETED", "it reports")
