"""The power goes: what was answered is on the disk, though nothing but our own syncs put it there."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from otaflow import fault
from otaflow.errors import AuthenticationFailed
from otaflow.fault import FaultInjected
from otaflow.transfer.cached import PackageInfo, PackageState
from otaflow.transfer.logs import PackageLogs
from otaflow.transfer.store import Accepted, Transfers

CONTENT = Random(7).randbytes(50_000)


def make(top: Path) -> Transfers:
    return Transfers(top / "cache", block_size=20_000, timeout_seconds=3600, keep_free=0)


def send(store: Transfers, id: str, number: int) -> None:
    store.data(id, number, CONTENT[20_000 * number - 20_000 : 20_000 * number])


def accept(path: Path) -> Accepted:
    return Accepted("maps", "1.0.0")


def refuse(path: Path) -> Accepted:
    raise AuthenticationFailed("no")


def after_power_cut(disk: Any) -> list[PackageInfo]:
    """The packages that there would be, their bytes compared."""
    with disk.after_power_cut() as top:
        store = make(top)
        infos = store.packages()
        assert {path.name for path in store.folder.iterdir()} == {info.id for info in infos}
        for info in infos:
            have = info.consecutive_bytes_received
            content = (store.folder / info.id / "package").read_bytes()
            assert len(content) == info.size
            assert content[:have] == CONTENT[:have]
        return infos


@pytest.fixture
def no_fault() -> Iterator[None]:
    yield
    fault.arm("")


def test_after_each_answer(disk: Any) -> None:
    store = make(disk.top)
    id = store.start(len(CONTENT)).id
    assert after_power_cut(disk) == store.packages()
    for number in (1, 2, 3):
        send(store, id, number)
        assert after_power_cut(disk) == store.packages()
    store.exit(id, accept)
    assert after_power_cut(disk) == store.packages()
    for state in (PackageState.PROCESSING, PackageState.PROCESSED, PackageState.TRANSFERRED):
        store.mark(id, state)
        assert after_power_cut(disk) == store.packages()
    store.delete(id)
    assert after_power_cut(disk) == []


def test_refused_package(disk: Any) -> None:
    store = make(disk.top)
    id = store.start(1).id
    store.data(id, 1, CONTENT[:1])
    with pytest.raises(AuthenticationFailed):
        store.exit(id, refuse)
    assert after_power_cut(disk) == []


@pytest.mark.parametrize(
    ("point", "blocks", "state"),
    [
        ("transfer.start.made", None, None),
        ("transfer.start.named", 0, "kTransferring"),
        ("transfer.data.written", 0, "kTransferring"),
        ("transfer.data.counted", 1, "kTransferring"),
        ("transfer.exit.accepted", 3, "kTransferring"),
        ("transfer.exit.recorded", 3, "kTransferred"),
        ("transfer.delete.removed", None, None),
    ],
)
def test_within_a_call(disk: Any, no_fault: None, point: str, blocks: int | None, state: str | None) -> None:
    """The power goes within the first call that comes to `point`."""
    store = make(disk.top)
    fault.arm(point)
    with pytest.raises(FaultInjected):
        id = store.start(len(CONTENT)).id
        for number in (1, 2, 3):
            send(store, id, number)
        store.exit(id, accept)
        store.delete(id)
    infos = after_power_cut(disk)
    assert [(info.consecutive_blocks_received, info.state) for info in infos] == ([(blocks, state)] if state else [])


def test_errors_in_the_log(disk: Any) -> None:
    """An error is durable at once, and so is all that was written before it; so is the level."""
    logs, id = PackageLogs(disk.top / "logs"), "a" * 32
    logs.add(id)
    logs.set_level(id, 6)
    for level in (6, 4, 2):
        logs.write(id, level, f"level {level}")
    with disk.after_power_cut() as top:
        after = PackageLogs(top / "logs")
        assert after.read(id) == logs.read(id)
        assert [record["level"] for record in after.read(id)] == [6, 4, 2]
        assert after.level(id) == 6
