"""One entry of a file tree: copied with everything that `cp -a` keeps, compared, and whole trees deleted."""

import errno
import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path

Signature = tuple[int, int, int, int, int, tuple[tuple[str, bytes], ...]]

PIECE = 1 << 20


def read_xattrs(path: Path | str) -> tuple[tuple[str, bytes], ...]:
    """The extended attributes (ACLs and capabilities too), sorted by name; none where the file system has none."""
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return ()
        raise
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def take_signature(path: Path, seen: os.stat_result) -> Signature:
    """What makes two entries look the same without reading them; a special file's device number counts as its size."""
    size = seen.st_size if stat.S_ISREG(seen.st_mode) or stat.S_ISLNK(seen.st_mode) else seen.st_rdev
    return (seen.st_mode, seen.st_uid, seen.st_gid, seen.st_mtime_ns, size, read_xattrs(path))


def is_same_file(one: Path, other: Path) -> bool:
    """Two regular files are equal: mode, owners, time, size, attributes AND content.

    Reproducible packages give all their files one time, so that time and size do not tell.
    """
    first, second = os.lstat(one), os.lstat(other)
    if not (stat.S_ISREG(first.st_mode) and stat.S_ISREG(second.st_mode)):
        return False
    if (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino):
        return True
    return take_signature(one, first) == take_signature(other, second) and has_same_content(one, other)


def copy_file(source: Path, target: Path) -> None:
    """Make the new file `target` a copy of the file `source`; holes stay, data is shared where it can be."""
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            _copy_content(reader, writer, os.fstat(reader).st_size)
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    copy_metadata(source, target)


def copy_other(source: Path, target: Path, seen: os.stat_result) -> None:
    """Make a symbolic link, a FIFO or a device like `source`; a socket is skipped (it is dead without its program)."""
    if stat.S_ISSOCK(seen.st_mode):
        return
    if stat.S_ISLNK(seen.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        os.mknod(target, stat.S_IFMT(seen.st_mode) | 0o600, seen.st_rdev)
    copy_metadata(source, target)


def copy_metadata(source: Path, target: Path | str) -> None:
    """Give `target` the owners, mode, extended attributes and times of `source`.

    Without root, an owner who is somebody else cannot be given; like `cp -a` that is no error, and set-id bits go.
    """
    seen, there = os.lstat(source), os.lstat(target)
    mode = stat.S_IMODE(seen.st_mode)
    if (seen.st_uid, seen.st_gid) != (there.st_uid, there.st_gid):
        try:
            os.chown(target, seen.st_uid, seen.st_gid, follow_symlinks=False)
        except PermissionError:
            if os.geteuid() == 0:
                raise
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
    # after chown, which takes security.capability away; before the mode, which may forbid it
    copy_xattrs(source, target)
    if not stat.S_ISLNK(seen.st_mode):
        _chmod(target, mode)
    os.utime(target, ns=(seen.st_atime_ns, seen.st_mtime_ns), follow_symlinks=False)


def delete_tree(path: Path) -> None:
    """Delete a file or a whole tree, its read-only directories too; nothing happens where there is none.

    OSError (EBUSY) before anything is deleted when a file system is mounted inside.
    """
    if not os.path.lexists(path):
        return
    refuse_mounts(path)
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    if os.geteuid() != 0:
        _open_folders(path)
    shutil.rmtree(path)


def refuse_mounts(path: Path) -> None:
    """OSError (EBUSY) when a file system is mounted at or inside `path`: its files are not ours to delete."""
    folder = os.fsencode(os.path.join(os.path.realpath(path.parent), path.name))
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        # blanks and the like are written as octal numbers
        point = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), line.split()[4])
        if point == folder or point.startswith(folder + b"/"):
            where = os.fsdecode(point)
            raise OSError(errno.EBUSY, f"cannot remove {path}: a file system is mounted there (umount it first)", where)


def has_same_content(one: Path, other: Path) -> bool:
    """Whether two regular files hold the same bytes."""
    with one.open("rb", buffering=0) as first, other.open("rb", buffering=0) as second:
        while True:
            left, right = first.read(PIECE), second.read(PIECE)
            if left != right:
                return False
            if not left:
                return True


def _copy_content(reader: int, writer: int, size: int) -> None:
    os.ftruncate(writer, size)
    start = 0
    while start < size:
        try:
            start = os.lseek(reader, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(reader, start, os.SEEK_HOLE)
        while start < end:
            done = _copy_piece(reader, writer, start, end - start)
            if done == 0:  # the source became shorter
                return
            start += done


def _copy_piece(reader: int, writer: int, start: int, count: int) -> int:
    try:
        return os.copy_file_range(reader, writer, count, start, start)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return os.pwrite(writer, os.pread(reader, min(count, PIECE), start), start)


def _chmod(target: Path | str, mode: int) -> None:
    """Never of what a link leads to: another user may have put one there since."""
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW)
    try:
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def copy_xattrs(source: Path, target: Path | str) -> None:
    """Give `target` exactly the extended attributes of `source`, as far as this user may."""
    wanted, there = dict(read_xattrs(source)), dict(read_xattrs(target))
    for name in there.keys() - wanted.keys():
        with _allow_other_owner():
            os.removexattr(target, name, follow_symlinks=False)
    for name, value in wanted.items():
        if there.get(name) != value:
            with _allow_other_owner():
                os.setxattr(target, name, value, follow_symlinks=False)


def _allow_other_owner() -> suppress:
    """security.* and trusted.* are root's; without root they are left out, like in `cp -a`."""
    return suppress(*([PermissionError] if os.geteuid() != 0 else []))


def _open_folders(path: Path) -> None:
    """Let ourselves into every folder of the tree, so that it can be emptied."""
    os.chmod(path, 0o700)
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            _open_folders(Path(entry.path))
