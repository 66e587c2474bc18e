"""CurrentStatus/events: several watchers, heartbeats, those who leave, and those who do not read."""

import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import httpx
import pytest

from otaflow.api import events
from otaflow.client import Client
from otaflow.errors import Offline
from otaflow.ucm.states import State

WAY = [State.PROCESSING, State.READY, State.ACTIVATING, State.VERIFYING, State.ACTIVATED, State.CLEANING_UP, State.IDLE]
SECONDS = 120.0


def wait_until(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def count(server: Any) -> int:
    watchers: int = server.app.state.interface.watchers.count
    return watchers


class Watcher:
    """A plain HTTP client of the stream, in a thread: the lines that it got."""

    def __init__(self, server: Any, query: str = "") -> None:
        self.lines: queue.Queue[str] = queue.Queue()
        self.http = httpx.Client(transport=httpx.HTTPTransport(uds=str(server.socket)))
        self.query = query
        self.begun = threading.Event()
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        assert self.begun.wait(SECONDS)

    def _read(self) -> None:
        with self.http.stream("GET", f"http://ucm/ucm/CurrentStatus/events{self.query}", timeout=SECONDS) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            self.begun.set()
            for line in answer.iter_lines():
                self.lines.put(line)

    def next(self) -> dict[str, Any]:
        while not (line := self.lines.get(timeout=SECONDS)).startswith("data: "):
            pass
        value = json.loads(line.removeprefix("data: "))
        assert isinstance(value, dict)
        return value


@pytest.fixture
def watch(server: Any) -> Iterator[Any]:
    watchers: list[Watcher] = []

    def start(query: str = "") -> Watcher:
        watchers.append(Watcher(server, query))
        return watchers[-1]

    yield start
    server.stop()
    for watcher in watchers:
        watcher.thread.join()
        watcher.http.close()


def test_every_watcher_gets_every_change(watch: Any, stub: Any) -> None:
    watchers = [watch() for _ in range(8)]
    for state in WAY:
        stub.go(state)
    for watcher in watchers:
        assert [watcher.next()["status"] for _ in WAY] == WAY
    assert len(stub.feeds) == 1


def test_an_event_is_the_same_object_as_the_field(watch: Any, client: Client, stub: Any) -> None:
    watcher = watch()
    stub.go(State.READY)
    assert watcher.next() == client.current_status() == {"status": "Ready", "session": "session-1"}


def test_the_present_status_comes_first_where_it_is_asked_for(watch: Any, stub: Any) -> None:
    watchers = [watch("?current=true")]
    assert watchers[0].next()["status"] == "Idle"
    stub.go(State.PROCESSING)
    assert watchers[0].next()["status"] == "Processing"
    watchers.append(watch("?current=true"))
    assert watchers[1].next()["status"] == "Processing"


def test_heartbeats(serve: Any, stub: Any) -> None:
    server = serve()
    server.app.state.interface.watchers.heartbeat = 0.05
    watcher = Watcher(server)
    lines = [watcher.lines.get(timeout=SECONDS) for _ in range(6)]
    assert lines == [": watching", "", ": still there", "", ": still there", ""]
    server.stop()
    watcher.thread.join()


def test_a_watcher_that_leaves_is_dropped(server: Any, stub: Any) -> None:
    clients = [Client(socket=server.socket) for _ in range(3)]
    streams = [client.watch() for client in clients]
    assert [next(stream)["status"] for stream in streams] == ["Idle"] * 3
    assert count(server) == 3
    for stream, client in zip(streams, clients, strict=True):
        stream.close()  # type: ignore[attr-defined]
        client.close()
    wait_until(lambda: count(server) == 0)
    wait_until(lambda: stub.feeds == [])
    with Client(socket=server.socket) as client:
        again = client.watch()
        assert next(again)["status"] == "Idle"
        stub.go(State.PROCESSING)
        assert next(again)["status"] == "Processing"


def test_one_that_does_not_read_is_dropped_and_holds_nobody_up(
    server: Any, watch: Any, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUEUE", 8)
    reader = watch()
    with socket.socket(socket.AF_UNIX) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        lazy.connect(str(server.socket))
        lazy.sendall(b"GET /ucm/CurrentStatus/events HTTP/1.1\r\nHost: ucm\r\n\r\n")
        wait_until(lambda: count(server) == 2)
        told = 0
        while count(server) == 2:
            assert told < 200_000
            stub.go(WAY[told % len(WAY)])
            assert reader.next()["status"] == WAY[told % len(WAY)]
            told += 1
        assert count(server) == 1


def test_watch_ends_when_the_agent_stops(serve: Any, stub: Any) -> None:
    server = serve()
    with Client(socket=server.socket) as client, ThreadPoolExecutor() as pool:
        seen: list[str] = []
        watching = pool.submit(lambda: seen.extend(status["status"] for status in client.watch()))
        wait_until(lambda: stub.feeds)
        wait_until(lambda: count(server) == 1)
        stub.go(State.PROCESSING)
        wait_until(lambda: len(seen) == 2)
        server.stop()
        watching.result()
        assert seen == ["Idle", "Processing"]
        with pytest.raises(Offline, match="cannot ask"):
            next(client.watch())


def test_watch_goes_on_after_a_restart(serve: Any, stub: Any) -> None:
    server = serve()
    with Client(socket=server.socket) as client:
        stream = client.watch(reconnect=True)
        assert next(stream)["status"] == "Idle"
        server.stop()
        stub.state = State.READY
        again = serve()
        assert next(stream)["status"] == "Ready"
        stub.go(State.ACTIVATING)
        stub.go(State.VERIFYING)
        assert [status["status"] for status in islice(stream, 2)] == ["Activating", "Verifying"]
        again.stop()
