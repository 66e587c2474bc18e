"""The story of a package that a client transfers block by block: what was answered is there after a power cut."""

from collections.abc import Callable
from random import Random
from typing import Any

from otaflow.platform.device import Device
from otaflow.transfer.cached import PackageInfo, PackageState
from otaflow.transfer.store import Accepted, Transfers

BLOCK, BLOCKS = 20_000, 6
CONTENT = Random(7).randbytes(BLOCK * BLOCKS - 1234)


def open_store(device: Device) -> Transfers:
    """The device's packages in transfer, as a process that begins now sees them."""
    return Transfers(device.cache / "transfers", block_size=BLOCK, timeout_seconds=3600, keep_free=0)


def tell_transfers(device: Device, note: Callable[..., None]) -> None:
    """Two packages come, one of them is deleted again; each answer is noted."""
    store = open_store(device)

    def answered() -> None:
        note("?transfer", packages=[_plain(info) for info in store.packages()])

    ids = []
    for _ in range(2):
        ids.append(store.start(len(CONTENT)).id)
        answered()
        for number in range(1, BLOCKS + 1):
            store.data(ids[-1], number, CONTENT[BLOCK * (number - 1) : BLOCK * number])
            answered()
    store.exit(ids[0], lambda path: Accepted("maps", "1.0.0"))
    answered()
    store.mark(ids[0], PackageState.PROCESSING)
    answered()
    store.delete(ids[1])
    answered()


def _plain(info: PackageInfo) -> list[Any]:
    return [info.id, info.consecutive_blocks_received, str(info.state)]


def look_at_transfers(device: Device, marks: list[dict[str, Any]], moment: int) -> list[str]:
    """What was answered last is so, or what is answered next; every byte that is said to be there is."""
    answers = [mark for mark in marks if mark["name"] == "?transfer"]
    passed = [mark["packages"] for mark in answers if mark["at"] <= moment]
    following = [mark["packages"] for mark in answers if mark["at"] > moment][:1]
    allowed = [*(passed[-1:] or [[]]), *following]
    store = open_store(device)
    found = [_plain(info) for info in store.packages()]
    wrong = [] if found in allowed else [f"acknowledged: the packages are {found}, and were answered as {allowed}"]
    if {path.name for path in store.folder.iterdir()} != {info.id for info in store.packages()}:
        wrong.append(f"left over: {sorted(path.name for path in store.folder.iterdir())} for {found}")
    for info in store.packages():
        have = info.consecutive_bytes_received
        if (store.folder / info.id / "package").read_bytes()[:have] != CONTENT[:have]:
            wrong.append(f"acknowledged: package {info.id} does not hold what was sent")
    return wrong
