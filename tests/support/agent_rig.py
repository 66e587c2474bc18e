"""An agent on a device, with its interface on a Unix socket, and the means to hold its work at a chosen moment."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from update_world import FAILING, SICK, Packages, World

from otaflow import progress
from otaflow.agent.agent import Agent, Connect
from otaflow.api.app import make_app
from otaflow.api.serve import Server
from otaflow.client import Client
from otaflow.repo import admin, trust
from otaflow.repo.client import locate
from otaflow.ucm.states import State

SECONDS = 300.0
SOURCE = """
[api]
socket = "../ucm.sock"
[update]
use = "test"
[sources.test]
url = "https://127.0.0.1:9"
root = "{root}"
"""
KINDS_OF_PACKAGE: dict[str, dict[str, Any]] = {
    "good": {"version": "1.2.0", "number": 2},
    "next": {"version": "1.3.0", "number": 3},
    "sick": {"version": "1.4.0", "number": 4, "health": SICK},
    "needy": {"version": "1.5.0", "number": 5, "dependencies": [{"name": "library", "versions": ">=2.0.0"}]},
    "failing": {"version": "1.6.0", "number": 6, "program": FAILING},
    "foreign": {"version": "1.7.0", "number": 7, "applies_to": {"models": ["another"]}},
    "distant": {"version": "1.8.0", "number": 8, "applies_to": {"versions": "==1.7.0"}},
    "slow": {"version": "1.9.0", "number": 9, "program": '#!/bin/sh\necho "begun"\nexec sleep 600\n'},
    "hanging": {"version": "1.10.0", "number": 10, "health": "exec sleep 600"},
}


class Signed:
    """A repository in which every kind of package is signed."""

    def __init__(self, folder: Path, packages: Packages) -> None:
        self.folder, self.packages = folder, packages
        admin.init(folder)
        admin.publish(folder, [self.path(kind) for kind in KINDS_OF_PACKAGE])

    def path(self, kind: str) -> Path:
        """The package of that kind."""
        return self.packages.make(**KINDS_OF_PACKAGE[kind])

    def introduce(self, world: World, more: str = "") -> None:
        """Give the world's device the repository's signatures, as `otaflow check` fetched them once."""
        public = self.folder / "public" / "metadata"
        root = public / "1.root.json"
        world.configure(SOURCE.format(root=root) + more)

        def fetch(url: str, _limit: int) -> Iterator[bytes]:
            path = public / url.rpartition("/")[2]
            if not path.exists():
                from otaflow.repo.download import Missing

                raise Missing(f"cannot fetch {url}")
            yield path.read_bytes()

        config = world.device().config
        folder = config.path(config.nvm.path) / "tuf" / "test"
        trust.refresh(folder, locate(config).root.read_bytes(), "file:///", fetch)


class Holds:
    """Holds the worker where a step begins, or its undo; `reached` says that it is there."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, str], tuple[threading.Event, threading.Event]] = {}

    def hold(self, step: str, kind: str = "step") -> None:
        """Stop at the next `step` event, or at another `kind` of it (undo, done)."""
        self._at[kind, step] = (threading.Event(), threading.Event())

    def wait(self, step: str, kind: str = "step") -> None:
        """Wait until the worker stands there."""
        assert self._at[kind, step][0].wait(SECONDS), f"{step} was never reached"

    def release(self) -> None:
        """Let everything go on."""
        self._let_go({})

    def go_on_to(self, step: str, kind: str = "step") -> None:
        """Let everything go on, and stop at that event: it may come at once."""
        self._let_go({(kind, step): (threading.Event(), threading.Event())})

    def _let_go(self, then: dict[tuple[str, str], tuple[threading.Event, threading.Event]]) -> None:
        held, self._at = self._at, then
        for _, released in held.values():
            released.set()

    def __call__(self, event: progress.Event) -> None:
        held = self._at.get((event.kind, event.facts.get("step", "")))
        if held:
            held[0].set()
            held[1].wait(SECONDS)


