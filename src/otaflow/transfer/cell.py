"""One small record that is changed in place, durably, and without needing room that may be gone.

The file has two slots of one disk block each. A change goes into the slot that does not hold the present record; a
write that power or SIGKILL cuts leaves the other slot as it was. Sound slots are told by their checksum, the newer one
by its `sequence`.
"""

import errno
import os
from pathlib import Path

from otaflow import records
from otaflow.records import Record

SLOT_BYTES = 4096


class Damaged(Exception):
    """Neither slot holds a sound record: the disk lost what had been durable."""


class Cell:
    """The file `path` and the record in it. One writer at a time."""

    def __init__(self, path: Path, record: Record) -> None:
        self.path = path
        self.record = record

    @classmethod
    def create(cls, path: Path, record: Record) -> "Cell":
        """A new file with `record`, durable; its name is not, until the folder is."""
        record = record | {"sequence": 0}
        with path.open("xb") as file:
            file.write(_encode(record) + bytes(SLOT_BYTES))
            file.flush()
            os.fsync(file.fileno())
        return cls(path, record)

    @classmethod
    def open(cls, path: Path) -> "Cell":
        """The cell in `path`. Raises Damaged, OSError."""
        content = path.read_bytes()
        slots = [_decode(content[start : start + SLOT_BYTES]) for start in (0, SLOT_BYTES)]
        sound = [record for record in slots if record is not None]
        if not sound:
            raise Damaged(f"{path}: neither slot is sound")
        return cls(path, max(sound, key=lambda record: int(record["sequence"])))

    def write(self, **changes: object) -> None:
        """Change these values; all are durable when this returns, or none is changed (OSError)."""
        record = self.record | changes | {"sequence": self.record["sequence"] + 1}
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.pwrite(fd, _encode(record), SLOT_BYTES * (record["sequence"] % 2)) != SLOT_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fdatasync(fd)
        finally:
            os.close(fd)
        self.record = record


def _encode(record: Record) -> bytes:
    line = records.encode(record)
    if len(line) > SLOT_BYTES:
        raise ValueError(f"a record of {len(line)} bytes does not fit into a slot of {SLOT_BYTES}")
    return line.ljust(SLOT_BYTES, b"\0")


def _decode(slot: bytes) -> Record | None:
    record = records.decode(slot.partition(b"\n")[0])
    return record if record is not None and "sequence" in record else None
