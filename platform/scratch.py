"""Temporary trees: on btrfs subvolumes, which go at once whatever is in them; elsewhere plain folders.

Where a device's slots are subvolumes its cache may still be on another disk, so it is tried and not asked.
"""

import os
from pathlib import Path

from otaflow.errors import CommandFailed
from otaflow.platform.btrfs import SUBVOLUME_INODE, BtrfsTrees
from otaflow.platform.copying import delete_tree


def make_scratch(path: Path, *, subvolume: bool) -> None:
    """Make the empty folder `path` (mode 0700), and those above it; as a `subvolume` where that is possible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if subvolume:
        try:
            BtrfsTrees().create(path)
        except CommandFailed:  # the cache is on another disk
            pass
        else:
            path.chmod(0o700)
            return
    path.mkdir(mode=0o700)


def remove_scratch(path: Path) -> None:
    """Remove a folder of `make_scratch`, or what is left of it; nothing happens where none is."""
    if _is_subvolume(path):
        BtrfsTrees().remove(path)
    else:
        delete_tree(path)


def _is_subvolume(path: Path) -> bool:
    """Other file systems have an inode of that number too, but not on a device of its own below their folders."""
    try:
        seen = os.lstat(path)
    except FileNotFoundError:
        return False
    return seen.st_ino == SUBVOLUME_INODE and seen.st_dev != os.stat(path.parent).st_dev
