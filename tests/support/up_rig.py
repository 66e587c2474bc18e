"""`otaflow up` on a demo's device, as a process of its own, and its Prefect server as the UI asks it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from otaflow.cli.demo_site import Site, free_port
from otaflow.config import load
from otaflow.platform.device import Device

SECONDS = 180.0


class Up:
    """`otaflow up` on the site's device, as a process of its own."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.process: subprocess.Popen[bytes] | None = None
        self.port = load(site.config).prefect.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def login(self) -> str:
        """User and password, as Prefect's UI wants them."""
        return (self.device.nvm / "prefect" / "login").read_text().strip()

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
        login = b64encode(self.login.encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/{path}", data, headers, method=method)
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
            assert time.monotonic() < end, f"{why}: {self.said()}"
            time.sleep(0.2)
        return found

    def said(self) -> str:
        """The last words of the device and of its Prefect server, and the newest runs."""
        logs = (self.site.folder / "up.log", self.device.nvm / "prefect" / "server.log")
        words = [file.read_text(errors="replace")[-3000:] for file in logs if file.exists()]
        runs = self.ask("flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 30}) or []
        return "\n".join([*words, *(f"{run['name']}: {run['state']}" for run in runs)])

    def wait_for_run(self, flow: str, state: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = self.wait(
            lambda: [run for run in self.runs(flow) if run["state_name"] == state], f"{flow} becomes {state}"
        )
        return found[-1]

    def start_run(self, flow: str, **parameters: Any) -> str:
        path = f"deployments/name/{flow.replace(' ', '%20')}/demo"
        deployment = self.wait(lambda: self.ask(path), "it answers")
        # asked again, the key says that it is the same run
        given = {"parameters": {"config": str(self.site.config), **parameters}, "idempotency_key": str(uuid4())}
        run = self.wait(lambda: self.ask(f"deployments/{deployment['id']}/create_flow_run", given), "it answers")
        return str(run["id"])


@contextmanager
def operated(
    folder: Path, versions: list[str], *, later: tuple[str, ...] = (), minutes: float, more: str = ""
) -> Iterator[Up]:
    """`otaflow up` on a new btrfs device in `folder`; `versions` are published, `later` ones not.

    It polls every so many `minutes`; `more` is further configuration.
    """
    site = Site(folder)
    folder.mkdir()
    with ExitStack() as stack:
        stack.callback(site.remove)
        assert site.make_storage() == "btrfs on a loop file"
        site.make_repository(versions, later)
        repository = site.start_repository()
        site.make_device()
        more += f"\n[prefect]\nport = {free_port()}\n[poll]\ninterval_minutes = {minutes}\njitter_minutes = 0\n"
        site.config.write_text(site.config.read_text() + more)
        site.wait_for("repository", repository)
        up = Up(site)
        up.start()
        try:
            yield up
        finally:
            if up.process and up.process.poll() is None:
                assert up.stop() == 0
