"""One package in the cache: a folder with its bytes (`package`) and what is known of it (`record`).

The folder gets its name when all in it is durable, and loses it before anything in it is removed: a folder that has an
id for a name is whole. The record's count of bytes is the truth; what the file holds beyond it is overwritten.
"""

import os
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import Any

from otaflow import fault
from otaflow.errors import IncorrectBlock, IncorrectSize, InsufficientData, OperationNotPermitted
from otaflow.files import fsync_folder
from otaflow.records import Record
from otaflow.transfer.cell import Cell, Damaged


class PackageState(StrEnum):
    """Where a package is, spelled as the interface spells it."""

    TRANSFERRING = "kTransferring"
    TRANSFERRED = "kTransferred"
    PROCESSING = "kProcessing"
    PROCESSED = "kProcessed"


@dataclass(frozen=True)
class PackageInfo:
    """What GetSwPackages says of a package; sizes in bytes. Name and version are empty until it is transferred."""

    id: str
    name: str
    version: str
    state: PackageState
    consecutive_bytes_received: int
    consecutive_blocks_received: int
    size: int
    block_size: int


class CachedPackage:
    """A package's folder. Whoever changes it holds `lock`; `info` may be read at any time."""

    def __init__(self, folder: Path, cell: Cell) -> None:
        self.folder = folder
        self.path = folder / "package"
        self.lock = Lock()
        self.exiting = False
        """Its TransferExit is going on, which may take long: nothing else is permitted meanwhile."""
        self.removed = False
        self.active: float = cell.record["active"]
        """When somebody last asked for something with it, in seconds of the store's clock."""
        self._cell = cell
        self.info = _info(folder.name, cell)

    @classmethod
    def create(cls, folder: Path, number: int, size: int, block_size: int, now: float) -> "CachedPackage":
        """A new package of `size` bytes that are reserved on the disk. OSError leaves nothing behind."""
        new = folder.with_name(f"{folder.name}.new")
        record: Record = {"size": size, "block_size": block_size, "blocks": 0, "bytes": 0}
        record |= {"number": number, "active": now, "state": PackageState.TRANSFERRING, "name": "", "version": ""}
        try:
            new.mkdir(mode=0o700)
            _allocate(new / "package", size)
            Cell.create(new / "record", record)
            fsync_folder(new)
            fault.point("transfer.start.made")
            new.rename(folder)
            fsync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        fault.point("transfer.start.named")
        return cls(folder, Cell.open(folder / "record"))

    @classmethod
    def open(cls, folder: Path) -> "CachedPackage":
        """The package that `folder` holds. Raises Damaged where the disk lost a part of it."""
        try:
            package = cls(folder, Cell.open(folder / "record"))
            length = package.path.stat().st_size
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise Damaged(f"{folder}: {error!r}") from error
        if not package.info.consecutive_bytes_received <= package.info.size == length:
            raise Damaged(f"{folder}: the package has {length} bytes, its record says {package.info}")
        return package

    @property
    def number(self) -> int:
        """Its place in the order in which transfers were started."""
        return int(self._cell.record["number"])

    def append(self, counter: int, block: bytes | memoryview, now: float) -> None:
        """Take block number `counter`; it is on the disk, then counted, when this returns.

        Raises OperationNotPermitted, IncorrectBlock, IncorrectSize, OSError; then the package is as it was.
        """
        self.require(PackageState.TRANSFERRING, doing=f"take a block of {self.info.id}")
        self._check_counter(counter)
        self._check_length(len(block))
        self._write(block)
        fault.point("transfer.data.written")
        received = self.info.consecutive_bytes_received + len(block)
        self.change(blocks=counter, bytes=received, active=now)
        fault.point("transfer.data.counted")

    def change(self, **values: Any) -> None:
        """Change the record, durably; `info` follows."""
        self._cell.write(**values)
        self.info = _info(self.info.id, self._cell)

    def remove(self) -> None:
        """Remove the package; once its name is gone, opening the store finishes this."""
        old = self.folder.with_name(f"{self.folder.name}.old")
        self.folder.rename(old)
        self.removed = True
        fault.point("transfer.delete.renamed")
        fsync_folder(old.parent)
        shutil.rmtree(old)
        fault.point("transfer.delete.removed")

    def require(self, *states: PackageState, doing: str) -> None:
        """OperationNotPermitted unless the package is in one of `states`."""
        if self.info.state not in states:
            raise OperationNotPermitted(
                f"cannot {doing}: its state is {self.info.state}, not {' or '.join(states)}",
                hint="GetSwPackages shows the packages and their states",
            )

    def require_whole(self) -> None:
        """InsufficientData unless all bytes are there."""
        info = self.info
        if info.consecutive_bytes_received < info.size:
            raise InsufficientData(
                f"cannot end the transfer {info.id}: {info.consecutive_bytes_received} of {info.size} bytes are there",
                hint=_go_on(info),
            )

    def _check_counter(self, counter: int) -> None:
        expected = self.info.consecutive_blocks_received + 1
        if isinstance(counter, int) and not isinstance(counter, bool) and counter == expected:
            return
        have = isinstance(counter, int) and 1 <= counter < expected
        why = "it is there already" if have else f"block {expected} comes next"
        raise IncorrectBlock(f"cannot take block {str(counter)[:32]} of {self.info.id}: {why}", hint=_go_on(self.info))

    def _check_length(self, length: int) -> None:
        info = self.info
        missing = info.size - info.consecutive_bytes_received
        if 1 <= length <= min(info.block_size, missing):
            return
        why = f"a block has 1 to {info.block_size} bytes"
        if length > missing:
            why = f"only {missing} of the {info.size} bytes that were announced are missing"
        raise IncorrectSize(f"cannot take a block of {length} bytes of {info.id}: {why}", hint=_go_on(info))

    def _write(self, block: bytes | memoryview) -> None:
        view, offset = memoryview(block), self.info.consecutive_bytes_received
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written
            os.fdatasync(fd)
        finally:
            os.close(fd)


def _allocate(path: Path, size: int) -> None:
    """A file of `size` bytes, all its room reserved."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def _info(id: str, cell: Cell) -> PackageInfo:
    record = cell.record
    return PackageInfo(
        id=id,
        name=record["name"],
        version=record["version"],
        state=PackageState(record["state"]),
        consecutive_bytes_received=record["bytes"],
        consecutive_blocks_received=record["blocks"],
        size=record["size"],
        block_size=record["block_size"],
    )


def _go_on(info: PackageInfo) -> str:
    """Where the client goes on."""
    if info.consecutive_bytes_received == info.size:
        return "all bytes are there: call TransferExit"
    return f"go on with block {info.consecutive_blocks_received + 1}, byte {info.consecutive_bytes_received}"