def in_thread(call: Callable[..., Any], *arguments: Any) -> "Future[Any]":
    """The answer of a call that may take its time."""
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(call(*arguments))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


@dataclass
class Rig:
    """A running agent: `client` asks it over the socket, `agent` is looked at, `holds` stops its work."""

    world: World
    signed: Signed
    agent: Agent
    server: Server
    client: Client
    holds: Holds
    seen: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """CurrentStatus."""
        return str(self.client.current_status()["status"])

    def another_client(self) -> Client:
        return Client(self.server.socket)

    def upload(self, kind: str = "good") -> str:
        """Transfer a package; its id."""
        return self.client.transfer(self.signed.path(kind))

    def wait_for(self, *states: str) -> str:
        """Wait until the state is one of these."""
        end = time.monotonic() + SECONDS
        while (state := self.state) not in states:
            assert time.monotonic() < end, f"it is {state}, not {states}"
            time.sleep(0.01)
        return state

    def wait_until_stopped(self) -> None:
        """Wait until the work was told to stop, which is left to it."""
        end = time.monotonic() + SECONDS
        while not self.agent.device.stop_work.is_set():
            assert time.monotonic() < end, f"nobody stops the work; it is {self.state}"
            time.sleep(0.001)

    def transitions(self) -> list[tuple[str, str, str]]:
        """Every transition of the session: from, event, to."""
        return [(t["from"], t["event"], t["to"]) for t in list(self.agent.ucm.journal.session.transitions)]

    # --- ways to each state ---------------------------------------------------------------------------------------

    def process(self, kind: str = "good") -> str:
        id = self.upload(kind)
        self.client.process_sw_package(id)
        return id

    def to_activated(self, kind: str = "good") -> str:
        id = self.process(kind)
        self.client.activate()
        self.wait_for("Activated")
        return id

    def reach(self, state: State, kind: str = "good") -> tuple[str, "Future[Any] | None"]:
        """Bring the device into `state`, where it is held; the package's id, and the call that is pending."""
        s = State
        if state is s.IDLE:
            return self.upload(kind), None
        if state is s.PROCESSING:
            id = self.upload(kind)
            return id, self._held("copy_active_slot", self.another_client().process_sw_package, id)
        if state is s.READY:
            return self.process(kind), None
        if state is s.ACTIVATING:
            id = self.process(kind)
            return id, self._held("flip_slot", self.another_client().activate)
        if state is s.VERIFYING:
            id = self.process(kind)
            self.holds.hold("check_health")
            self.client.activate()
            self.holds.wait("check_health")
            return id, None
        if state is s.ROLLING_BACK_FAILED:
            raise NotImplementedError
        id = self.to_activated(kind)
        if state is s.ROLLING_BACK:
            self.holds.hold("flip_slot", "undo")
            answer = in_thread(self.another_client().rollback)
            self.holds.wait("flip_slot", "undo")
            return id, answer
        if state is s.ROLLED_BACK:
            self.client.rollback()
        if state is s.CLEANING_UP:
            return id, self._held("remove_temporary", self.another_client().finish)
        return id, None

    def _held(self, step: str, call: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        self.holds.hold(step)
        answer = in_thread(call, *arguments)
        self.holds.wait(step)
        return answer


@contextmanager
def running(world: World, signed: Signed, connect: Connect | None = None) -> Iterator[Rig]:
    """An agent in this process, on the world's device."""
    device = world.device()
    agent = Agent(device, connect)
    agent.start()
    server = Server(make_app(agent), device.config)
    holds = Holds()
    progress.subscribe(holds)
    try:
        server.start()
        with Client(server.socket) as client:
            rig = Rig(world, signed, agent, server, client, holds)
            try:
                yield rig
            finally:
                holds.release()
                device.stop_work.set()
    finally:
        holds.release()
        server.stop()
        agent.stop()
        progress.unsubscribe(holds)
