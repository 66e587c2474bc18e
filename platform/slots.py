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

ABSENT = ".absent"


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
        if slot not in self._names:
            known = " and ".join(self._names)
            raise OtaflowError(f"cannot use the slot {slot!r}: the device has {known}")
        return self._root / slot

    def copy(self, source: str, target: str, kept: str) -> None:
        self.fill(self.path(source), target, kept)

    def fill(self, source: Path, target: str, kept: str) -> None:
        content, aside, marker = self.path(target), self._aside(kept), self._marker(kept)
        if source == content and (content.is_dir() or aside.is_dir()):
            source = aside  # the content goes on from what it is: what is kept is what is copied
        elif not source.is_dir():
            raise OtaflowError(f"cannot fill the slot {target!r} from {source}: there is no such tree")
        aside.parent.mkdir(parents=True, exist_ok=True)
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
        folder = self._root / ".kept"
        names = {path.name.removesuffix(ABSENT) for path in folder.iterdir()} if folder.is_dir() else set()
        return sorted(name for name in names if not name.startswith("."))

    def sync(self, slot: str) -> None:
        self._trees.sync(self.path(slot))

    def _aside(self, kept: str) -> Path:
        if not kept or kept.startswith(".") or "/" in kept or kept.endswith(ABSENT):
            raise OtaflowError(f"cannot keep a slot's content as {kept!r}: that is no plain name")
        return self._root / ".kept" / kept

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
