"""The device's exclusive lock: one otaflow works on a device at a time.

flock on `nvm/lock`. The descriptor is passed to every child (run.inherit), and a flock belongs to the open file, not to
the process: when otaflow is killed, its left-over children still hold the lock, so that nobody works beside them. The
next otaflow sees that the owner is dead, kills the left-overs, and takes over.
"""

import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from otaflow.errors import Locked
from otaflow.platform import run
from otaflow.records import NO_ROOM

KILL_SECONDS = 60.0  # a killed program may be inside a long call of the kernel, such as a btrfs commit
POLL_SECONDS = 0.05


class Owner(NamedTuple):
    """A process: its number, and when it started (clock ticks after boot), because numbers are used again."""

    pid: int
    started: int


class DeviceLock:
    """`with DeviceLock(path): …`, or acquire and release."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def __enter__(self) -> "DeviceLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        return self._fd is not None

    def acquire(self, wait: float = 0) -> None:
        """Take the lock; a living owner is waited for `wait` seconds, then Locked. Held already: nothing happens."""
        if self._fd is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        record = f"{os.getpid()} {start_time(os.getpid())}\n".encode()
        try:
            self._take(fd, wait)
            _write_record(fd, record)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        run.inherit(fd)

    def release(self) -> None:
        """Give the lock back, also for children that still run. Not held: nothing happens."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        run.disinherit(fd)
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def _take(self, fd: int, wait: float) -> None:
        now = time.monotonic()
        patience = {True: now + wait, False: now + max(wait, KILL_SECONDS)}
        while not _try_lock(fd):
            owner, holders = self._find_holders(fd)
            for pid in holders if owner is None else ():
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() >= patience[owner is not None]:
                who = f"process {owner}" if owner else "a process that this user cannot see or end"
                raise Locked(
                    f"cannot lock the device: {who} is at work on it ({self._path})",
                    hint="wait until it ends, or end it; then try again",
                )
            time.sleep(POLL_SECONDS)

    def _find_holders(self, fd: int) -> tuple[int | None, set[int]]:
        """The lock's owner if it lives, and every process that has the locked open file."""
        record = _read_record(fd)
        taker, holders = 0, set()
        for pid, locked_by in _locked_files(os.fstat(fd)):
            taker = taker or locked_by
            holders.add(pid)
        if taker:
            started = start_time(taker)
            # a number used again: the record is the taker's, but another process has the number now
            reused = record is not None and record.pid == taker and record.started != started
            return (taker if started and not reused else None), holders
        if record is not None and record.started and start_time(record.pid) == record.started:
            return record.pid, holders
        return None, holders


def end_left_over(path: Path) -> None:
    """SIGKILL every process that has the lock `path` from us, or from an otaflow that is dead, and wait for their ends.

    Nothing that we started may still write when a step is taken back. A living otaflow's processes are not touched.
    """
    deadline = time.monotonic() + KILL_SECONDS
    while path.exists() and time.monotonic() < deadline:
        held = [(pid, taker) for pid, taker in _locked_files(path.stat()) if pid != os.getpid()]
        left = [pid for pid, taker in held if taker == os.getpid() or not start_time(taker)]
        if not left:
            return
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def start_time(pid: int) -> int:
    """When the process started, in clock ticks after boot; 0 when there is none, or only its exit status waits."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _write_record(fd: int, record: bytes) -> None:
    """Over the former one, whose room it has. A full btrfs has none: then no record is better than a wrong one."""
    try:
        os.pwrite(fd, record, 0)
        os.ftruncate(fd, len(record))
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        with suppress(OSError):
            os.ftruncate(fd, 0)


def _read_record(fd: int) -> Owner | None:
    """What the last owner wrote; None while the present one has not written yet."""
    words = os.pread(fd, 64, 0).split()
    try:
        return Owner(int(words[0]), int(words[1]))
    except (IndexError, ValueError):
        return None


def _locked_files(file: os.stat_result) -> Iterator[tuple[int, int]]:
    """Each process that has this file open by the descriptor that is locked, with the process that locked it.

    fdinfo tells the lock from a mere open file: others who wait for the lock have the file open too. The locker's
    number is 0 when it is gone and we are in a PID namespace.
    """
    for process in os.listdir("/proc"):
        if not process.isdigit():
            continue
        with suppress(OSError):
            for number in os.listdir(f"/proc/{process}/fd"):
                with suppress(OSError):
                    seen = os.stat(f"/proc/{process}/fd/{number}")
                    if (seen.st_dev, seen.st_ino) != (file.st_dev, file.st_ino):
                        continue
                    for line in Path(f"/proc/{process}/fdinfo/{number}").read_text().splitlines():
                        words = line.split()
                        if words[0] == "lock:" and words[2] == "FLOCK":
                            yield int(process), max(int(words[5]), 0)
