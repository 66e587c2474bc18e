"""A Prefect server of the tests' own, started by its process id and ended by it; a device that polls."""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from poll_rig import Site
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED, temporary_settings
from update_world import World

from otaflow.flows import clients, session
from otaflow.flows.drain import drain_prefect
from otaflow.prefect_server import PROGRAM, server_environment
from otaflow.repo import admin
from otaflow.repo.certificates import make_authority

START_SECONDS = 300
PATIENCE = 120.0
"""A test is not about how fast the machine is."""


class Server:
    """Prefect's server, as otaflow starts it, with a home of its own."""

    def __init__(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.home = home
        self.url = f"http://127.0.0.1:{port}/api"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment |= {**server_environment(home, self.url.removesuffix("/api")), "PREFECT_API_URL": self.url}
        environment["PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED"] = "false"  # Scheduled is Scheduled, and never Late
        command = [*PROGRAM, str(port)]
        with (home / "log").open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Server]]:
    """start_server() starts a Prefect server; all are ended with the file: also idle ones take time and memory."""
    started: list[Server] = []

    def start() -> Server:
        started.append(Server(tmp_path_factory.mktemp("prefect")))
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="module")
def shared_server(start_server: Callable[[], Server]) -> Server:
    """One Prefect server for many tests."""
    return start_server()


@pytest.fixture
def prefect_api(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Prefect's settings lead to a server of our own."""
    for module, name in ((session, "PATIENCE"), (session, "FLUSH"), (clients, "FIRST"), (clients, "READY")):
        monkeypatch.setattr(module, f"{name}_SECONDS", PATIENCE)
    drain_prefect()  # its senders of events and logs stay with the server that they began with
    with temporary_settings({PREFECT_API_URL: shared_server.url, PREFECT_SERVER_EPHEMERAL_ENABLED: False}):
        yield shared_server.url
        drain_prefect()


@pytest.fixture
def site(world: World, tmp_path: Path, quick: None, prefect_api: str) -> Site:
    folder = tmp_path / "repository"
    admin.init(folder / "site")
    return Site(world, folder, make_authority(folder / "tls"))


@pytest.fixture
def served(site: Site) -> Iterator[Site]:
    """The repository is there, and the device asks the user."""
    with site.served() as url:
        site.configure(url)
        yield site
