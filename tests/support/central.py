"""A central Prefect server on PostgreSQL, and devices that it operates: each with an agent and a process worker."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from postgres import ADMIN, run_cluster

from otaflow.cli.demo_site import Site, free_port, prefect_environment
from otaflow.config import load
from otaflow.platform.device import Device

ROOT = Path(__file__).parents[2]
SECONDS = 180.0
PROGRAM = [sys.executable, "-c", "from otaflow.cli import main; main()"]


class Program:
    """A program that runs beside the test and dies with it, its output in `NAME.log`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, args: list[str], environment: dict[str, str]) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *args],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        """End it; its exit status."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        status = self.process.wait()
        self.process = None
        return status

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A server with a database for Prefect, for the block; yields the URL of the database."""
    port = free_port()
    with run_cluster(folder / "postgres.log", listen_addresses="127.0.0.1", port=port) as cluster:
        cluster.sql("CREATE DATABASE prefect")
        yield f"postgresql+asyncpg://{ADMIN}:{cluster.password}@127.0.0.1:{port}/prefect"


class Central:
    """Prefect's server on the database at `url`, with a login."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.login = f"admin:{secrets.token_hex(8)}"
        self.port = free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.server = Program("prefect", folder)
        # other tests of this process leave settings of Prefect's, such as a console that says nothing
        outer = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment = {**outer, **prefect_environment(folder)}
        for name in ("PREFECT_API_URL", "OTAFLOW_CONFIG"):
            self.environment.pop(name, None)
        self._settings = {
            "PREFECT_API_DATABASE_CONNECTION_URL": url,
            "PREFECT_SERVER_API_AUTH_STRING": self.login,
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
        }
        self.client = {**self.environment, "PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": self.login}

    def start(self) -> None:
        serve = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.server.start([sys.executable, *serve], {**self.environment, **self._settings})
        self.wait(lambda: self.ask("ready") is not None, "it is ready")

    def stop(self) -> None:
        self.server.stop()

    def call(self, *arguments: str, **environment: str) -> str:
        """Prefect's own command, without a terminal."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=ROOT,
            env={**self.client, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """The API, as its UI asks it; None while it does not answer."""
        login = b64encode(self.login.encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                content = answer.read()
                return json.loads(content) if content else {}
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            raise AssertionError(error.read().decode()) from error
        except OSError:
            return None

    def wait(self, what: Callable[[], Any], why: str) -> Any:
        """Until `what` is true; returns it."""
        end = time.monotonic() + SECONDS
        while not (found := what()):
            if time.monotonic() > end:
                logs = "\n\n".join(f"{log.name}:\n{log.read_text()[-9000:]}" for log in self.folder.glob("**/*.log"))
                raise AssertionError(f"it never came to be that {why}\n{self._tell_runs()}\n{logs}")
            time.sleep(0.2)
        return found

    def _tell_runs(self) -> str:
        runs = self.ask("flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC"}) or []
        words = ("name", "state", "auto_scheduled", "run_count", "expected_start_time")
        return "\n".join(str({word: run[word] for word in words}) for run in runs)


class Served:
    """A device that the server operates."""

    def __init__(self, central: Central, name: str, of: Site | None = None) -> None:
        """`of`: the repository is that of this site."""
        self.central, self.name = central, name
        self.site = Site(central.folder / name)
        self.site.folder.mkdir()
        if of is not None:
            self.site.record["port"] = of.record["port"]
            self.site.repository.symlink_to(of.repository)
        self.agent = Program("agent", self.site.folder)
        self.worker = Program("worker", self.site.folder)

    def make(self) -> None:
        """The device of directories, with its name and its deployments."""
        self.site.make_storage("a test")
        self.site.make_device()
        text = self.site.config.read_text().replace('name = "demo"', f'name = "{self.name}"')
        self.site.config.write_text(text)
        self.central.call("--no-prompt", "deploy", "--all", OTAFLOW_DEVICE=self.name, OTAFLOW_FOLDER=str(ROOT))

    def start_agent(self) -> None:
        self.agent.start([*PROGRAM, "agent", "-c", str(self.site.config)], self.central.client)
        self.central.wait(lambda: "answering on" in self.agent.said, "the agent answers")

    def start_worker(self) -> None:
        """Unless it runs."""
        if self.worker.runs():
            return
        start = ["-m", "prefect", "worker", "start", "--pool", "otaflow", "--work-queue", self.name]
        self.worker.start([sys.executable, *start], self.central.client)

    def stop(self) -> None:
        self.worker.stop()
        self.agent.stop()
        self.site.remove()

    @property
    def device(self) -> Device:
        return Device(load(self.site.config))

    @property
    def version(self) -> str:
        return self.device.running_system().version

    def command(self, *arguments: str) -> str:
        """An otaflow command on the device; what it printed."""
        done = subprocess.run(
            [*PROGRAM, *arguments, "-c", str(self.site.config)],
            env=self.central.client,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deployment(self, flow: str) -> dict[str, Any]:
        found: dict[str, Any] = self.central.ask(f"deployments/name/{flow.replace(' ', '%20')}/{self.name}")
        return found

    def start_run(self, flow: str, state: dict[str, Any] | None = None, **parameters: Any) -> str:
        """A run of the deployment, due now or with the given state; its id."""
        asked: dict[str, Any] = {"parameters": {"config": str(self.site.config), **parameters}}
        if state:
            asked["state"] = state
        run = self.central.ask(f"deployments/{self.deployment(flow)['id']}/create_flow_run", asked)
        return str(run["id"])

    def state(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = (self.central.ask(f"flow_runs/{run}") or {}).get("state") or {}
        return found

    def wait_for(self, run: str, *names: str) -> dict[str, Any]:
        """Until the run's state has one of the names, or it is over."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        def reached() -> dict[str, Any] | None:
            state = self.state(run)
            return state if state and (state["name"] in names or state["type"] in final) else None

        state: dict[str, Any] = self.central.wait(reached, f"{run} is {names}")
        assert state["name"] in names, (state, self.worker.said)
        return state

    def states(self, run: str) -> list[str]:
        """The names of the states that the run had."""
        found = self.central.ask(f"flow_run_states/?flow_run_id={run}")
        return [state["name"] for state in sorted(found, key=lambda one: str(one["timestamp"]))]

    def sessions(self) -> list[str]:
        """How each session's run ended, or its state; the oldest first."""
        query = {
            "flows": {"name": {"any_": ["update session"]}},
            "flow_runs": {"tags": {"all_": [f"device:{self.name}"]}},
            "sort": "START_TIME_ASC",
        }
        return [run["state_type"] for run in self.central.ask("flow_runs/filter", query) or []]

    def processes(self, run: str) -> list[int]:
        """The processes of the worker in which the run is executed now."""
        assert self.worker.process is not None
        found = []
        for process in psutil.Process(self.worker.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if run in process.environ().values():
                    found.append(process.pid)
        return found
