"""What the slots' own part of a 2 % update costs on each kind of slots: btrfs, directories, partitions, OSTree.

python -m bench.slot_kinds [--rounds 5] [--mb 300] [--files 7400] [--folder /var/tmp]

Two slots are updated in turn, as a device's are, with a picture of each system as its backup. Root is needed.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench import disk, system
from otaflow.platform.btrfs import BtrfsTrees
from otaflow.platform.directories import FolderTrees
from otaflow.platform.ostree import OstreeSlots
from otaflow.platform.partitions import PartitionSlots
from otaflow.platform.protocols import Slots, Trees
from otaflow.platform.slots import TreeSlots

NAMES = ("a", "b")
SHARE = 0.02
KINDS = ("btrfs", "directories", "partitions", "ostree")


class Device(NamedTuple):
    """One device's slots, and the trees and the folder of its backups."""

    slots: Slots
    trees: Trees
    backups: Path


@contextmanager
def made(kind: str, folder: Path | None, size: int) -> Iterator[Device]:
    """Two empty slots of the kind, the main partition on a loop file: btrfs, or ext4 for all others."""
    trees: Trees = BtrfsTrees() if kind == "btrfs" else FolderTrees()
    with tempfile.TemporaryDirectory(prefix="otaflow-bench-", dir=folder, ignore_cleanup_errors=True) as name:
        top = Path(name) / "top"
        top.mkdir()
        main = make_image(Path(name) / "main.img", 20 * size, "btrfs" if kind == "btrfs" else "ext4")
        subprocess.run(["mount", "-o", "loop,noatime", main, top], check=True)
        (top / "backups").mkdir()
        slots: Slots = TreeSlots(top / "slots", NAMES, trees)
        if kind == "ostree":
            slots = OstreeSlots(top / "slots", NAMES)
        elif kind == "partitions":  # with room for one and a half systems
            images = tuple(make_image(Path(name) / f"{slot}.img", size * 3 // 2, "ext4") for slot in NAMES)
            slots = PartitionSlots(top / "slots", NAMES, images, trees, lambda _: newest(top / "backups"))
        try:
            yield Device(slots, trees, top / "backups")
        finally:
            subprocess.run(["umount", "--recursive", top], check=True)


def make_image(image: Path, size: int, kind: str) -> Path:
    """An image file with an empty file system."""
    with image.open("wb") as file:
        file.truncate(size + 256 * 2**20)
    subprocess.run([f"/sbin/mkfs.{kind}", "-q", image], check=True, capture_output=True)
    return image


def newest(backups: Path) -> Path | None:
    """What the spare slot holds: the system before the running one."""
    return max(backups.iterdir(), key=lambda path: int(path.name), default=None)


def measure(kind: str, folder: Path | None, rounds: int, size: int, files: int) -> dict[str, float]:
    """Medians of the seconds of each part, and of the MB that the disk has less while the former content is kept."""
    found: dict[str, list[float]] = {}
    with made(kind, folder, size) as device:
        slots = device.slots
        slots.create("a")
        system.make_system(slots.path("a"), size, files)
        slots.copy("a", "b", "first")
        slots.forget("first")
        for number in range(rounds + 2):  # the first two make what the others are like
            running, spare = NAMES[number % 2], NAMES[1 - number % 2]
            # the newest backup is of the spare slot's system: that of the running one is made by its update, below
            update(device, running, spare, number, found if number > 1 else {})
    return {name: median(values) for name, values in found.items()}


def update(device: Device, running: str, spare: str, number: int, found: dict[str, list[float]]) -> None:
    """One update, taken back once and made again; the backup is left out, as it is the same for all."""
    slots, new = device.slots, device.backups.parent / "new"

    def copy() -> None:
        slots.copy(running, spare, f"{number}")

    def apply() -> None:
        shutil.copytree(new, slots.path(spare), dirs_exist_ok=True)
        slots.sync(spare)

    system.take_changed(slots.path(running), new, SHARE, seed=number)
    disk.settle(device.backups)
    before = shutil.disk_usage(device.backups).used
    began = _cpu()
    taken = {"copy": _time(copy)}
    taken["CPU"] = _cpu() - began
    taken["apply"] = _time(apply)
    subprocess.run(["sync"], check=True)
    taken["MB kept"] = (shutil.disk_usage(device.backups).used - before) / 1e6
    taken["undo"] = _time(lambda: (slots.put_back(spare, f"{number}"), slots.sync(spare)))
    copy()
    apply()
    taken["commit"] = _time(lambda: (slots.forget(f"{number}"), slots.sync(spare)))
    device.trees.freeze(slots.path(running), device.backups / f"{number}", newest(device.backups))
    shutil.rmtree(new)
    for name, value in taken.items():
        found.setdefault(name, []).append(value)


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _cpu() -> float:
    """The seconds of CPU of this process and of the programs that it has run."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=300)
    parser.add_argument("--files", type=int, default=7400)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS))
    chosen = parser.parse_args()
    print(f"### {SHARE:.0%} of {chosen.mb} MB in {chosen.files} files, median of {chosen.rounds}\n")
    print("| slots | copy, s | copy, CPU s | apply, s | commit, s | all, s | undo, s | MB more while it is kept |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for kind in chosen.kind:
        figures = measure(kind, chosen.folder, chosen.rounds, chosen.mb * 10**6, chosen.files)
        parts = [figures[name] for name in ("copy", "apply", "commit")]
        cells = [parts[0], figures["CPU"], *parts[1:], sum(parts), figures["undo"]]
        print(
            f"| {kind} | " + " | ".join(f"{cell:.2f}" for cell in cells) + f" | {figures['MB kept']:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
