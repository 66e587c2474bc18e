"""The two slots as trees `root/NAME`; former contents are kept as `root/.kept/KEPT`, on the same file system.

A kept content is moved, not copied: the spare slot's former tree is renamed aside, then the copy takes its place.
Where there was no former content, the file `.kept/KEPT.absent` says so, written before anything changes. So what `copy`
did is read from the disk at any moment: a kept tree or a marker means it began, neither means it never did.
"""

import os
from pathlib import Path

from otaflow.errors import OtaflowError
from otaflow.files import fsync_folder, write_atomic
from otaflow.platform.protocols import Trees

KEPT = ".kept"
ABSENT = ".absent"
LOST_AND_FOUND = "lost+found"


class TreeSlots:
    """The Slots protocol (protocols.py) over trees of any kind."""

    def __init__(self, root: Path, names: tuple[str, str], trees: Trees) -> None:
        self._root = root
        self._names = names
        self._trees = trees

    @property
    def names(self) -> tuple[str, str]:
        return self._names

    def path(self, slot: str) -> Path:
        return self.place(slot)

    def place(self, slot: str) -> Path:
        check_slot(slot, self._names)
        return self._root / slot

    def create(self, slot: str) -> None:
        content = self.path(slot)
        if os.path.lexists(content):
            refuse_content(slot, content)
            content.rmdir()  # an empty folder is no subvolume
        self._trees.create(content)

    def copy(self, source: str, target: str, kept: str) -> None:
        self.fill(self.path(source), target, kept)

    def fill(self, source: Path, target: str, kept: str) -> None:
        content, aside, marker = self.path(target), self._aside(kept), self._marker(kept)
        if source == content and (content.is_dir() or aside.is_dir()):
            source = aside  # the content goes on from what it is: what is kept is what is copied
        elif not source.is_dir():
            raise OtaflowError(f"cannot fill the slot {target!r} from {source}: there is no such tree")
        make_kept(self._root)
        if not aside.exists() and not marker.exists():
            if os.path.lexists(content):
                self._move(content, aside)
            else:
                write_atomic(marker, b"")
        self._trees.clone(source, content)

    def put_back(self, target: str, kept: str) -> None:
        content, aside, marker = self.path(target), self._aside(kept), self._marker(kept)
        if aside.exists():
            self._trees.remove(content)
            self._move(aside, content)
        elif marker.exists():
            self._trees.remove(content)
            fsync_folder(self._root)
            self._unmark(marker)

    def forget(self, kept: str) -> None:
        self._trees.remove(self._aside(kept))
        self._unmark(self._marker(kept))

    def kept_names(self) -> list[str]:
        """All names under which something is kept, also that there was nothing."""
        folder = self._root / KEPT
        names = {path.name.removesuffix(ABSENT) for path in folder.iterdir()} if folder.is_dir() else set()
        return sorted(name for name in names if not name.startswith("."))

    def sync(self, slot: str) -> None:
        self._trees.sync(self.path(slot))

    def _aside(self, kept: str) -> Path:
        return self._root / KEPT / check_kept(kept)

    def _marker(self, kept: str) -> Path:
        return self._aside(kept).with_name(f"{kept}{ABSENT}")

    def _move(self, source: Path, target: Path) -> None:
        os.rename(source, target)
        fsync_folder(target.parent)
        fsync_folder(source.parent)

    def _unmark(self, marker: Path) -> None:
        if marker.exists():
            marker.unlink()
            fsync_folder(marker.parent)


def check_slot(slot: str, names: tuple[str, str]) -> None:
    """OtaflowError when the device has no such slot."""
    if slot not in names:
        raise OtaflowError(f"cannot use the slot {slot!r}: the device has {' and '.join(names)}")


def make_kept(root: Path) -> None:
    """Make the folder of what is kept, durably: what is written into it must not be lost with it."""
    folder = root / KEPT
    if not folder.is_dir():
        folder.mkdir(parents=True)
        fsync_folder(root)


def check_kept(kept: str) -> str:
    """The name under which a content is kept. OtaflowError when it is no plain one."""
    if not kept or kept.startswith(".") or "/" in kept or kept.endswith(ABSENT):
        raise OtaflowError(f"cannot keep a slot's content as {kept!r}: that is no plain name")
    return kept


def refuse_content(slot: str, content: Path) -> None:
    """OtaflowError when something is in the slot's tree."""
    if content.is_symlink() or not content.is_dir() or set(os.listdir(content)) - {LOST_AND_FOUND}:
        raise OtaflowError(
            f"cannot make a device: slot {slot} ({content}) is there already",
            hint="name another folder, or remove what is in it if that may go",
        )
