"""The store of transferred packages, method by method."""

import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from otaflow.errors import (
    AuthenticationFailed,
    IncorrectBlock,
    IncorrectSize,
    InsufficientData,
    InsufficientMemory,
    InvalidManifest,
    InvalidTransferId,
    Offline,
    OldVersion,
    OperationNotPermitted,
    PackageInconsistent,
    UcmError,
)
from otaflow.transfer.cached import PackageState
from otaflow.transfer.store import Accepted, Transfers

UNKNOWN = "0" * 32
DONE = Accepted("maps", "1.2.0")


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(folder: Path, **values: Any) -> Transfers:
    return Transfers(folder / "cache", **{"block_size": 10, "timeout_seconds": 60.0, "keep_free": 0} | values)


def send(store: Transfers, content: bytes) -> str:
    """All of `content`, in blocks of the store's size, TransferExit left out."""
    started = store.start(len(content))
    for counter, start in enumerate(range(0, len(content), started.block_size), 1):
        store.data(started.id, counter, content[start : start + started.block_size])
    return started.id


def accept(path: Path) -> Accepted:
    return DONE


def refuse(error: Exception) -> Callable[[Path], Accepted]:
    def check(path: Path) -> Accepted:
        raise error

    return check


def files(store: Transfers) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_whole_way(tmp_path: Path) -> None:
    store = make(tmp_path)
    content = bytes(range(25))
    started = store.start(25)
    assert started.block_size == 10
    assert [store.data(started.id, n, content[10 * n - 10 : 10 * n]) for n in (1, 2, 3)] == [10, 20, 25]
    seen: list[bytes] = []

    def check(path: Path) -> Accepted:
        seen.append(path.read_bytes())
        return DONE

    assert store.exit(started.id, check) is DONE
    assert seen == [content]
    assert store.path(started.id).read_bytes() == content
    info = store.get(started.id)
    assert store.packages() == [info]
    assert (info.id, info.name, info.version, info.state) == (started.id, "maps", "1.2.0", "kTransferred")
    assert (info.consecutive_bytes_received, info.consecutive_blocks_received, info.size) == (25, 3, 25)
    assert make(tmp_path).packages() == [info]
    store.delete(started.id)
    assert store.packages() == make(tmp_path).packages() == []
    assert files(store) == []


@pytest.mark.parametrize("size", [0, -1, 1.0, True, "5", None], ids=repr)
def test_size_is_refused(tmp_path: Path, size: Any) -> None:
    store = make(tmp_path)
    with pytest.raises(IncorrectSize):
        store.start(size)
    assert files(store) == []


@pytest.mark.parametrize("size", [2**50, 2**63, 10**40], ids=["1 PiB", "2**63", "10**40"])
def test_no_disk_is_that_large(tmp_path: Path, size: int) -> None:
    store = make(tmp_path)
    with pytest.raises(InsufficientMemory, match="free on the disk"):
        store.start(size)
    assert files(store) == []


@pytest.mark.parametrize(
    ("counter", "block", "error", "message", "hint"),
    [
        (1, b"x", IncorrectBlock, "there already", "block 2, byte 10"),
        (3, b"x", IncorrectBlock, "block 2 comes next", "block 2, byte 10"),
        (0, b"x", IncorrectBlock, "block 2 comes next", "block 2"),
        (-1, b"x", IncorrectBlock, "block 2 comes next", "block 2"),
        (2.0, b"x", IncorrectBlock, "block 2 comes next", "block 2"),
        (2, b"", IncorrectSize, "1 to 10 bytes", "block 2"),
        (2, bytes(11), IncorrectSize, "1 to 10 bytes", "block 2"),
        (3, bytes(11), IncorrectBlock, "block 2", "block 2"),
    ],
    ids=["again", "gap", "zero", "negative", "float", "empty", "too large", "both wrong"],
)
def test_block_is_refused(
    tmp_path: Path, counter: Any, block: bytes, error: type[UcmError], message: str, hint: str
) -> None:
    store = make(tmp_path)
    id = store.start(22).id
    store.data(id, 1, b"0123456789")
    before = store.get(id)
    with pytest.raises(error, match=message) as caught:
        store.data(id, counter, block)
    assert hint in caught.value.hint
    assert store.get(id) == before == make(tmp_path).get(id)
    assert store.data(id, 2, b"0123456789") == 20
    with pytest.raises(IncorrectSize, match="only 2 of the 22"):
        store.data(id, 3, b"012")
    assert store.data(id, 3, b"01") == 22
    with pytest.raises(IncorrectSize, match="only 0"):
        store.data(id, 4, b"0")


