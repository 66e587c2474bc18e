"""The cache of transferred packages: TransferStart, TransferData, TransferExit and DeleteTransfer.

Rules:

* The room for a package is reserved when its transfer starts; a block never fails for want of room for its bytes.
* A block that was answered is on the disk. After a restart the transfer goes on at `consecutive_blocks_received` + 1.
* A package that is refused at TransferExit (AuthenticationFailed, InvalidManifest, PackageInconsistent, OldVersion) is
  of no use and is removed. After any other error (InsufficientData, a repository that is offline, a broken disk) the
  transfer stands as it was, and TransferExit may be called again.
* A transfer that nobody asked for in `timeout_seconds` is removed by `expire`. After a restart it stays for
  GRACE_SECONDS at least (or the timeout, if that is shorter), since its client could not reach us. A package that is
  transferred stays until it is deleted.
* A package that is being processed, or was, cannot be deleted; `mark` takes it out of these states.
* One lock a package; the store's own lock guards its table only, never a write. One process uses a folder at a time.

Source: spec/ucm-design.md, data flow; AUTOSAR PackageManagement.
"""

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from uuid import uuid4

from otaflow import fault
from otaflow.errors import (
    AuthenticationFailed,
    IncorrectSize,
    InsufficientMemory,
    InvalidManifest,
    InvalidTransferId,
    OldVersion,
    OperationNotPermitted,
    PackageInconsistent,
)
from otaflow.files import fsync_folder
from otaflow.transfer.cached import CachedPackage, PackageInfo, PackageState
from otaflow.transfer.cell import Damaged

