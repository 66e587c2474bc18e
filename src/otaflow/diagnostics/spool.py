"""The reports that wait to be sent: `nvm/diagnostics`, one file each, readable by its owner alone, oldest first.

A file is `NUMBER-TIME.report`, one guarded record (`otaflow.records`). Beyond the bounds the oldest go. A file that is
damaged cannot be sent: it is put aside as `NAME.damaged`, counts, and goes in its turn.
"""

import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from otaflow.files import fsync_folder, write_atomic
from otaflow.policy.store import Store, locked, put_aside
from otaflow.records import Record, decode, encode

log = logging.getLogger("otaflow.diagnostics")

MAX_REPORTS = 16
MAX_BYTES = 2 * 2**20
_NAME = re.compile(r"([0-9]{6})-[0-9TZ]+\.report(\.damaged)?")


def store_of(nvm: Path) -> Store:
    """The small file with the consent, and with the failures that were `seen` lately."""
    return Store(nvm / "policy" / "diagnostics")


class Spool:
    """The spool of the device whose non-volatile memory is `nvm`. Several processes may use it."""

    def __init__(self, nvm: Path, *, max_reports: int = MAX_REPORTS, max_bytes: int = MAX_BYTES) -> None:
        self.folder = nvm / "diagnostics"
        self.max_reports, self.max_bytes = max_reports, max_bytes
        self._lock = nvm / "policy" / "diagnostics-spool"

    def waiting(self) -> list[Path]:
        """The reports, the oldest first."""
        return [path for path in self._files() if path.suffix == ".report"]

    def add(self, report: Record, permitted: Callable[[], bool]) -> Path | None:
        """Keep `report` durably, unless it is not `permitted` any more; the oldest go where there are too many."""
        with locked(self._lock):
            if not permitted():
                return None
            if not self.folder.is_dir():
                self.folder.mkdir(mode=0o700)
                fsync_folder(self.folder.parent)
            self._remove_rests()
            time = re.sub(r"\.[0-9]+|[^0-9TZ]", "", str(report.get("time", "")))
            last = max((int(path.name[:6]) for path in self._files()), default=0)
            path = self.folder / f"{last + 1:06}-{time or '0'}.report"
            write_atomic(path, encode(report), 0o600)
            self._keep_bounds(path)
            return path

    def read(self, path: Path) -> bytes | None:
        """The report's JSON, as it is sent; None where it is gone, or damaged, which puts it aside."""
        try:
            line = path.read_bytes()
        except FileNotFoundError:
            return None
        if line.endswith(b"\n") and decode(line[:-1]) is not None:
            return line[:-1].partition(b" ")[2]
        with locked(self._lock):
            if path.exists():
                put_aside(path)
        return None

    def remove(self, path: Path) -> None:
        """Forget a report that was sent."""
        with locked(self._lock):
            path.unlink(missing_ok=True)
            fsync_folder(self.folder)

    def clear(self) -> int:
        """Remove everything, unsent; how many reports waited."""
        with locked(self._lock):
            if not self.folder.is_dir():
                return 0
            count = len(self.waiting())
            for path in self._files():
                path.unlink()
            self._remove_rests()
            fsync_folder(self.folder)
            return count

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """Only one process sends; False inside the block where another one does."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self.folder / ".sending", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(fd)

    def _files(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))
        except FileNotFoundError:
            return []

    def _keep_bounds(self, newest: Path) -> None:
        files = self._files()
        bytes_ = sum(path.stat().st_size for path in files)
        while files[0] != newest and (len(files) > self.max_reports or bytes_ > self.max_bytes):
            oldest = files.pop(0)
            log.warning("too many diagnostic reports wait: %s is removed unsent", oldest.name)
            bytes_ -= oldest.stat().st_size
            oldest.unlink()
        fsync_folder(self.folder)

    def _remove_rests(self) -> None:
        """What a power cut left of a report that was being written."""
        for path in self.folder.glob(".*.new"):
            path.unlink()
