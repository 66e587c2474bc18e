"""What is said about each package while it is transferred and processed (SetLogLevel, GetLog), in the NVM.

A log outlives its package, since it is read when something went wrong; those that are unused for longest go when
there are too many. Errors are durable at once, the rest with them or when the system writes it. A log that cannot be
written is no reason to stop an update. Lines that a power cut damaged are left out.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from threading import Lock

from otaflow import records
from otaflow.errors import GeneralReject, InvalidTransferId
from otaflow.files import fsync_folder, write_atomic
from otaflow.records import Record

MAX_BYTES = 2**20
MAX_MESSAGE = 8 * 2**10
"""Characters of a message; the rest of a longer one is cut off."""
KEEP_LOGS = 512

_ID = re.compile(r"[0-9a-f]{32}")

logger = logging.getLogger(__name__)


class Level(IntEnum):
    """The interface's log levels; a log takes what is at its level or below."""

    OFF = 0
    FATAL = 1
    ERROR = 2
    WARN = 3
    INFO = 4
    DEBUG = 5
    VERBOSE = 6


class PackageLogs:
    """The logs in `folder`, one folder for each package. Any thread may call any method."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = MAX_BYTES,
        keep: int = KEEP_LOGS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_bytes` bounds one package's log, `keep` their number."""
        self.folder = folder
        self.max_bytes = max_bytes
        self.keep = keep
        self.clock = clock
        self._lock = Lock()
        folder.mkdir(parents=True, exist_ok=True)
        logs = sorted(filter(_is_log, folder.iterdir()), key=_age)
        self._levels = {path.name: _read_level(path) for path in logs}
        """By id, the one that is unused for longest first."""

    def add(self, id: str) -> None:
        """Begin the log of a package (at TransferStart), at level info; again is harmless."""
        with self._lock:
            if id in self._levels:
                return
            if not _ID.fullmatch(id):
                raise InvalidTransferId(f"cannot begin a log of {id[:64]!r}: that is no transfer's id")
            for oldest in list(self._levels)[: len(self._levels) + 1 - self.keep]:
                shutil.rmtree(self.folder / oldest)
                del self._levels[oldest]
            (self.folder / id).mkdir(mode=0o700, exist_ok=True)
            write_atomic(self.folder / id / "level", b"%d\n" % Level.INFO)
            fsync_folder(self.folder)
            self._levels[id] = Level.INFO

    def level(self, id: str) -> Level:
        """The present level of a log. Raises InvalidTransferId."""
        with self._lock:
            return self._level(id, "read")

    def set_level(self, id: str, level: int) -> None:
        """From now on take messages up to `level` (0 off … 6 verbose), durably. Raises InvalidTransferId."""
        chosen = _check_level(level, lowest=Level.OFF)
        with self._lock:
            self._level(id, "set the level of")
            write_atomic(self.folder / id / "level", b"%d\n" % chosen)
            self._levels[id] = chosen

    def write(self, id: str, level: int, message: str) -> None:
        """Add `message` where the log's level permits it. Raises InvalidTransferId."""
        chosen = _check_level(level, lowest=Level.FATAL)
        with self._lock:
            if chosen > self._level(id, "write"):
                return
            line = records.encode({"time": self._now(), "level": int(chosen), "message": message[:MAX_MESSAGE]})
            self._levels[id] = self._levels.pop(id)
            try:
                self._append(self.folder / id / "log", line, durable=chosen <= Level.ERROR)
            except OSError as error:
                logger.warning("cannot write the log of %s: %s", id, error)

    def read(self, id: str) -> list[Record]:
        """`{time (RFC 3339), level, message}`, oldest first. Raises InvalidTransferId."""
        with self._lock:
            self._level(id, "read")
            content = b""
            for name in ("log.1", "log"):
                with suppress(FileNotFoundError):
                    content += (self.folder / id / name).read_bytes()
        return [record for line in content.split(b"\n") if (record := records.decode(line)) is not None]

    def _append(self, path: Path, line: bytes, *, durable: bool) -> None:
        """Add a line to `path`; it gets half of the permitted bytes, `log.1` before it the other half."""
        if path.exists() and path.stat().st_size + len(line) >= self.max_bytes // 2:
            os.replace(path, path.with_name("log.1"))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                line = b"\n" + line
            os.write(fd, line)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        if not size:
            fsync_folder(path.parent)

    def _level(self, id: str, doing: str) -> Level:
        if id not in self._levels:
            raise InvalidTransferId(
                f"cannot {doing} the log of {str(id)[:64]!r}: there is none",
                hint="GetSwPackages lists the packages that there are",
            )
        return self._levels[id]

    def _now(self) -> str:
        return datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _check_level(level: int, *, lowest: Level) -> Level:
    if isinstance(level, bool) or level not in tuple(Level)[lowest:]:
        raise GeneralReject(f"cannot use the log level {str(level)[:32]}: levels are {lowest:d} to {Level.VERBOSE:d}")
    return Level(level)


def _read_level(folder: Path) -> Level:
    """The level that was set; info where a sudden end came before it was."""
    try:
        return Level(int((folder / "level").read_text()))
    except (FileNotFoundError, ValueError):
        return Level.INFO


def _age(folder: Path) -> float:
    """When the log was last used."""
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def _is_log(folder: Path) -> bool:
    return folder.is_dir() and _ID.fullmatch(folder.name) is not None