BLOCK_BYTES = 16 * 2**20
KEEP_FREE_BYTES = 16 * 2**20
"""Room on the disk that no package gets: the journal and the records must always find some."""
MAX_TRANSFERS = 256
GRACE_SECONDS = 600.0
REFUSALS = (AuthenticationFailed, InvalidManifest, PackageInconsistent, OldVersion)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_ID = re.compile(r"[0-9a-f]{32}")
_LEFT_OVER = re.compile(r"[0-9a-f]{32}\.(new|old)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """The answer to TransferStart: the transfer's id (32 hex digits) and the largest block that is taken."""

    id: str
    block_size: int


@dataclass(frozen=True)
class Accepted:
    """What the check at TransferExit found the package to be."""

    name: str
    version: str


class Transfers:
    """All packages in `folder`. Any thread may call any method."""

    def __init__(
        self,
        folder: Path,
        *,
        block_size: int = BLOCK_BYTES,
        quota: int | None = None,
        timeout_seconds: float,
        keep_free: int = KEEP_FREE_BYTES,
        max_transfers: int = MAX_TRANSFERS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the store and remove what a sudden end left half made or half removed.

        `quota`: bytes of all packages together. `keep_free`: bytes that stay free on the disk. `clock`: seconds.
        """
        self.folder = folder
        self.block_size = block_size
        self.quota = quota
        self.timeout_seconds = timeout_seconds
        self.keep_free = keep_free
        self.max_transfers = max_transfers
        self.clock = clock
        self._table = Lock()
        self._packages: dict[str, CachedPackage] = {}
        self._starting: dict[str, int] = {}
        """The sizes of those that are being made; they count, though they are not in the table yet."""
        self._load()

    # --- the interface's methods ----------------------------------------------------------------------------------

    def start(self, size: int) -> Started:
        """Begin a transfer and reserve `size` bytes. Raises IncorrectSize, InsufficientMemory; then nothing is left."""
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise IncorrectSize(f"cannot start a transfer of {str(size)[:32]} bytes: a package has one byte at least")
        id = uuid4().hex
        number = self._reserve(id, size)
        try:
            with _no_room(f"start a transfer of {size} bytes"):
                package = CachedPackage.create(self.folder / id, number, size, self.block_size, self.clock())
            with self._table:
                self._packages[id] = package
        finally:
            with self._table:
                del self._starting[id]
        return Started(id, self.block_size)

    def data(self, id: str, block_counter: int, block: bytes | memoryview) -> int:
        """Take a block (counted from 1); it is on the disk when this returns the bytes that are there.

        Raises InvalidTransferId, OperationNotPermitted, IncorrectBlock (with where to go on), IncorrectSize,
        InsufficientMemory; then the transfer is as it was.
        """
        with self._hold(id, "take a block of") as package, _no_room(f"take a block of {id}"):
            package.append(block_counter, block, self.clock())
            return package.info.consecutive_bytes_received

    def exit(self, id: str, accept: Callable[[Path], Accepted]) -> Accepted:
        """End the transfer: when all bytes are there, `accept` checks the file and says what it is.

        Raises InvalidTransferId, OperationNotPermitted, InsufficientData, and what `accept` raises; see the rules
        above for what then becomes of the transfer.
        """
        with self._hold(id, "end the transfer") as package:
            package.require(PackageState.TRANSFERRING, doing=f"end the transfer {id}")
            package.require_whole()
            package.exiting = True
            try:
                accepted = accept(package.path)
                fault.point("transfer.exit.accepted")
                with _no_room(f"end the transfer {id}"):
                    package.change(
                        state=PackageState.TRANSFERRED,
                        name=accepted.name,
                        version=accepted.version,
                        active=self.clock(),
                    )
            except REFUSALS:
                # what cannot be removed now is removed when it is idle too long: its state is still kTransferring
                with suppress(OSError):
                    self._remove(package)
                raise
            finally:
                package.active = self.clock()
                package.exiting = False
        fault.point("transfer.exit.recorded")
        return accepted

    def delete(self, id: str) -> None:
        """Remove the package. Raises InvalidTransferId, OperationNotPermitted (it is being processed, or was)."""
        with self._hold(id, "delete") as package:
            package.require(PackageState.TRANSFERRING, PackageState.TRANSFERRED, doing=f"delete {id}")
            self._remove(package)

    # --- for the agent --------------------------------------------------------------------------------------------

    def mark(self, id: str, state: PackageState) -> None:
        """Say, durably, that a transferred package is in `state` now: kTransferred, kProcessing or kProcessed.

        Raises InvalidTransferId, OperationNotPermitted (not transferred yet), InsufficientMemory.
        """
        transferred = tuple(each for each in PackageState if each is not PackageState.TRANSFERRING)
        with self._hold(id, "change the state of") as package:
            package.require(*transferred, doing=f"call {id} {state}")
            if state not in transferred:
                raise OperationNotPermitted(f"cannot call {id} {state}: all of it is transferred")
            with _no_room(f"call {id} {state}"):
                package.change(state=state)

    def packages(self) -> list[PackageInfo]:
        """All packages, those first whose transfer began first. Waits for no transfer."""
        with self._table:
            packages = list(self._packages.values())
        return [package.info for package in sorted(packages, key=lambda each: each.number)]

    def get(self, id: str) -> PackageInfo:
        """One package. Raises InvalidTransferId."""
        return self._find(id, "find").info

    def path(self, id: str) -> Path:
        """The file of a package that is transferred. Raises InvalidTransferId, OperationNotPermitted."""
        package = self._find(id, "use")
        package.require(*(each for each in PackageState if each is not PackageState.TRANSFERRING), doing=f"use {id}")
        return package.path

    def expire(self) -> list[str]:
        """Remove the transfers that are idle for too long; the ids of those that went."""
        with self._table:
            packages = list(self._packages.values())
        return [package.info.id for package in packages if self._expire(package)]

    # --- inside ---------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if _LEFT_OVER.fullmatch(path.name):
                shutil.rmtree(path)
            elif _ID.fullmatch(path.name):
                try:
                    package = CachedPackage.open(path)
                except Damaged as error:
                    logger.warning("removed a package from the cache, the disk lost a part of it: %s", error)
                    shutil.rmtree(path)
                    continue
                package.active = self._active_after_restart(package.active)
                self._packages[path.name] = package
        fsync_folder(self.folder)
        self._number = max((package.number for package in self._packages.values()), default=0)

    def _active_after_restart(self, active: float) -> float:
        """The clock may have been set back; and time in which we were not there is not held against a client alone."""
        now = self.clock()
        grace = min(GRACE_SECONDS, self.timeout_seconds)
        return max(min(active, now), now - self.timeout_seconds + grace)

    def _reserve(self, id: str, size: int) -> int:
        """Enter `size` into the table's sum; gives the transfer's number.

        Raises InsufficientMemory where the quota, the number of packages or the disk does not permit it.
        """
        disk = os.statvfs(self.folder)
        doing = f"cannot start a transfer of {size} bytes"
        hint = "DeleteTransfer removes a package that is not needed"
        with self._table:
            if len(self._packages) + len(self._starting) >= self.max_transfers:
                raise InsufficientMemory(
                    f"{doing}: {self.max_transfers} packages are there, which is the most", hint=hint
                )
            taken = sum(package.info.size for package in self._packages.values()) + sum(self._starting.values())
            if self.quota is not None and taken + size > self.quota:
                left = max(0, self.quota - taken)
                raise InsufficientMemory(f"{doing}: {left} of the quota of {self.quota} bytes are left", hint=hint)
            free = disk.f_bavail * disk.f_frsize - self.keep_free - sum(self._starting.values())
            if size > free:
                raise InsufficientMemory(f"{doing}: {max(0, free)} bytes are free on the disk", hint=hint)
            self._starting[id] = size
            self._number += 1
            return self._number

    def _find(self, id: str, doing: str) -> CachedPackage:
        with self._table:
            package = self._packages.get(id) if isinstance(id, str) else None
        if package is None:
            raise _unknown(id, doing)
        return package

    @contextmanager
    def _hold(self, id: str, doing: str) -> Iterator[CachedPackage]:
        """The package, for us alone. Waits for a block, never for a TransferExit that is going on."""
        package = self._find(id, doing)
        if package.exiting:
            raise OperationNotPermitted(
                f"cannot {doing} {id}: its TransferExit is going on", hint="wait for the answer to TransferExit"
            )
        with package.lock:
            if package.removed:
                raise _unknown(id, doing)
            package.active = self.clock()
            yield package

    def _expire(self, package: CachedPackage) -> bool:
        # whoever holds the lock is at work on it, so it is not idle
        if not package.lock.acquire(blocking=False):
            return False
        try:
            transferring = package.info.state is PackageState.TRANSFERRING and not package.removed
            if not transferring or self.clock() - package.active <= self.timeout_seconds:
                return False
            self._remove(package)
            return True
        finally:
            package.lock.release()

    def _remove(self, package: CachedPackage) -> None:
        """Remove the package's files, then free its share of the quota; the lock is held."""
        try:
            package.remove()
        finally:
            if package.removed:
                with self._table:
                    self._packages.pop(package.info.id, None)


@contextmanager
def _no_room(doing: str) -> Iterator[None]:
    """A full disk or quota of the disk is InsufficientMemory."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise InsufficientMemory(
            f"cannot {doing}: {error.strerror}", hint="DeleteTransfer removes a package that is not needed"
        ) from error


def _unknown(id: object, doing: str) -> InvalidTransferId:
    return InvalidTransferId(
        f"cannot {doing} {str(id)[:64]!r}: there is no such transfer", hint="GetSwPackages lists those that there are"
    )
