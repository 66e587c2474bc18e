"""What the tests of the interface share: a service that follows the transition table, served for real."""

import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from tempfile import mkdtemp
from typing import Any

import pytest
import trustme

from otaflow import errors
from otaflow.api.app import make_app
from otaflow.api.serve import Server, load_credentials
from otaflow.client import Client
from otaflow.config import Config, parse
from otaflow.ucm.states import State
from otaflow.ucm.table import TABLE

BLOCK_BYTES = 1000
TOKEN = "5f2b" * 8


class Feed:
    """A subscription of the stub."""

    def __init__(self) -> None:
        self.queue: Queue[dict[str, Any]] = Queue()

    def get(self, timeout: float) -> dict[str, Any] | None:
        try:
            return self.queue.get(timeout=timeout)
        except Empty:
            return None


class Words:
    """The stub's policy: one offer, one message; it remembers what was said."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def offers(self) -> list[dict[str, Any]]:
        offer = {"name": "system", "version": "1.1.0", "content": "c0ffee", "bytes": 10, "priority": False}
        offer |= {"kind": "system", "irreversible": False, "irreversible_data": "", "choices": ["now", "not-this-one"]}
        reasons = [{"name": "unanswered", "text": "the user has not answered yet", "until": None}]
        return [offer | {"description": "", "verdict": "ask", "reasons": reasons}]

    def consent(self, choice: str, version: str, by: str, *, name: str = "", content: str = "") -> None:
        if version not in ("", "1.1.0"):
            raise errors.OperationNotPermitted(f"cannot answer: {version} is not on offer")
        self.said.append((choice, version, by))

    def messages(self, reader: str, after: int) -> list[dict[str, Any]]:
        message = {"id": 1, "time": "2026-01-31T12:00:00.000Z", "kind": "available", "package": "system"}
        found = [message | {"version": "1.1.0", "text": "grüß Gott", "facts": {}}]
        return [one for one in found if one["id"] > after]

    def mark(self) -> object:
        return 1

    def acknowledge(self, reader: str, id: int) -> None:
        if id != 1:
            raise errors.OperationNotPermitted(f"cannot acknowledge message {id}: the newest is 1")
        self.said.append((reader, id))

    def diagnostics(self) -> dict[str, Any]:
        nobody = {"given": False, "time": None, "by": None}
        return {"consent": nobody, "waiting": 0, "report": {"format": 1, "device": {"name": "d"}, "cut": []}}

    def consent_to_diagnostics(self, *, given: bool, by: str) -> dict[str, Any]:
        self.said.append((given, by))
        return {"given": given, "time": "2026-01-31T12:00:00.000Z", "by": by, "removed": 0}


@dataclass
class Stub:
    """A `UcmService` for tests of the format: it takes the table's way, and its work is done when a test says so.

    `raises`: what the method of that name is to raise. `held`: the calls that are not answered yet.
    """

    state: State = State.IDLE
    raises: dict[str, Exception] = field(default_factory=dict)
    held: list[tuple[str, Future[None]]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, list[bytes]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    feeds: list[Feed] = field(default_factory=list)
    quota: int = 10**9
    lock: Any = field(default_factory=threading.RLock)
    policy: Words = field(default_factory=Words)

    def status(self) -> dict[str, Any]:
        return {"status": self.state, "session": None if self.state is State.IDLE else "session-1"}

    @contextmanager
    def subscribe(self) -> Iterator[Feed]:
        feed = Feed()
        self.feeds.append(feed)
        try:
            yield feed
        finally:
            self.feeds.remove(feed)

    def go(self, state: State) -> None:
        self.state = state
        for feed in list(self.feeds):
            feed.queue.put(self.status())

    def _called(self, name: str, *arguments: Any) -> None:
        self.asked.append((name, *arguments))
        if name in self.raises:
            raise self.raises[name]

    def _known(self, id: str) -> None:
        if id not in self.sizes:
            raise errors.InvalidTransferId(f"cannot find {id!r}: there is no such transfer", hint="see GetSwPackages")

    # --- transfer

    def transfer_start(self, size: int) -> tuple[str, int]:
        self._called("transfer_start", size)
        if size > self.quota:
            raise errors.InsufficientMemory("cannot start the transfer: there is no room")
        id = uuid.uuid4().hex
        self.sizes[id], self.blocks[id] = size, []
        return id, BLOCK_BYTES

    def transfer_data(self, id: str, block_counter: int, block: bytes | memoryview) -> int:
        self._called("transfer_data", id, block_counter)
        self._known(id)
        with self.lock:
            blocks = self.blocks[id]
            if id in self.ended:
                raise errors.OperationNotPermitted("cannot take a block: the transfer has ended")
            if block_counter != len(blocks) + 1:
                raise errors.IncorrectBlock(f"cannot take block {block_counter}: {len(blocks) + 1} is next")
            if not 0 < len(block) <= BLOCK_BYTES or sum(map(len, blocks)) + len(block) > self.sizes[id]:
                raise errors.IncorrectSize("cannot take the block: it is too large")
            blocks.append(bytes(block))
            return sum(map(len, blocks))

    def transfer_exit(self, id: str) -> None:
        self._called("transfer_exit", id)
        self._known(id)
        if id in self.ended:
            raise errors.OperationNotPermitted("cannot end the transfer: it has ended")
        if sum(map(len, self.blocks[id])) < self.sizes[id]:
            raise errors.InsufficientData("cannot end the transfer: bytes are missing")
        self.ended.add(id)

    def delete_transfer(self, id: str) -> None:
        self._called("delete_transfer", id)
        self._known(id)
        del self.sizes[id]

    # --- state

    def _fire(self, method: str, *arguments: Any) -> Future[None]:
        self._called(method, *arguments)
        row = TABLE[self.state, f"<{method}"]
        if row.error:
            raise getattr(errors, row.error)(f"cannot {method}: the update manager is {self.state}")
        future: Future[None] = Future()
        self.held.append((method, future))
        if row.next != (self.state,):
            self.go(row.next[0])
        return future

    def answer(self, method: str, state: State, error: Exception | None = None) -> None:
        """End the work of the call `method` that is held; the state is `state` then."""
        place = next(place for place, (name, _) in enumerate(self.held) if name == method)
        future = self.held.pop(place)[1]
        self.go(state)
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(None)

    def process(self, id: str, *, unattended: bool = False, accept_irreversible: bool = False) -> Future[None]:
        said = [word for word, here in (("unattended", unattended), ("accepted", accept_irreversible)) if here]
        return self._fire("ProcessSwPackage", id, *said)

    def go_back(self, to: str, backup: str | None, *, unattended: bool = False) -> Future[None]:
        self._called("go_back", to, backup, unattended)
        return self._fire("ProcessSwPackage")

    def uninstall(self, id: str, *, unattended: bool = False) -> Future[None]:
        self._called("uninstall", id, unattended)
        self._known(id)
        return self._fire("ProcessSwPackage", id)

    def remove(self, name: str, *, unattended: bool = False) -> Future[None]:
        self._called("remove", name, unattended)
        self._installed(name, errors.NothingToRevert)
        return self._fire("ProcessSwPackage")

    def request_update(self, name: str) -> dict[str, Any]:
        self._called("request_update", name)
        self._installed(name, errors.OperationNotPermitted)
        return {"searching": True, "offers": self.policy.offers()}

    def defer(self, name: str) -> dict[str, Any]:
        self._called("defer", name)
        self._installed(name, errors.OperationNotPermitted)
        return {"secondsLeft": 299.5, "defersLeft": 2}

    def _installed(self, name: str, kind: type[errors.UcmError]) -> None:
        if name != "notes":
            raise kind(f"cannot use {name}: it is not installed")

    def clean_up(self) -> Future[dict[str, Any]]:
        self._called("clean_up")
        if self.state is not State.IDLE:
            raise errors.OperationNotPermitted(f"cannot CleanUp: the update manager is {self.state}")
        done: Future[dict[str, Any]] = Future()
        done.set_result({"removed": ["0001-20260131T120000Z"]})
        return done

    def cancel(self, id: str) -> Future[None]:
        return self._fire("Cancel", id)

    def activate(self) -> Future[None]:
        return self._fire("Activate")

    def rollback(self) -> Future[None]:
        return self._fire("Rollback")

    def revert(self) -> Future[None]:
        return self._fire("RevertProcessedSwPackages")

    def finish(self) -> Future[None]:
        return self._fire("Finish")

    # --- reports

    def progress(self, id: str) -> int:
        self._called("progress", id)
        self._known(id)
        return 42

    def clusters(self) -> list[dict[str, Any]]:
        self._called("clusters")
        return [{"name": "system", "version": "1.0.0", "state": "kPresent"}]

    def cluster_changes(self) -> list[dict[str, Any]]:
        self._called("cluster_changes")
        return [{"name": "system", "version": "1.1.0", "state": "kUpdating"}]

    def packages(self) -> list[dict[str, Any]]:
        self._called("packages")
        return [
            {
                "id": id,
                "name": None,
                "version": None,
                "state": "kTransferred" if id in self.ended else "kTransferring",
                "consecutiveBytesReceived": sum(map(len, self.blocks[id])),
                "consecutiveBlocksReceived": len(self.blocks[id]),
            }
            for id in list(self.sizes)
        ]

    def history(self, since: str | None, until: str | None) -> list[dict[str, Any]]:
        self._called("history", since, until)
        entry = {"time": "2026-01-31T12:00:00.000Z", "name": "system", "version": "1.0.0", "action": "update"}
        return [entry | {"resolution": "kActivated"}, entry | {"resolution": "kFailed", "error": "OldVersion"}]

    def set_log_level(self, id: str, level: int) -> None:
        self._called("set_log_level", id, level)
        self._known(id)

    def log(self, id: str) -> list[dict[str, Any]]:
        self._called("log", id)
        self._known(id)
        return [{"time": "2026-01-31T12:00:00.000Z", "level": 4, "message": "grüß Gott"}]


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: the path of a Unix socket has 107 bytes at most."""
    path = Path(mkdtemp(prefix="ucm-"))
    yield path
    shutil.rmtree(path)


