"""A folder that others may write in, held open: what is done in it happens there and nowhere else.

An application's own user may put a symbolic link in the place of any folder of its data, at any moment. So no name of
such a path is followed: each is opened below the one before it (O_NOFOLLOW), and the last stays open. Its path is
then `/proc/PID/fd/NUMBER`, which leads to that very folder whatever is renamed, for programs that are started too.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from otaflow.errors import DatabaseFailed
from otaflow.platform.copying import delete_tree

FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


@contextmanager
def hold_parent(path: Path, root: Path | None, *, make: bool = False) -> Iterator[Path]:
    """`path`, as long as the block lasts, in the folder that it is in now; `root` (its parent) and below are no links.

    With `make`, folders that are missing are made. DatabaseFailed names a link, FileNotFoundError a missing folder; an
    OSError of the block tells the path as it is known, and not the one in /proc.
    """
    root = path.parent if root is None else root
    names = _split(path, root)
    if make:
        root.mkdir(parents=True, exist_ok=True)
    fd = _walk(root, names, make=make)
    try:
        held = _in_proc(fd) / path.name
        if held.is_symlink():
            raise _refuse(path)
        with _naming(held.parent, path.parent):
            yield held
    finally:
        os.close(fd)


@contextmanager
def hold_private(held: Path) -> Iterator[Path]:
    """A new empty folder of that name, which nobody else may look into, deleted at the end; see `hold_parent`."""
    delete_tree(held)
    held.mkdir(mode=0o700)
    fd = open_folder(held)
    try:
        seen = os.fstat(fd)
        if seen.st_uid != os.geteuid() or stat.S_IMODE(seen.st_mode) & 0o077:
            raise PermissionError(errno.EPERM, "another one took the place of the new folder", str(held))
        yield _in_proc(fd)
    finally:
        os.close(fd)
        delete_tree(held)


def open_folder(name: str | Path, above: int | None = None) -> int:
    """Open the folder `name`, in the open folder `above`. NotADirectoryError when it is a symbolic link."""
    try:
        return os.open(name, FOLDER, dir_fd=above)
    except NotADirectoryError as error:
        if stat.S_ISLNK(os.lstat(name, dir_fd=above).st_mode):
            error.strerror = "it is a symbolic link"
        raise


def _walk(root: Path, names: tuple[str, ...], *, make: bool) -> int:
    """The number of the open folder `root/names`."""
    place = root
    try:
        fd = open_folder(root)
        for name in names:
            place, above = place / name, fd
            try:
                if make and not _is_there(name, above):
                    os.mkdir(name, dir_fd=above)
                fd = open_folder(name, above)
            finally:
                os.close(above)
    except NotADirectoryError as error:
        if place.is_symlink():
            raise _refuse(place) from error
        raise DatabaseFailed(f"cannot use {place}: it is no folder") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(place)) from error
    return fd


def _is_there(name: str, above: int) -> bool:
    try:
        os.lstat(name, dir_fd=above)
    except FileNotFoundError:
        return False
    return True


def _split(path: Path, root: Path) -> tuple[str, ...]:
    """The names between `root` and the parent of `path`."""
    names = path.relative_to(root).parts if path.is_relative_to(root) else ("..",)
    if ".." in names or not names:
        raise DatabaseFailed(f"cannot use {path}: it is not inside {root}")
    return names[:-1]


def _refuse(link: Path) -> DatabaseFailed:
    return DatabaseFailed(
        f"cannot use {link}: it is a symbolic link",
        hint="data is not looked for behind links; put the folder or file itself in its place",
    )


def _in_proc(fd: int) -> Path:
    return Path(f"/proc/{os.getpid()}/fd/{fd}")


@contextmanager
def _naming(held: Path, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        for name in ("filename", "filename2", "strerror"):
            if isinstance(said := getattr(error, name), str | bytes | Path):
                setattr(error, name, os.fsdecode(said).replace(str(held), str(folder)))
        raise
