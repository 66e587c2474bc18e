"""Two slots of each kind, as a test or a process that a test starts has them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from otaflow.platform.btrfs import BtrfsTrees
from otaflow.platform.directories import FolderTrees
from otaflow.platform.fake import FakeTrees
from otaflow.platform.ostree import OstreeSlots
from otaflow.platform.partitions import PartitionSlots
from otaflow.platform.protocols import Slots
from otaflow.platform.slots import TreeSlots

NAMES = ("a", "b")
IMAGE_BYTES = 24 * 2**20
TREES = {"fake": FakeTrees, "directories": FolderTrees, "btrfs": BtrfsTrees}


def make_slots(kind: str, folder: Path) -> Slots:
    """The slots below `folder/slots`; of partitions, `folder/a.img` and `folder/b.img` are there."""
    root = folder / "slots"
    if kind == "partitions":
        return PartitionSlots(root, NAMES, images(folder), FolderTrees())
    if kind == "ostree":
        return OstreeSlots(root, NAMES)
    return TreeSlots(root, NAMES, TREES[kind]())


def images(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / f"{name}.img" for name in NAMES)


def why_not(kind: str) -> str:
    """What is missing here for slots of this kind."""
    if kind == "ostree" and not shutil.which("ostree"):
        return "there is no ostree"
    if kind in ("partitions", "ostree") and os.geteuid() != 0:
        return f"{kind} need root"
    return "partitions need loop devices" if kind == "partitions" and not Path("/dev/loop-control").exists() else ""


@contextmanager
def partitions(folder: Path, size: int = IMAGE_BYTES) -> Iterator[tuple[Path, ...]]:
    """Two images with an empty ext4 in `folder`; unmounted at the end, whoever mounted them."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images(folder):
        make_image(image, size)
    try:
        yield images(folder)
    finally:
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            point = Path(line.split()[4])
            if point.is_relative_to(folder.resolve()):
                subprocess.run(["umount", point], check=True)
        for image in images(folder):
            image.unlink(missing_ok=True)


def make_image(image: Path, size: int = IMAGE_BYTES) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", image], check=True, env={**os.environ, "PATH": f"{os.environ['PATH']}:/sbin"}
    )
