"""A program: SQLite's online backup of one file into a new one.

`python sqlite_copy.py SOURCE TARGET LOCK_SECONDS DEVICE:INODE`, the last being what SOURCE was when looked at. It
is a process of its own because it reads the database as mapped memory, which saves a fifth of the time: where the disk
cannot be read, that is the end of the process (SIGBUS). The standard library is all it needs.
"""

import ctypes
import os
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

LOCKED = 75
"""The exit status when another program keeps the database locked."""
BEHIND_SECONDS = 0.1
MAPPED = 2**40
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE


def copy(source: Path, target: Path, lock_seconds: float, identity: tuple[int, int]) -> None:
    """Make the new file `target` a copy of the database; it is not synced. Raises sqlite3.Error, OSError."""
    with (
        closing(open_file(source, identity, lock_seconds)) as opened,
        closing(sqlite3.connect(target, isolation_level=None)) as made,
    ):
        opened.execute(f"PRAGMA mmap_size = {MAPPED}")
        # our own reading holds off what would make the backup begin again, and finds a lock: the backup itself would
        # wait for its end for ever
        opened.execute("BEGIN")
        opened.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        # no journal: a copy that is cut off is thrown away; and no cache of what is never read again
        for setting in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "cache_size = 10"):
            made.execute(f"PRAGMA {setting}")
        with _writing_behind(target):
            opened.backup(made)  # in one step: our own reading lasts all the time anyway
        if target.stat().st_size == 0:  # a database without any page is one all the same
            made.execute("PRAGMA user_version = 0")


def open_file(source: Path, identity: tuple[int, int], lock_seconds: float) -> sqlite3.Connection:
    """Open the database to write, which has to be this very file (device, inode). Raises sqlite3.Error, OSError.

    SQLite follows symbolic links, and another user may have put one there since the file was looked at.
    """
    # writable, since what a killed program left beside the database is to be taken in
    address = f"{source.as_uri()}?mode=rw"
    opened = sqlite3.connect(address, uri=True, timeout=lock_seconds, isolation_level=None)
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            seen = os.fstat(int(fd))
            if (seen.st_dev, seen.st_ino) == identity:
                return opened
    opened.close()
    raise OSError("another file took its place")


@contextmanager
def _writing_behind(target: Path) -> Iterator[None]:
    """Have the disk begin with what is written, in a thread: it waits there, and the fsync finds little left."""
    ended = threading.Event()

    def follow() -> None:
        with target.open("rb") as file, suppress(AttributeError):  # a C library without it: the fsync does it all
            while not ended.wait(BEHIND_SECONDS):
                ctypes.CDLL(None).sync_file_range(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), _START_WRITING)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def main() -> None:
    source, target, lock_seconds, identity = sys.argv[1:]
    device, inode = map(int, identity.split(":"))
    try:
        copy(Path(source), Path(target), float(lock_seconds), (device, inode))
    except (OSError, sqlite3.Error) as error:
        print(error, flush=True)
        locked = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        os._exit(LOCKED if locked else 1)


if __name__ == "__main__":
    main()
