"""The history: what was done to this device and how it ended, for ever.

One record for each action's end: `time` (RFC 3339), `name`, `version`, `action`, `resolution`, and `error`, `why`,
`from_version`, `update_number`, `backup`, `session`. The names are the UCM interface's (GetHistory).
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from otaflow.errors import JournalCorrupt
from otaflow.files import write_atomic
from otaflow.journal import now
from otaflow.records import Record, RecordFile, decode, encode

log = logging.getLogger(__name__)

ACTIVATED = "kActivated"
ROLLED_BACK = "kActivatedAndRolledBack"
VERIFICATION_FAILED = "kVerificationFailed"
FAILED = "kFailed"

BOOT = "Boot"
"""The action of a record about a slot that was to start and did not, while nothing was going on."""


class History:
    """The history file, kept in the device's non-volatile memory."""

    def __init__(self, path: Path) -> None:
        self.file = RecordFile(path)

    def read(self) -> list[Record]:
        """All records, oldest first. Raises JournalCorrupt."""
        return self.file.read()

    def add(self, *, key: str = "", **fields: Any) -> None:
        """Record an end, once: the same `key` (session and action) again is a repetition after a power cut."""
        with self._locked():
            if key and any(record.get("key") == key for record in self._mend()):
                return
            record = {name: value for name, value in fields.items() if value not in ("", None)}
            self.file.append({"time": now(), "key": key} | record)

    def mend(self) -> list[Record]:
        """All records. A damaged file is kept as `NAME.damaged`; its sound lines go on, and a record says what is lost.

        That record's `lost` is the number of lines.
        """
        try:
            return self.file.read()
        except JournalCorrupt:
            with self._locked():
                return self._mend()

    def last(self) -> Record | None:
        """The newest record."""
        records = self.read()
        return records[-1] if records else None

    def _mend(self) -> list[Record]:
        path = self.file.path
        try:
            return self.file.read()
        except JournalCorrupt:
            damaged = path.read_bytes()
        aside = path.with_name(f"{path.name}.damaged")
        lines = damaged.splitlines()
        sound = [record for line in lines if (record := decode(line)) is not None]
        lost = len(lines) - len(sound)
        why = f"{lost} of {len(lines)} lines of the history were damaged, and are lost; {aside} is what it was"
        log.error("%s", why)
        write_atomic(aside, damaged)
        alarm = {"time": now(), "key": "", "name": path.name, "version": "unknown", "action": "CleanUp"}
        self.file.replace([*sound, alarm | {"resolution": FAILED, "error": "JournalCorrupt", "why": why, "lost": lost}])
        return self.file.read()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else adds or mends meanwhile: the lock is the folder's, as the file may be replaced."""
        fd = os.open(self.file.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def place_of(records: list[Record]) -> Record:
    """How far somebody has read, for `find_unknown`: how many records, and which is the last."""
    return {"count": len(records), "last": _name(records[-1]) if records else ""}


def find_unknown(records: list[Record], place: Record) -> int:
    """The index of the first record behind `place`, also where lines before it are lost."""
    count, last = int(place["count"]), place.get("last", "")
    if count <= len(records) and (not last or (count and _name(records[count - 1]) == last)):
        return count
    for index in range(len(records) - 1, -1, -1):
        if _name(records[index]) == last:
            return index + 1
    lost = next((int(record["lost"]) for record in reversed(records) if "lost" in record), 0)
    return max(0, min(count, len(records)) - lost)


def _name(record: Record) -> str:
    """What tells one record from the others."""
    return encode(record)[:8].decode()
