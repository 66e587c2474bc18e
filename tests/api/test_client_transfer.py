"""The client's transfer: whole files, resumed where the agent has got to."""

from pathlib import Path
from typing import Any

import pytest

from otaflow.client import Client
from otaflow.errors import InvalidTransferId, Offline, PackageInconsistent


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "demo.nsu"
    path.write_bytes(bytes(range(256)) * 50)  # 12,800 bytes, 13 blocks
    return path


def content(stub: Any, id: str) -> bytes:
    return b"".join(stub.blocks[id])


def test_a_whole_file(client: Client, stub: Any, package: Path) -> None:
    seen: list[tuple[int, int]] = []
    id = client.transfer(package, lambda done, size: seen.append((done, size)))
    assert content(stub, id) == package.read_bytes()
    assert id in stub.ended
    assert seen[0] == (1000, 12800)
    assert seen[-1] == (12800, 12800)


def test_an_agent_that_restarts_between_two_blocks(serve: Any, stub: Any, package: Path) -> None:
    servers = [serve()]

    def restart(done: int, size: int) -> None:
        if done == 5000:
            servers[-1].stop()
            servers.append(serve())

    with Client(socket=servers[0].socket) as client:
        id = client.transfer(package, restart)
    assert len(servers) == 2
    assert content(stub, id) == package.read_bytes()
    assert [asked[2] for asked in stub.asked if asked[0] == "transfer_data"] == list(range(1, 14))


def test_an_answer_that_is_lost(serve: Any, stub: Any, package: Path) -> None:
    """The block was taken, but the agent went down before it said so: the block is not sent again."""
    servers = [serve()]
    take = stub.transfer_data

    def lose(id: str, counter: int, block: bytes) -> int:
        received: int = take(id, counter, block)
        if counter == 3 and len(servers) == 1:
            for connection in list(servers[0]._servers[0].server_state.connections):
                servers[0]._loop.call_soon_threadsafe(connection.transport.abort)
            servers.append(servers[0])
        return received

    stub.transfer_data = lose
    with Client(socket=servers[0].socket) as client:
        id = client.transfer(package)
    assert content(stub, id) == package.read_bytes()


def test_another_process_goes_on(client: Client, stub: Any, package: Path) -> None:
    data = package.read_bytes()
    id, _ = client.transfer_start(len(data))
    for counter in (1, 2, 3):
        client.transfer_data(id, counter, data[(counter - 1) * 700 : counter * 700])
    assert client.transfer(package, id=id) == id
    assert content(stub, id) == data


def test_an_exit_whose_answer_was_lost(client: Client, stub: Any, package: Path) -> None:
    id = client.transfer(package)
    assert client.transfer(package, id=id) == id


def test_a_transfer_that_is_not_there(client: Client, package: Path) -> None:
    with pytest.raises(InvalidTransferId, match="does not have it"):
        client.transfer(package, id="gone")


def test_a_package_that_is_refused(client: Client, stub: Any, package: Path) -> None:
    stub.raises["transfer_exit"] = PackageInconsistent("cannot take it: it is no package")
    with pytest.raises(PackageInconsistent, match="no package"):
        client.transfer(package)


def test_patience_ends(serve: Any, stub: Any, package: Path) -> None:
    server = serve()
    with Client(socket=server.socket) as client, pytest.raises(Offline):
        client.transfer(package, lambda *_: server.stop(), patience=0.3)
