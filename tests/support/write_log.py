"""What a machine wrote to its disk, in order, and what a power cut at any moment leaves of it.

qemu's blklogwrites writes the log, in the format of the kernel's dm-log-writes: a header, then for each entry a header
and, of a write, its data; each begins at a sector.
"""

import os
import random
import struct
from pathlib import Path
from typing import NamedTuple, Self

MAGIC = 0x6A736677736872
HEADER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")
FLUSH, FUA, DISCARD = 1, 2, 4
BLOCK = 4096
"""What a disk writes whole."""


class Write(NamedTuple):
    """A write of `length` bytes, at `place` in the log; a flush has none. `durable`: it is that by itself."""

    offset: int
    length: int
    place: int
    flushes: bool
    durable: bool


class WriteLog:
    """A log, read, to be closed: `entries` in their order. A moment is a number of entries that were made before it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        magic, _, _, sector = HEADER.unpack(self._file.read(HEADER.size))
        assert magic == MAGIC, f"{path} is no log of writes"
        self.entries: list[Write] = []
        size, place = path.stat().st_size, sector
        while place + ENTRY.size <= size:
            self._file.seek(place)
            start, count, flags, _ = ENTRY.unpack(self._file.read(ENTRY.size))
            if not (count or flags):
                break
            place += sector
            # what was given up holds anything afterwards, also what it held
            length = 0 if flags & DISCARD else count * sector
            self.entries.append(Write(start * sector, length, place, bool(flags & FLUSH), bool(flags & FUA)))
            place += length

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def data(self, entry: Write) -> bytes:
        """What was written."""
        self._file.seek(entry.place)
        return self._file.read(entry.length)

    def last_flush(self, moment: int) -> int:
        """All entries before this number are durable at `moment`."""
        return next((number for number in range(moment - 1, -1, -1) if self.entries[number].flushes), 0)

    def apply(self, image: Path, first: int, end: int) -> None:
        """Write the entries from number `first` up to `end` into the disk image."""
        with image.open("r+b") as disk:
            for entry in self.entries[first:end]:
                self._put(disk.fileno(), entry, entry.length)

    def apply_some(self, image: Path, first: int, end: int, chance: random.Random) -> None:
        """The same for what was not flushed: any part of it, the last piece of a write may be missing."""
        share = chance.choice([0.0, 0.5, 0.5, 1.0])
        with image.open("r+b") as disk:
            for entry in self.entries[first:end]:
                if entry.durable or chance.random() < share:
                    torn = not entry.durable and share < 1 and entry.length > BLOCK and chance.random() < 0.3
                    blocks = chance.randrange(1, entry.length // BLOCK) if torn and entry.length >= 2 * BLOCK else 0
                    self._put(disk.fileno(), entry, blocks * BLOCK or entry.length)

    def _put(self, disk: int, entry: Write, length: int) -> None:
        if length:
            os.pwrite(disk, self.data(entry)[:length], entry.offset)
