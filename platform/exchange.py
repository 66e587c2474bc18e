"""Two names change places in one atomic step: renameat2 with RENAME_EXCHANGE, on btrfs, ext4, XFS and tmpfs."""

import ctypes
import os
from pathlib import Path

from otaflow.files import fsync_folder

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(one: Path, other: Path) -> None:
    """Let `one` and `other`, on the same file system, change places, durably. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))
    for folder in {one.parent, other.parent}:
        fsync_folder(folder)
