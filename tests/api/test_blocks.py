"""Large blocks: from the socket into the few buffers there are, over the Unix socket and TLS, whole in every case."""

import asyncio
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from otaflow.api import app, blocks
from otaflow.api.blocks import Buffers
from otaflow.api.serve import Server, load_credentials
from otaflow.client import Client
from otaflow.config import parse
from otaflow.errors import IncorrectSize

SIZE = 2**21
BLOCK = random.Random(3).randbytes(SIZE)


class Keeper:
    """A service that keeps what TransferData brings; `most`: how many calls there were at once."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, bytes]] = []
        self.lock = threading.Lock()
        self.now = self.most = 0

    def transfer_data(self, id: str, block_counter: int, block: memoryview) -> int:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        content = bytes(block)
        with self.lock:
            self.now -= 1
            self.taken.append((block_counter, content))
        return len(content)

    def status(self) -> dict[str, Any]:
        return {"status": "Idle", "session": None}


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def served(keeper: Keeper, folder: Path, pki: Any) -> Iterator[Server]:
    """The keeper, on a Unix socket and over TLS."""
    api = {"listen": "127.0.0.1:0", "certificate": pki.server[0], "key": pki.server[1], "token_file": pki.token_file}
    values = {"device": {"name": "d", "model": "m", "root": str(folder)}, "api": {k: str(v) for k, v in api.items()}}
    config = parse(values, folder / "otaflow.toml")
    service: Any = keeper
    server = Server(app.make_app(service, credentials=load_credentials(config), block_size=SIZE), config)
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["socket", "tls"])
def sender(request: pytest.FixtureRequest, served: Server, pki: Any) -> Iterator[Client]:
    if request.param == "socket":
        client = Client(served.socket)
    else:
        client = Client(url=served.url, token=pki.token_file.read_text().strip(), ca=pki.ca)
    with client:
        yield client


@pytest.mark.parametrize("size", [0, 1, 2**18, 2**18 + 1, SIZE - 1, SIZE])
def test_a_block_arrives_whole(size: int, sender: Client, keeper: Keeper) -> None:
    for counter in (1, 2):
        assert sender.transfer_data("id", counter, BLOCK[-size:] if size else b"") == size
    assert keeper.taken == [(1, BLOCK[SIZE - size :]), (2, BLOCK[SIZE - size :])]


def test_a_block_that_is_too_long(sender: Client, keeper: Keeper) -> None:
    with pytest.raises(IncorrectSize, match="is the most"):
        sender.transfer_data("id", 1, BLOCK + b"x")
    assert keeper.taken == []
    assert sender.transfer_data("id", 1, BLOCK) == SIZE


def test_a_block_without_a_length(served: Server, keeper: Keeper) -> None:
    pieces = (BLOCK[start : start + 100_000] for start in range(0, SIZE, 100_000))
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(served.socket)), base_url="http://ucm") as http:
        answer = http.post("/ucm/TransferData", params={"id": "id", "blockCounter": 1}, content=pieces)
    assert answer.json() == {"consecutiveBytesReceived": SIZE}
    assert keeper.taken == [(1, BLOCK)]


def test_more_clients_than_buffers(served: Server, keeper: Keeper) -> None:
    """All are served, no more blocks at once than there are buffers, and no client gets another's bytes."""

    def send(number: int) -> None:
        with Client(served.socket) as client:
            for _ in range(3):
                client.transfer_data("id", number, bytes([number]) * SIZE)

    numbers = range(1, 3 * app.BLOCKS + 1)
    with ThreadPoolExecutor(len(numbers)) as pool:
        list(pool.map(send, numbers))
    assert sorted(number for number, _ in keeper.taken) == sorted(3 * list(numbers))
    assert all(content == bytes([number]) * SIZE for number, content in keeper.taken)
    assert keeper.most <= app.BLOCKS