def make_config(folder: Path, **api: Any) -> Config:
    device = {"name": "device-1", "model": "test", "root": str(folder)}
    return parse({"device": device, "api": {name: str(value) for name, value in api.items()}}, folder / "otaflow.toml")


Serve = Callable[..., Server]


@pytest.fixture
def serve(stub: Stub, folder: Path) -> Iterator[Serve]:
    """Serve the stub: `serve(listen="127.0.0.1:0", certificate=…)`, with `[api]` as given."""
    servers = []

    def start(service: Any = stub, **api: Any) -> Server:
        config = make_config(folder, **api)
        app = make_app(service, credentials=load_credentials(config), block_size=2 * BLOCK_BYTES)
        servers.append(server := Server(app, config))
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(serve: Serve) -> Server:
    """The stub, served on a Unix socket."""
    return serve()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(socket=server.socket) as client:
        yield client


@dataclass
class Pki:
    """An authority, a server's certificate and a client's, as files; and the token."""

    ca: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]
    token_file: Path


def make_pki(folder: Path) -> Pki:
    folder.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")

    def issue(name: str, host: str) -> tuple[Path, Path]:
        leaf = authority.issue_cert(host)
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(key)
        return certificate, key

    (folder / "token").write_text(TOKEN + "\n")
    return Pki(folder / "ca.pem", issue("server", "127.0.0.1"), issue("client", "tester.example"), folder / "token")


@pytest.fixture
def pki(folder: Path) -> Pki:
    return make_pki(folder / "pki")


@pytest.fixture
def other_pki(folder: Path) -> Pki:
    """An authority that the server does not trust."""
    return make_pki(folder / "other")
