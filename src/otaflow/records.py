"""Append-only files of JSON records: each line durable before the call returns, each guarded by a checksum.

A line is `CRC32 JSON`. Power that goes in the middle of a write leaves a torn last line: nothing had been promised
for it, so it is dropped. Damage anywhere else is an error, since something that was promised is lost.
"""

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from otaflow.errors import JournalCorrupt
from otaflow.files import fsync_folder, sync_file_system, write_atomic

Record = dict[str, Any]
RESERVE = "reserve"
"""`RESERVE-NUMBER` beside a file of records keeps room: on a full disk what is going on can be ended, or taken back."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def encode(record: Record) -> bytes:
    """The line of `record`, newline included."""
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=True, sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode(line: bytes) -> Record | None:
    """The record of a line, or None where the line is damaged."""
    checksum, _, text = line.partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(text):
            return None
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read(path: Path) -> tuple[list[Record], int]:
    """All records of the file and the length of its sound part in bytes; a missing file has none.

    Raises JournalCorrupt when a sound line follows a damaged one.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    records: list[Record] = []
    sound = position = 0
    damaged = 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        position += len(line)
        record = decode(line[:-1]) if line.endswith(b"\n") else None
        if record is None:
            damaged = damaged or number
        elif damaged:
            raise JournalCorrupt(
                f"cannot read {path}: line {damaged} is damaged and sound lines follow it",
                hint="keep a copy of the file and have the disk checked; `otaflow status` shows what can be read",
            )
        else:
            records.append(record)
            sound = position
    return records, sound


class RecordFile:
    """One append-only file. Several processes may append: each append is one write under a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Record]:
        """All records, oldest first. Raises JournalCorrupt."""
        return read(self.path)[0]

    def append(self, *records: Record, durable: bool = True) -> None:
        """Add `records` in one write; they are on the disk when this returns (unless not `durable`).

        On a full disk they take the room that is kept beside the file. OSError leaves the file as it was.
        """
        content = b"".join(encode(record) for record in records)
        try:
            self._append(content, durable)
        except OSError as error:
            if error.errno not in NO_ROOM or not give_up_reserve(self.path.parent):
                raise
            self._append(content, durable)

    def _append(self, content: bytes, durable: bool) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            new = os.fstat(fd).st_size == 0
            self._cut_torn_line(fd)
            end = os.lseek(fd, 0, os.SEEK_END)
            try:
                _write_all(fd, content)
                if durable:
                    os.fsync(fd)
            except OSError:  # what is not promised must not be read as if it were
                os.ftruncate(fd, end)
                raise
        finally:
            os.close(fd)
        if new:
            fsync_folder(self.path.parent)

    def replace(self, records: Iterable[Record]) -> None:
        """Start the file anew with `records`, atomically."""
        write_atomic(self.path, b"".join(encode(record) for record in records))

    def _cut_torn_line(self, fd: int) -> None:
        """Drop what a power cut left after the last sound line, or the next line would be glued to it."""
        size = os.fstat(fd).st_size
        if not size or (os.pread(fd, 1, size - 1) == b"\n" and _last_line_sound(fd, size)):
            return
        os.ftruncate(fd, read(self.path)[1])


def write_in_need(path: Path, content: bytes) -> None:
    """Replace `path` atomically; on a full disk by the room that is kept beside it. OSError."""
    try:
        write_atomic(path, content)
    except OSError as error:
        if error.errno not in NO_ROOM or not give_up_reserve(path.parent):
            raise
        write_atomic(path, content)


def give_up_reserve(folder: Path) -> bool:
    """Give the room back that is kept in `folder` for a full disk; whether there was any."""
    reserves = list(folder.glob(f"{RESERVE}-*"))
    for reserve in reserves:
        reserve.unlink(missing_ok=True)
    if reserves:
        with suppress(OSError):  # the write that follows says what is wrong
            sync_file_system(folder)  # on btrfs the room is there only then
    return bool(reserves)


def _last_line_sound(fd: int, size: int) -> bool:
    """Whether the last line is sound; a line longer than the window is looked at by the slow way."""
    window = os.pread(fd, 65536, max(0, size - 65536))
    start = window[:-1].rfind(b"\n") + 1
    if start == 0 and size > len(window):
        return False
    return decode(window[start:-1]) is not None


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