@pytest.mark.parametrize("sent", [0, 1000, SIZE - 1])
def test_silent_clients_do_not_keep_the_buffers(
    sent: int, served: Server, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "SILENCE", 0.2)
    head = f"POST /ucm/TransferData?id=id&blockCounter=1 HTTP/1.1\r\nHost: ucm\r\nContent-Length: {SIZE}\r\n\r\n"
    silent = [socket.socket(socket.AF_UNIX) for _ in range(app.BLOCKS)]
    try:
        for each in silent:
            each.settimeout(30)
            each.connect(str(served.socket))
            each.sendall(head.encode() + BLOCK[:sent])
        for each in silent:
            answer = b""
            while b"}" not in answer:
                answer += each.recv(65536)
            assert answer.startswith(b"HTTP/1.1 422 ")
            assert b"IncorrectSize" in answer
            # The rest of that block still belongs to it; then the connection is good again.
            each.sendall(BLOCK[sent:] + b"GET /ucm/CurrentStatus HTTP/1.1\r\nHost: ucm\r\nConnection: close\r\n\r\n")
            assert b"".join(iter(lambda each=each: each.recv(65536), b"")).endswith(b'{"status":"Idle","session":null}')
    finally:
        for each in silent:
            each.close()
    assert keeper.taken == []


def test_a_client_that_drips_does_not_keep_a_buffer(
    served: Server, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte is in time, but the whole block is not."""
    monkeypatch.setattr(blocks, "SILENCE", 0.5)
    monkeypatch.setattr(blocks, "SLOWEST", 10 * SIZE)
    head = f"POST /ucm/TransferData?id=id&blockCounter=1 HTTP/1.1\r\nHost: ucm\r\nContent-Length: {SIZE}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(0.05)
        plain.connect(str(served.socket))
        plain.sendall(head.encode())
        answer = b""
        for _ in range(2000):
            with suppress(TimeoutError):
                answer += plain.recv(65536)
            if b"}" in answer:
                break
            plain.sendall(b"x")
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert keeper.taken == []


def test_a_client_that_goes_away(served: Server, keeper: Keeper) -> None:
    """As often as there are buffers, and more: none is lost."""
    head = f"POST /ucm/TransferData?id=id&blockCounter=1 HTTP/1.1\r\nHost: ucm\r\nContent-Length: {SIZE}\r\n\r\n"
    for _ in range(2 * app.BLOCKS):
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(str(served.socket))
            plain.sendall(head.encode() + BLOCK[: SIZE - 1])
    with Client(served.socket) as client:
        assert client.transfer_data("id", 2, BLOCK) == SIZE
    assert keeper.taken == [(2, BLOCK)]


def test_a_client_that_waits_to_be_asked_for_the_body(served: Server, keeper: Keeper) -> None:
    head = f"POST /ucm/TransferData?id=id&blockCounter=1 HTTP/1.1\r\nHost: ucm\r\nContent-Length: {SIZE}\r\n"
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(30)
        plain.connect(str(served.socket))
        plain.sendall(head.encode() + b"Connection: close\r\nExpect: 100-continue\r\n\r\n")
        assert plain.recv(4096).startswith(b"HTTP/1.1 100 ")
        plain.sendall(BLOCK)
        assert b"".join(iter(lambda: plain.recv(4096), b"")).startswith(b"HTTP/1.1 200 ")
    assert keeper.taken == [(1, BLOCK)]


def test_a_buffer_that_a_thread_may_still_read_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "REST", 0.0)

    async def play() -> None:
        buffers = Buffers(4096, 1)
        async with buffers.take() as first:
            first[:3] = b"one"
        async with buffers.take() as again:
            assert again[:3] == b"one"  # the same one
        with pytest.raises(asyncio.CancelledError):
            async with buffers.take() as given_up:
                raise asyncio.CancelledError
        async with buffers.take() as fresh:
            fresh[:3] = b"new"
            assert given_up[:3] == b"one"
        await asyncio.sleep(0.01)
        assert buffers._free == []  # the memory is given back

    asyncio.run(play())
