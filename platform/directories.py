"""Trees as plain directories, on any file system and without root: a clone costs a copy, a picture what changed."""

import os
import stat
from pathlib import Path

from otaflow.files import fsync_folder, sync_file_system
from otaflow.platform.copying import copy_file, copy_metadata, copy_other, delete_tree, is_same_file
from otaflow.platform.run import run

TIMEOUT = 3600.0

File = tuple[int, int]


class FolderTrees:
    """The Trees protocol (protocols.py) on plain directories."""

    def create(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def clone(self, source: Path, target: Path) -> None:
        if os.path.lexists(target):
            return
        new = prepare_new(target)
        copy_tree(source, new)
        publish(new, target)

    def freeze(self, source: Path, target: Path, base: Path | None = None) -> None:
        """Files that are in `base` unchanged become hard links to it, never to the source, which goes on changing.

        A picture is as writable as the source was: taking the modes away would change what is restored from it.
        """
        if os.path.lexists(target):
            return
        new = prepare_new(target)
        if base is None or not base.is_dir():
            copy_tree(source, new)
        else:
            _Picture().copy(source, new, base)
        publish(new, target)

    def remove(self, path: Path) -> None:
        remove_folder(path)

    def sync(self, path: Path) -> None:
        sync_file_system(path)


def hidden(path: Path, suffix: str) -> Path:
    """The name beside `path` for what is not whole yet (`.new`) or not whole any more (`.gone`)."""
    return path.with_name(f".{path.name}.{suffix}")


def prepare_new(target: Path) -> Path:
    """The free name to build `target` under; what a cut-off attempt left there is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = hidden(target, "new")
    delete_tree(new)
    return new


def publish(new: Path, target: Path) -> None:
    """Give the finished tree its name; its content is on the disk before, so that a power cut leaves no empty files."""
    sync_file_system(new)
    os.rename(new, target)
    fsync_folder(target.parent)


def copy_tree(source: Path, new: Path) -> None:
    """`cp -a` of one file system, sharing extents where it can."""
    command: list[str | Path] = [
        "cp",
        "-a",
        "--one-file-system",
        "--reflink=auto",
        "--no-target-directory",
        source,
        new,
    ]
    run(command, timeout=TIMEOUT)


def remove_folder(path: Path) -> None:
    """Remove the folder and what cut-off attempts left beside it; it is never half there under its own name."""
    gone = hidden(path, "gone")
    delete_tree(gone)
    delete_tree(hidden(path, "new"))
    if os.path.lexists(path):
        os.rename(path, gone)
        fsync_folder(path.parent)
        delete_tree(gone)


class _Picture:
    """One picture being made: which source file became which file, so that links inside the source stay links."""

    def __init__(self) -> None:
        self._made: dict[File, Path] = {}
        self._used: set[File] = set()

    def copy(self, source: Path, target: Path, base: Path) -> None:
        """Copy the folder `source`; `base` is the same folder in the earlier picture, and may be missing."""
        target.mkdir(mode=0o700)
        with os.scandir(source) as entries:
            for entry in entries:
                seen = entry.stat(follow_symlinks=False)
                self._copy_entry(Path(entry.path), target / entry.name, base / entry.name, seen)
        copy_metadata(source, target)

    def _copy_entry(self, source: Path, target: Path, base: Path, seen: os.stat_result) -> None:
        if stat.S_ISDIR(seen.st_mode):
            self.copy(source, target, base)
        elif not stat.S_ISREG(seen.st_mode):
            copy_other(source, target, seen)
        elif (made := self._made.get((seen.st_dev, seen.st_ino))) is not None:
            os.link(made, target)
        else:
            if not self._link_base(source, target, base):
                copy_file(source, target)
            if seen.st_nlink > 1:
                self._made[seen.st_dev, seen.st_ino] = target

    def _link_base(self, source: Path, target: Path, base: Path) -> bool:
        """Link to the earlier picture's file if it is the same; one of its files stands for one of the source's."""
        try:
            seen = os.lstat(base)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if (seen.st_dev, seen.st_ino) in self._used or not is_same_file(source, base):
            return False
        try:
            os.link(base, target)
        except OSError:  # too many links to it, another file system: a copy is as good
            return False
        self._used.add((seen.st_dev, seen.st_ino))
        return True
