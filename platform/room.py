"""Whether a tree fits where it is to be written, before anything of it is."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from otaflow.errors import InsufficientMemory
from otaflow.platform.copying import delete_tree

BLOCK = 4096


@dataclass(frozen=True)
class Room:
    """Bytes and files."""

    size: int = 0
    files: int = 0

    def __add__(self, other: "Room") -> "Room":
        return Room(self.size + other.size, self.files + other.files)


def check_room(source: Path, base: Path | None, where: Path, what: str, hint: str) -> None:
    """InsufficientMemory where the file system of `where` has no room for the tree `source`.

    What is in the tree `base` already needs none. With `base` at `where`, what of it goes gives room. Files are told
    by what `stat` says of them: where it says too little (one time for all), the disk may still become full.
    """
    base = base if base is not None and base.is_dir() else None
    new, there = _weigh(source, base), os.statvfs(where)
    free = Room(there.f_bavail * there.f_frsize, there.f_ffree)
    if not _fits(new, free, there) and base is not None and os.path.samefile(base, where):
        free = Room(there.f_bfree * there.f_frsize, there.f_ffree) + _weigh(base, source)
    if not _fits(new, free, there):
        if new.size > free.size:
            takes, room = f"{new.size / 10**6:.1f} MB", f"{free.size / 10**6:.1f} MB"
        else:
            takes, room = f"{new.files} files", f"{free.files} files"
        raise InsufficientMemory(f"{what}: it takes {takes} more, and {where} has room for {room}", hint=hint)


def _fits(new: Room, free: Room, there: os.statvfs_result) -> bool:
    """A file system that makes inodes as it needs them has no number of them."""
    return new.size <= free.size and (new.files <= free.files or not there.f_files)


def remove_extras(source: Path, target: Path) -> None:
    """Remove what is in the tree `target` and not, or as something else, in the tree `source`."""
    for entry in list(os.scandir(target)):
        wanted = _stat(source / entry.name)
        if wanted is None or stat.S_IFMT(wanted.st_mode) != stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode):
            delete_tree(Path(entry.path))
        elif entry.is_dir(follow_symlinks=False):
            remove_extras(source / entry.name, Path(entry.path))


def _weigh(tree: Path, other: Path | None) -> Room:
    """What is in `tree` and not the same in `other`."""
    found, seen_files = Room(), set[int]()
    folders = [(tree, other)]
    while folders:
        folder, beside = folders.pop()
        for entry in os.scandir(folder):
            seen = entry.stat(follow_symlinks=False)
            there = _stat(beside / entry.name) if beside is not None else None
            if stat.S_ISDIR(seen.st_mode):
                is_folder = there is not None and stat.S_ISDIR(there.st_mode)
                folders.append((Path(entry.path), beside / entry.name if beside is not None and is_folder else None))
                found += Room() if is_folder else Room(BLOCK, 1)
            elif not (there is not None and _looks_same(seen, there)) and seen.st_ino not in seen_files:
                found += Room(_blocks(seen), 1)
                seen_files.add(seen.st_ino)
    return found


def _looks_same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_mode, one.st_uid, one.st_gid, one.st_size, one.st_mtime_ns) == (
        *(other.st_mode, other.st_uid, other.st_gid, other.st_size, other.st_mtime_ns),
    )


def _blocks(seen: os.stat_result) -> int:
    """What a copy of a file takes: holes stay holes, and a short link is in its inode."""
    if not stat.S_ISREG(seen.st_mode):
        return 0
    size = -(-seen.st_size // BLOCK) * BLOCK
    return min(size, seen.st_blocks * 512) if seen.st_blocks * 512 < seen.st_size else size


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
