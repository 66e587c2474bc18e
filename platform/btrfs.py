"""Trees as btrfs subvolumes: clones and pictures are snapshots, so their price does not depend on the tree's size.

Root is needed. A subvolume inside a subvolume is not part of its snapshot (btrfs makes an empty folder of it).
"""

import os
from pathlib import Path

from otaflow.errors import CommandFailed
from otaflow.files import fsync_folder, sync_file_system
from otaflow.platform.copying import delete_tree, refuse_mounts
from otaflow.platform.directories import hidden, remove_folder
from otaflow.platform.run import Completed, run

TIMEOUT = 600.0
SUBVOLUME_INODE = 256  # the root folder of every subvolume; no folder inside one has it


class BtrfsTrees:
    """The Trees protocol (protocols.py) on btrfs."""

    def create(self, path: Path) -> None:
        if os.path.lexists(path):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _btrfs("subvolume", "create", path)

    def clone(self, source: Path, target: Path) -> None:
        self._copy(source, target)

    def freeze(self, source: Path, target: Path, base: Path | None = None) -> None:
        """`base` is not needed: a snapshot shares everything that did not change anyway."""
        self._copy(source, target, read_only=True)

    def remove(self, path: Path) -> None:
        for rest in (hidden(path, "new"), hidden(path, "gone"), path):
            if os.path.lexists(rest):
                _remove(rest)

    def sync(self, path: Path) -> None:
        """syncfs(2) commits the transaction, as `btrfs filesystem sync` does, without starting a program."""
        sync_file_system(path)

    def _copy(self, source: Path, target: Path, *, read_only: bool = False) -> None:
        if os.path.lexists(target):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        new = hidden(target, "new")
        if os.path.lexists(new):
            _remove(new)
        if is_subvolume(source):
            _btrfs("subvolume", "snapshot", *(["-r"] if read_only else []), source, new)
        else:
            _copy_folder(source, new, read_only=read_only)
        os.rename(new, target)
        fsync_folder(target.parent)


def is_subvolume(path: Path) -> bool:
    """Whether the folder `path`, on a btrfs, is the root of a subvolume."""
    return not path.is_symlink() and path.is_dir() and os.stat(path).st_ino == SUBVOLUME_INODE


def _copy_folder(source: Path, new: Path, *, read_only: bool) -> None:
    """A plain folder cannot be snapshotted: its files go into a new subvolume, data shared where it can be."""
    _btrfs("subvolume", "create", new)
    copy: list[str | Path] = ["cp", "-a", "--one-file-system", "--reflink=auto", "--no-target-directory", source, new]
    run(copy, timeout=TIMEOUT)
    sync_file_system(new)
    if read_only:
        _btrfs("property", "set", new, "ro", "true")


def _remove(path: Path) -> None:
    """Remove a subvolume with those nested in it, or a plain folder."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    refuse_mounts(path)
    if is_subvolume(path):
        try:
            _btrfs("subvolume", "delete", path)
        except CommandFailed:
            if not (nested := _find_nested(path)):
                raise
            for folder in (path, *reversed(nested)):  # from a read-only one nothing can be taken
                _btrfs("property", "set", "-f", folder, "ro", "false")
            _btrfs("subvolume", "delete", *nested, path)
        return
    if nested := _find_nested(path):
        _btrfs("subvolume", "delete", *nested)
    remove_folder(path) if not path.name.endswith((".gone", ".new")) else delete_tree(path)


def _find_nested(path: Path) -> list[Path]:
    """The subvolumes inside the tree `path`, the deepest first."""
    found = [Path(top) for top, _, _ in os.walk(path) if is_subvolume(Path(top)) and Path(top) != path]
    return found[::-1]


def _btrfs(*arguments: str | Path) -> Completed:
    return run(["btrfs", *arguments], timeout=TIMEOUT)
