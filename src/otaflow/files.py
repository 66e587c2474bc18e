"""Writing files so that a power cut leaves the old content or the new one, never a mixture."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(path: Path) -> None:
    """Return when all that was written to the file system of `path` is on the disk: syncfs(2)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "syncfs"):
            os.sync()
        elif libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot sync: {os.strerror(number)}", str(path))
    finally:
        os.close(fd)


def unfinished(path: Path) -> Path:
    """What a power cut in `write_atomic` may leave beside `path`, until that is written again."""
    return path.with_name(f".{path.name}.new")


def write_atomic(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `content`: new file, fsync, rename, fsync of the folder."""
    new = unfinished(path)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.fchmod(fd, mode)
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(fd)
    except OSError:
        with suppress(OSError):
            os.unlink(new)  # on a full disk it takes room
        raise
    finally:
        os.close(fd)
    os.replace(new, path)
    fsync_folder(path.parent)
