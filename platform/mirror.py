"""Make a folder exactly like another one, in place: the way back for what cannot be exchanged as a whole.

Each file is replaced atomically and durably, unchanged ones are not touched, and a run that was cut off is simply
repeated. At the end the trees are equal as `describe` sees them, and the folders' times too.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

from otaflow.files import fsync_file, sync_file_system
from otaflow.platform.copying import copy_file, copy_metadata, copy_other, delete_tree, is_same_file, take_signature
from otaflow.platform.describe import describe, tree_digest
from otaflow.platform.held import open_folder

__all__ = ["describe", "mirror", "tree_digest"]

File = tuple[int, int]


def mirror(source: Path, target: Path, *, but: str = "", each: bool = True) -> None:
    """Make the folder `target`, which may be a mount point, exactly like the folder `source`.

    It may be no symbolic link, and none inside is followed, whoever puts one there meanwhile. OSError there, and where
    an entry that has to go is a mount point, or cannot be written; then it is repeated. The entry `but` of the folder
    itself is left alone on both sides. Without `each`, files are on the disk at the end only, all of them: for a target
    that nobody may use before.
    """
    if not source.is_dir():
        raise NotADirectoryError(f"cannot mirror {source}: it is no folder")
    if not target.is_symlink():
        target.mkdir(parents=True, exist_ok=True)
    fd = open_folder(target)
    try:
        _Mirror(fd, but, each=each).make_folder(source, fd, ())
        sync_file_system(Path(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


class _Mirror:
    """One run: which source file is which target file, so that exactly the source's hard links are in the target."""

    def __init__(self, top: int, but: str, *, each: bool) -> None:
        self._top, self._but, self._each = top, but, each
        self._made: dict[File, tuple[str, ...]] = {}
        self._used: dict[File, File] = {}

    def make_folder(self, source: Path, fd: int, names: tuple[str, ...]) -> None:
        """`fd` is the open folder that is to be like `source`, and `names` lead to it from the top."""
        target = Path(f"/proc/{os.getpid()}/fd/{fd}")
        if os.geteuid() != 0:
            os.chmod(target, 0o700)
        wanted = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(source)}
        left_alone = {self._but} if not names else set()
        for extra in set(os.listdir(target)) - wanted.keys() - left_alone:
            delete_tree(target / extra)
        new = target / ".otaflow-new"
        while new.name in wanted:
            new = target / f"{new.name}~"
        for name, seen in sorted((name, seen) for name, seen in wanted.items() if name not in left_alone):
            if stat.S_ISDIR(seen.st_mode):
                if (target / name).is_symlink() or not (target / name).is_dir():
                    delete_tree(target / name)
                    (target / name).mkdir(mode=0o700)
                self._make_inner(source / name, fd, (*names, name))
            elif stat.S_ISREG(seen.st_mode):
                self._make_file(source / name, target / name, seen, new, names)
            else:
                self._make_other(source / name, target / name, seen, new)
        copy_metadata(source, f"{target}/.")

    def _make_inner(self, source: Path, above: int, names: tuple[str, ...]) -> None:
        fd = open_folder(names[-1], above)
        try:
            self.make_folder(source, fd, names)
        finally:
            os.close(fd)

    def _make_file(self, source: Path, target: Path, seen: os.stat_result, new: Path, names: tuple[str, ...]) -> None:
        """The file is right if it is the same, and linked to what the source's is linked to."""
        identity = (seen.st_dev, seen.st_ino)
        first = self._made.get(identity)
        if first is not None:
            self._link(first, target, new)
            return
        if not self._is_right(source, target, identity):
            copy_file(source, new)
            if self._each:
                fsync_file(new)
            _replace(new, target)
        made = os.lstat(target)
        self._used[made.st_dev, made.st_ino] = identity
        self._made[identity] = (*names, target.name)

    def _link(self, first: tuple[str, ...], target: Path, new: Path) -> None:
        """Its folder is not open any more: thousands may have such files."""
        fd = self._open(first[:-1])
        try:
            made = Path(f"/proc/self/fd/{fd}", first[-1])
            if not (os.path.lexists(target) and os.path.samestat(os.lstat(made), os.lstat(target))):
                os.link(made, new)
                _replace(new, target)
        finally:
            os.close(fd)

    def _open(self, names: tuple[str, ...]) -> int:
        fd = os.dup(self._top)
        for name in names:
            above = fd
            try:
                fd = open_folder(name, above)
            finally:
                os.close(above)
        return fd

    def _is_right(self, source: Path, target: Path, identity: File) -> bool:
        try:
            there = os.lstat(target)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) not in self._used and is_same_file(source, target)

    def _make_other(self, source: Path, target: Path, seen: os.stat_result, new: Path) -> None:
        if stat.S_ISSOCK(seen.st_mode):
            delete_tree(target)
        elif not _is_same_other(source, target, seen):
            copy_other(source, new, seen)
            _replace(new, target)


def _is_same_other(source: Path, target: Path, seen: os.stat_result) -> bool:
    """Two links, FIFOs or devices are the same."""
    with suppress(FileNotFoundError):
        if take_signature(source, seen) != take_signature(target, os.lstat(target)):
            return False
        return not stat.S_ISLNK(seen.st_mode) or os.readlink(source) == os.readlink(target)
    return False


def _replace(new: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        delete_tree(target)
    os.replace(new, target)
