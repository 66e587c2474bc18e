"""A whole tree as plain values, to compare trees: names, types, modes, owners, contents, links, attributes."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from otaflow.platform.copying import read_xattrs

KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFSOCK: "socket",
}


def describe(path: Path, *, times: bool = False) -> dict[str, tuple[Any, ...]]:
    """Every entry of the tree by its relative name ("." is the tree itself); {} where there is none.

    A value is (kind, mode, uid, gid, xattrs, what), `what` being (size, sha256, first name of the same file) of a file,
    the target of a link, the number of a device. With `times` the modification time (ns) comes last.
    """
    entries: dict[str, tuple[Any, ...]] = {}
    if os.path.lexists(path):
        _describe_entry(path, ".", entries, {}, times)
    return entries


def tree_digest(path: Path, *, times: bool = False) -> str:
    """One sha256 of all that `describe` says."""
    return hashlib.sha256(repr(sorted(describe(path, times=times).items())).encode()).hexdigest()


def _describe_entry(
    path: Path, name: str, entries: dict[str, tuple[Any, ...]], first: dict[tuple[int, int], str], times: bool
) -> None:
    seen = os.lstat(path)
    kind = KINDS[stat.S_IFMT(seen.st_mode)]
    what: Any = None
    if kind == "file":
        what = (seen.st_size, hash_file(path), first.setdefault((seen.st_dev, seen.st_ino), name))
    elif kind == "link":
        what = os.readlink(path)
    elif "device" in kind:
        what = seen.st_rdev
    value = (kind, stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid, read_xattrs(path), what)
    entries[name] = (*value, seen.st_mtime_ns) if times else value
    if kind == "folder":
        for child in sorted(os.listdir(path)):
            _describe_entry(path / child, child if name == "." else f"{name}/{child}", entries, first, times)


def hash_file(path: Path) -> str:
    """The file's sha256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
