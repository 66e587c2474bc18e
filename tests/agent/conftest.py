"""What the tests of the agent share: signed packages, and an agent on a device of directories."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agent_rig import Rig, Signed, running
from prefect_ui import SECONDS, Api
from update_world import Packages, World

from otaflow.cli.demo_site import Site
from otaflow.client import Client
from otaflow.errors import Offline


@pytest.fixture(scope="session")
def signed(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Signed:
    """A repository in which every kind of package is signed."""
    return Signed(tmp_path_factory.mktemp("signed") / "repository", packages)


@pytest.fixture
def kind() -> str:
    """Directories: which storage it is makes no difference to the agent."""
    return "directories"


@pytest.fixture
def trusting(world: World, signed: Signed) -> World:
    """A device that trusts the repository."""
    signed.introduce(world)
    return world


@pytest.fixture
def rig(trusting: World, signed: Signed, quick: None) -> Iterator[Rig]:
    """An agent in this process."""
    with running(trusting, signed) as rig:
        yield rig


class Agents:
    """Starts agents as processes of their own, which may be killed (tests/support/agent_zygote.py)."""

    def __init__(self) -> None:
        script = Path(__file__).parents[1] / "support" / "agent_zygote.py"
        self.process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, world: World, fault: str = "", drain: float = 30, **environment: str) -> "AgentProcess":
        """An agent on the world's device, answering (or dead already, of its fault)."""
        config = world.device().config
        job = {
            "config": str(world.config),
            "fault": fault,
            "env": environment,
            "log": str(world.folder / "agent.log"),
            "drain": drain,
        }
        pid = self.ask({"start": job})
        agent = AgentProcess(self, pid, config.path(config.api.socket), world)
        agent.wait_until_up()
        return agent

    def ask(self, what: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@dataclass
class AgentProcess:
    """A running agent; `client` asks it."""

    agents: Agents
    pid: int
    socket: Path
    world: World
    status: int | None = None

    @property
    def client(self) -> Client:
        return Client(self.socket)

    @property
    def is_dead(self) -> bool:
        """Whether it ended (it stays a zombie until `wait`)."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    @property
    def log(self) -> str:
        return (self.world.folder / "agent.log").read_text()

    def wait_until_up(self) -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and not self.is_dead:
            try:
                self.client.current_status()
            except Offline:
                time.sleep(0.01)
            else:
                return
        assert self.is_dead, "the agent does not answer"

    def wait_for(self, *states: str) -> str:
        """Wait until the state is one of these; "dead" is one, too."""
        end = time.monotonic() + SECONDS
        while True:
            try:
                state = str(self.client.current_status()["status"])
            except Offline:
                if "dead" in states and self.is_dead:
                    return "dead"
                state = "away"
            if state in states:
                return state
            assert time.monotonic() < end, f"it is {state}, not {states}: {self.log[-3000:]}"
            time.sleep(0.01)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it; its exit status."""
        if self.status is None:
            if not self.is_dead:
                os.kill(self.pid, number)
            self.status = self.agents.ask({"wait": self.pid})
        return self.status


@pytest.fixture(scope="session")
def agents() -> Iterator[Agents]:
    """Starts agents as processes of their own."""
    agents = Agents()
    yield agents
    agents.process.communicate(timeout=120)


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
    return Api(site)


@pytest.fixture
def named(trusting: World, tmp_path: Path) -> World:
    """A device with a name of its own, so that its runs can be told from those of other tests.

    Prefect knows of its past: otherwise the first thing that it is told is a session of which the test knows nothing.
    """
    text = trusting.config.read_text()
    trusting.config.write_text(text.replace('name = "demo"', f'name = "demo-{os.getpid()}-{time.monotonic_ns()}"', 1))
    device = trusting.device()
    with device.lock:
        device.journal.note(shown=len(device.journal.session.transitions))
    return trusting