@pytest.mark.parametrize("id", [UNKNOWN, "", "../cache", "x" * 5000, None, 5], ids=lambda id: repr(id)[:12])
def test_unknown_id(tmp_path: Path, id: Any) -> None:
    store = make(tmp_path)
    store.start(5)
    calls: list[Callable[[], object]] = [
        lambda: store.data(id, 1, b"x"),
        lambda: store.exit(id, accept),
        lambda: store.delete(id),
        lambda: store.mark(id, PackageState.PROCESSED),
        lambda: store.get(id),
        lambda: store.path(id),
    ]
    for call in calls:
        with pytest.raises(InvalidTransferId):
            call()
    assert len(store.packages()) == 1


def test_exit_needs_all_bytes(tmp_path: Path) -> None:
    store = make(tmp_path)
    id = store.start(11).id
    store.data(id, 1, bytes(10))
    with pytest.raises(InsufficientData, match="10 of 11 bytes") as caught:
        store.exit(id, accept)
    assert caught.value.hint == "go on with block 2, byte 10"
    with pytest.raises(OperationNotPermitted):
        store.path(id)
    store.data(id, 2, b"x")
    assert store.exit(id, accept) == DONE


@pytest.mark.parametrize("error", [AuthenticationFailed, InvalidManifest, PackageInconsistent, OldVersion])
def test_refused_package_is_removed(tmp_path: Path, error: type[UcmError]) -> None:
    store = make(tmp_path)
    id = send(store, bytes(25))
    with pytest.raises(error, match="no"):
        store.exit(id, refuse(error("no")))
    with pytest.raises(InvalidTransferId):
        store.exit(id, accept)
    assert files(store) == []


@pytest.mark.parametrize(
    "error", [Offline("no net"), OSError(5, "disk"), InsufficientMemory("no room"), ZeroDivisionError()]
)
def test_other_errors_keep_the_transfer(tmp_path: Path, error: Exception) -> None:
    store = make(tmp_path)
    id = send(store, bytes(25))
    with pytest.raises(type(error)):
        store.exit(id, refuse(error))
    assert store.get(id).state == "kTransferring"
    assert store.exit(id, accept) == DONE


def test_after_exit_nothing_more(tmp_path: Path) -> None:
    store = make(tmp_path)
    id = send(store, bytes(25))
    store.exit(id, accept)
    for reopened in (store, make(tmp_path)):
        with pytest.raises(OperationNotPermitted):
            reopened.data(id, 4, b"x")
        with pytest.raises(OperationNotPermitted):
            reopened.exit(id, accept)


def test_while_exit_goes_on(tmp_path: Path) -> None:
    """What is asked while the package is checked is refused at once; reports and other transfers go on."""
    store = make(tmp_path)
    id, other = send(store, bytes(25)), store.start(5).id
    begun, end = threading.Event(), threading.Event()

    def check(path: Path) -> Accepted:
        begun.set()
        assert end.wait(60)
        return DONE

    with ThreadPoolExecutor() as pool:
        pending = pool.submit(store.exit, id, check)
        try:
            assert begun.wait(60)
            for call in (lambda: store.data(id, 4, b"x"), lambda: store.exit(id, accept), lambda: store.delete(id)):
                with pytest.raises(OperationNotPermitted, match="going on"):
                    call()
            assert [info.state for info in store.packages()] == ["kTransferring"] * 2
            assert store.data(other, 1, bytes(5)) == 5
            assert store.expire() == []
        finally:
            end.set()
        assert pending.result() == DONE
    assert store.get(id).state == "kTransferred"


def test_states_of_processing(tmp_path: Path) -> None:
    store = make(tmp_path)
    id = send(store, bytes(25))
    with pytest.raises(OperationNotPermitted):
        store.mark(id, PackageState.PROCESSING)
    store.exit(id, accept)
    with pytest.raises(OperationNotPermitted):
        store.mark(id, PackageState.TRANSFERRING)
    for state in (PackageState.PROCESSING, PackageState.PROCESSED):
        store.mark(id, state)
        store = make(tmp_path)
        assert store.get(id).state is state
        with pytest.raises(OperationNotPermitted, match=state):
            store.delete(id)
        assert store.path(id).read_bytes() == bytes(25)
    store.mark(id, PackageState.TRANSFERRED)
    store.delete(id)
    assert files(store) == []


