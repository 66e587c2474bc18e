"""The two slots as two ext4 partitions: the spare one is made equal to the running one in place, file by file.

There is no third partition, so the former content is kept on the main partition, as a picture `root/.kept/KEPT` whose
files are hard links to the backup of the same system where they are the same. What is true of a slot is read from the
disk at any moment:

    .kept/.writing-SLOT says KEPT    .kept/KEPT is there    the slot holds
    no                               no                     its former content: nothing began, or it was put back
    yes                              no                     the same
    yes                              yes                    a mixture, without a label, or a whole content
    no                               yes                    its new content

The label goes first and comes last, each time on the disk before the next thing: who reads one reads a whole system.
"""

import os
from collections.abc import Callable
from pathlib import Path

from otaflow.errors import OtaflowError
from otaflow.files import fsync_file, fsync_folder, sync_file_system, unfinished, write_atomic
from otaflow.platform.copying import copy_file, copy_metadata, delete_tree
from otaflow.platform.ext4 import show_to_boot_loaders
from otaflow.platform.labels import FILE_NAME
from otaflow.platform.mirror import mirror
from otaflow.platform.partition import Partition
from otaflow.platform.protocols import Trees
from otaflow.platform.room import check_room, remove_extras
from otaflow.platform.slots import KEPT, check_kept, check_slot, make_kept, refuse_content

WRITING = ".writing-"
FULL = "give the main partition room: old packages and logs; `otaflow clean-up` ends backups whose retention is over"
SMALL = "the partition is too small for this system"


class PartitionSlots:
    """The Slots protocol (protocols.py) on two partitions.

    `find_picture` names, for a slot's content, a picture on the main partition that may be like it.
    """

    def __init__(
        self,
        root: Path,
        names: tuple[str, str],
        devices: tuple[Path, ...],
        trees: Trees,
        find_picture: Callable[[Path], Path | None] = lambda _: None,
    ) -> None:
        self._root, self._names = root, names
        self._partitions = {
            name: Partition(name, device, root / name) for name, device in zip(names, devices, strict=True)
        }
        self._trees, self._find_picture = trees, find_picture

    @property
    def names(self) -> tuple[str, str]:
        return self._names

    def path(self, slot: str) -> Path:
        return self._partition(slot).open()

    def place(self, slot: str) -> Path:
        partition = self._partition(slot)
        try:
            return partition.open()
        except OtaflowError:
            return partition.point

    def create(self, slot: str) -> None:
        refuse_content(slot, self._partition(slot).open_writable())

    def copy(self, source: str, target: str, kept: str) -> None:
        self.fill(self.path(source), target, kept)

    def fill(self, source: Path, target: str, kept: str) -> None:
        aside, content = self._aside(kept), self._partition(target).open_writable()
        if not source.is_dir():
            raise OtaflowError(f"cannot fill the slot {target!r} from {source}: there is no such tree")
        if aside.is_dir() and self._writing(target) != kept:
            return
        self._begin(target, kept)
        if not aside.is_dir():
            picture = self._find_picture(content)
            check_room(content, picture, aside.parent, f"cannot keep the former content of slot {target}", FULL)
            self._trees.freeze(content, aside, picture)
        if not os.path.samefile(source, content):
            self._write(source, target)
        self._end(target)

    def put_back(self, target: str, kept: str) -> None:
        aside = self._aside(kept)
        if aside.is_dir():
            self._begin(target, kept)
            self._write(aside, target)
        if self._writing(target) == kept:
            self._trees.remove(aside)
            self._end(target)
        if os.path.lexists(left := unfinished(self._marker(target))):  # else the disk need not be writable
            left.unlink()

    def forget(self, kept: str) -> None:
        self._trees.remove(self._aside(kept))
        for slot in self._names:
            if self._writing(slot) == kept:  # a content that is not whole has no label
                self._end(slot)

    def kept_names(self) -> list[str]:
        """All names under which something is kept, or was about to be."""
        folder = self._root / KEPT
        names = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()
        return sorted(names | {kept for kept in map(self._writing, self._names) if kept})

    def sync(self, slot: str) -> None:
        folder = self.path(slot)
        sync_file_system(folder)
        show_to_boot_loaders(folder)  # it loads the kernel from there

    def close(self) -> None:
        """Unmount what this object mounted."""
        for partition in self._partitions.values():
            partition.close()

    def _partition(self, slot: str) -> Partition:
        check_slot(slot, self._names)
        return self._partitions[slot]

    def _write(self, source: Path, target: str) -> None:
        """Make the slot exactly like the tree `source`; cut off at any moment, it has no label or is whole."""
        content = self._partition(target).open_writable()
        check_room(source, content, content, f"cannot fill slot {target}", SMALL)
        label = content / FILE_NAME
        delete_tree(label)
        fsync_folder(content)
        remove_extras(source, content)  # before anything is written: two systems at once may be too much
        mirror(source, content, but=FILE_NAME, each=False)
        if os.path.lexists(source / FILE_NAME):
            new = content / f"{FILE_NAME}.new"
            copy_file(source / FILE_NAME, new)
            fsync_file(new)
            os.replace(new, label)
            copy_metadata(source, content)
            fsync_folder(content)

    def _aside(self, kept: str) -> Path:
        return self._root / KEPT / check_kept(kept)

    def _begin(self, target: str, kept: str) -> None:
        """From now on the slot's content is not to be trusted."""
        other = self._writing(target)
        if other not in ("", kept) and self._aside(other).is_dir():
            raise OtaflowError(
                f"cannot change slot {target}: it is half written, and what was in it is kept as {other!r}",
                hint="`otaflow recover` puts it back",
            )
        make_kept(self._root)
        write_atomic(self._marker(target), kept.encode())

    def _end(self, target: str) -> None:
        self._marker(target).unlink()
        fsync_folder(self._root / KEPT)

    def _writing(self, target: str) -> str:
        """Under which name that is kept which is being written over, or nothing."""
        try:
            return self._marker(target).read_text()
        except FileNotFoundError:
            return ""

    def _marker(self, slot: str) -> Path:
        return self._root / KEPT / f"{WRITING}{slot}"
