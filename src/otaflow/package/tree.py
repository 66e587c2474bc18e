"""Writing a new tree below one folder descriptor: nothing is ever followed, nothing is ever replaced.

Every call is relative to the open descriptor of the folder it is in (openat with O_NOFOLLOW, O_EXCL, mkdirat,
symlinkat). Names must have passed `names.check_name`. Nothing is fsynced: the tree is temporary.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OWNER = 0o700


class Tree:
    """A tree being written. The descriptors of the folders from the root to the last one used stay open."""

    def __init__(self, root: Path) -> None:
        self._open: list[tuple[str, int]] = [("", os.open(root, _FOLDER))]
        self._later: list[tuple[str, int]] = []

    def __enter__(self) -> "Tree":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            os.close(self._open.pop()[1])

    def room(self) -> os.statvfs_result:
        """The room on the file system that the tree is on."""
        return os.fstatvfs(self._open[0][1])

    def make_folder(self, name: str, mode: int) -> None:
        """Make the folder `name`. A mode that would keep us from writing into it is set by `finish`."""
        folder, last = self._split(name)
        os.mkdir(last, _OWNER, dir_fd=folder)
        if mode & _OWNER != _OWNER:
            self._later.append((name, mode))
            mode = _OWNER
        os.chmod(last, mode, dir_fd=folder)

    def make_file(self, name: str, mode: int, chunks: Iterator[memoryview], wrote: Callable[[int], None]) -> str:
        """Write the file `name` and return its SHA-256 in hex. `wrote` is called with the length of each chunk."""
        folder, last = self._split(name)
        digest = hashlib.sha256()
        fd = os.open(last, _NEW_FILE, 0o600, dir_fd=folder)
        try:
            for chunk in chunks:
                digest.update(chunk)
                _write(fd, chunk)
                wrote(len(chunk))
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
        return digest.hexdigest()

    def make_link(self, name: str, target: str) -> None:
        """Make the symbolic link `name`; it is never followed."""
        folder, last = self._split(name)
        os.symlink(target, last, dir_fd=folder)

    def finish(self) -> None:
        """Give the folders the modes that had to wait, the deepest ones first."""
        for name, mode in sorted(self._later, reverse=True):
            folder, last = self._split(name)
            os.chmod(last, mode, dir_fd=folder)

    def _split(self, name: str) -> tuple[int, str]:
        """The open descriptor of the folder that `name` is in, and its name there."""
        folder, _, last = name.rpartition("/")
        return self._folder(folder), last

    def _folder(self, name: str) -> int:
        """The descriptor of the folder `name`, opened part by part from the nearest one that is open."""
        while (top := self._open[-1])[0] != name:
            if not top[0] or name.startswith(top[0] + "/"):
                rest = name[len(top[0]) + 1 :] if top[0] else name
                part = rest.partition("/")[0]
                self._open.append((f"{top[0]}/{part}" if top[0] else part, os.open(part, _FOLDER, dir_fd=top[1])))
            else:
                os.close(self._open.pop()[1])
        return top[1]


def _write(fd: int, chunk: memoryview) -> None:
    """Write all of `chunk`."""
    done = os.write(fd, chunk)
    while done < len(chunk):
        done += os.write(fd, chunk[done:])