def test_goes_on_after_restart(tmp_path: Path) -> None:
    """Each block by another store, and with another block size: a transfer keeps the one it was told."""
    content = Random(1).randbytes(95)
    id = make(tmp_path).start(95).id
    for counter in range(1, 11):
        store = make(tmp_path, block_size=3)
        assert store.get(id).consecutive_blocks_received == counter - 1
        store.data(id, counter, content[10 * counter - 10 : 10 * counter])
    assert make(tmp_path).exit(id, lambda path: Accepted("x", path.read_bytes().hex())).version == content.hex()


def test_bytes_beyond_the_count_are_overwritten(tmp_path: Path) -> None:
    store = make(tmp_path)
    id = store.start(20).id
    store.data(id, 1, b"a" * 10)
    with (store.folder / id / "package").open("r+b") as file:
        file.seek(10)
        file.write(b"torn")
    store = make(tmp_path)
    store.data(id, 2, b"b" * 10)
    store.exit(id, accept)
    assert store.path(id).read_bytes() == b"a" * 10 + b"b" * 10


def test_torn_record_falls_back(tmp_path: Path) -> None:
    """The slot that was written last is damaged: the count before it stands."""
    store = make(tmp_path)
    id = store.start(30).id
    for counter in (1, 2, 3):
        store.data(id, counter, bytes(10))
    with (store.folder / id / "record").open("r+b") as file:
        file.seek(4096 + 20)
        file.write(b"????")
    assert make(tmp_path).get(id).consecutive_blocks_received == 2


@pytest.mark.parametrize("damage", ["record", "both slots", "short", "package"])
def test_damaged_package_is_removed(tmp_path: Path, damage: str) -> None:
    store = make(tmp_path)
    id, other = send(store, bytes(25)), send(store, bytes(5))
    folder = store.folder / id
    match damage:
        case "record":
            (folder / "record").unlink()
        case "both slots":
            (folder / "record").write_bytes(b"nonsense" * 1024)
        case "short":
            (folder / "package").write_bytes(b"x")
        case "package":
            (folder / "package").unlink()
    assert [info.id for info in make(tmp_path).packages()] == [other]
    assert files(store) == [other]


def test_left_overs_are_removed(tmp_path: Path) -> None:
    store = make(tmp_path)
    id = send(store, bytes(25))
    for suffix in ("new", "old"):
        shutil.copytree(store.folder / id, store.folder / f"{UNKNOWN}.{suffix}")
    (store.folder / "README").write_text("not ours")
    assert [info.id for info in make(tmp_path).packages()] == [id]
    assert files(store) == sorted([id, "README"])


def test_quota(tmp_path: Path) -> None:
    store = make(tmp_path, quota=100)
    first, _ = store.start(60).id, store.start(40)
    with pytest.raises(InsufficientMemory, match="0 of the quota of 100"):
        store.start(1)
    store.delete(first)
    with pytest.raises(InsufficientMemory, match="60 of the quota"):
        store.start(61)
    store.start(60)
    with pytest.raises(InsufficientMemory):
        make(tmp_path, quota=100).start(1)
    assert len(files(store)) == 2


def test_number_of_packages(tmp_path: Path) -> None:
    store = make(tmp_path, max_transfers=2)
    first, _ = store.start(1).id, store.start(1)
    with pytest.raises(InsufficientMemory, match="2 packages are there"):
        store.start(1)
    store.delete(first)
    store.start(1)


def test_quota_of_many_at_once(tmp_path: Path) -> None:
    """Eight clients ask for 64 reservations, of which 10 have room."""
    store = make(tmp_path, quota=1000)

    def start(_: int) -> bool:
        try:
            store.start(100)
        except InsufficientMemory:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(start, range(64))) == 10
    assert len(files(store)) == 10


def test_full_disk(small_disk: Path) -> None:
    """A start that has no room leaves nothing; a transfer that was started has its room, whatever fills the disk."""
    store = make(small_disk, block_size=2**20)
    with pytest.raises(InsufficientMemory, match="free on the disk"):
        store.start(9 * 2**20)
    assert files(store) == []
    id = store.start(4 * 2**20).id
    with (small_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(65536))
    with pytest.raises(InsufficientMemory):
        store.start(2**20)
    content = Random(2).randbytes(4 * 2**20)
    for counter in range(1, 5):
        store.data(id, counter, content[(counter - 1) * 2**20 : counter * 2**20])
    store.exit(id, accept)
    store.mark(id, PackageState.PROCESSED)
    store = make(small_disk)
    assert store.path(id).read_bytes() == content
    store.mark(id, PackageState.TRANSFERRED)
    store.delete(id)
    assert files(store) == []


