"""Putting a package's files over a tree: what changed is written, all else stays as it is."""

import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from otaflow.platform.copying import copy_file, copy_other, copy_xattrs, delete_tree, has_same_content

SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


def overlay(
    source: Path, target: Path, remove: Iterable[str] = (), *, before_each: Callable[[], None] = lambda: None
) -> None:
    """Make every file of the tree `source` a file of the tree `target`; `remove` names what of `target` goes.

    A file with the same content is not written: on btrfs it goes on sharing its data with the former version. A file
    that is replaced keeps its owners, its extended attributes (capabilities too) and its special mode bits; its
    permissions are the package's. `before_each` file it may be ended. OSError when a folder is to take a mount point's
    place.
    """
    for name in remove:
        # Through a link it would be something outside of the application.
        if not any((target / parent).is_symlink() for parent in Path(name).parents):
            delete_tree(target / name)
    _overlay_folder(source, target, before_each)


def _overlay_folder(source: Path, target: Path, before_each: Callable[[], None]) -> None:
    if target.is_symlink() or not target.is_dir():
        delete_tree(target)
        target.mkdir()
    with os.scandir(source) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        seen = entry.stat(follow_symlinks=False)
        one, other = Path(entry.path), target / entry.name
        before_each()
        if stat.S_ISDIR(seen.st_mode):
            _overlay_folder(one, other, before_each)
        elif stat.S_ISREG(seen.st_mode):
            _overlay_file(one, other, seen)
        else:
            delete_tree(other)
            copy_other(one, other, seen)
    _set_mode(target, stat.S_IMODE(source.stat().st_mode), os.lstat(target))


def _overlay_file(source: Path, target: Path, seen: os.stat_result) -> None:
    former = target.lstat() if os.path.lexists(target) else None
    if former is None or not stat.S_ISREG(former.st_mode):
        delete_tree(target)
        copy_file(source, target)
        return
    if former.st_size == seen.st_size and has_same_content(source, target):
        _set_mode(target, stat.S_IMODE(seen.st_mode), former)
        return
    # A new file, not new content in the old one: other names of it (hard links) are other files of the application.
    new = target.with_name(f".{target.name[:200]}.otaflow-new")
    delete_tree(new)
    copy_file(source, new)
    with suppress(*([] if os.geteuid() == 0 else [PermissionError])):
        os.chown(new, former.st_uid, former.st_gid)
    copy_xattrs(target, new)
    _set_mode(new, stat.S_IMODE(seen.st_mode), former)
    os.replace(new, target)


def _set_mode(path: Path, wanted: int, former: os.stat_result) -> None:
    mode = wanted & ~SPECIAL | stat.S_IMODE(former.st_mode) & SPECIAL
    if mode != stat.S_IMODE(path.lstat().st_mode):
        os.chmod(path, mode)