def test_full_disk_found_late(small_disk: Path) -> None:
    """The disk fills between the look at it and the reservation: nothing is left of the start."""
    store = make(small_disk, keep_free=-(2**30))
    with pytest.raises(InsufficientMemory, match="No space"):
        store.start(9 * 2**20)
    assert files(store) == []
    store.start(7 * 2**20)


def test_room_that_stays_free(small_disk: Path) -> None:
    store = make(small_disk, keep_free=6 * 2**20)
    with pytest.raises(InsufficientMemory):
        store.start(3 * 2**20)
    store.start(2**20)


def test_expire(tmp_path: Path) -> None:
    clock = Clock()
    store = make(tmp_path, clock=clock)
    idle, busy, done = store.start(20).id, store.start(20).id, send(store, bytes(5))
    store.exit(done, accept)
    clock.now += 50
    store.data(busy, 1, bytes(10))
    assert store.expire() == []
    clock.now += 11
    assert store.expire() == [idle]
    with pytest.raises(InvalidTransferId):
        store.data(idle, 1, b"x")
    clock.now += 10**6
    assert store.expire() == [busy]
    assert files(store) == [done]


def test_expire_after_restart(tmp_path: Path) -> None:
    """A restart gives the client ten minutes; otherwise the idle time goes on counting."""
    clock = Clock()
    id = make(tmp_path, clock=clock, timeout_seconds=3600).start(20).id
    clock.now += 3500
    store = make(tmp_path, clock=clock, timeout_seconds=3600)
    clock.now += 599
    assert store.expire() == []
    clock.now += 2
    assert store.expire() == [id]


def test_clock_set_back(tmp_path: Path) -> None:
    clock = Clock()
    clock.now = 10.0**9
    id = make(tmp_path, clock=clock).start(20).id
    clock.now = 1000.0
    store = make(tmp_path, clock=clock)
    clock.now += 59
    assert store.expire() == []
    clock.now += 2
    assert store.expire() == [id]


def test_eight_clients(tmp_path: Path) -> None:
    """Eight clients with transfers of their own, some given up in the end; one more asks for reports and expires."""
    store = make(tmp_path, block_size=4096)
    end = threading.Event()

    def client(seed: int) -> list[tuple[str, bytes]]:
        random, whole = Random(seed), []
        for _ in range(4):
            content = random.randbytes(random.randint(1, 60_000))
            id = store.start(len(content)).id
            position = counter = 0
            while position < len(content):
                block = content[position : position + random.randint(1, 4096)]
                counter, position = counter + 1, position + len(block)
                assert store.data(id, counter, block) == position
                if random.random() < 0.1:
                    with pytest.raises(IncorrectBlock):
                        store.data(id, counter, block)
            store.exit(id, accept)
            if random.random() < 0.3:
                store.delete(id)
            else:
                whole.append((id, content))
        return whole

    def report() -> None:
        while not end.wait(0.001):
            assert all(info.consecutive_bytes_received <= info.size for info in store.packages())
            assert store.expire() == []

    with ThreadPoolExecutor(9) as pool:
        reports = pool.submit(report)
        try:
            expected = [each for result in pool.map(client, range(8)) for each in result]
        finally:
            end.set()
        reports.result()
    for each in (store, make(tmp_path)):
        assert {info.id for info in each.packages()} == {id for id, _ in expected}
        assert all(each.path(id).read_bytes() == content for id, content in expected)


def test_two_clients_of_one_transfer(tmp_path: Path) -> None:
    """Of eight that send the same block at once, one is taken; a delete among blocks leaves nothing."""
    store = make(tmp_path)
    id = store.start(100).id

    def block(counter: int) -> type[Exception] | int:
        try:
            return store.data(id, counter, bytes(10))
        except UcmError as error:
            return type(error)

    with ThreadPoolExecutor(8) as pool:
        for counter in (1, 2, 3):
            answers = list(pool.map(block, [counter] * 8))
            assert sorted(map(str, answers)) == sorted(map(str, [10 * counter] + [IncorrectBlock] * 7))
        late = pool.map(block, range(4, 11))
        store.delete(id)
        assert set(map(type, late)) <= {int, type}
    assert block(11) is InvalidTransferId
    assert files(store) == []


def test_light_to_import() -> None:
    """Recovery at boot must start at once."""
    import subprocess

    code = "import sys, otaflow.transfer.store, otaflow.transfer.logs; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"prefect", "tuf", "httpx", "pydantic", "fastapi"} & set(done.stdout.split())
