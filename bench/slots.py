"""What copying a slot and backing it up costs, beside the slot's size and beside what changed.

python -m bench.slots [--kind btrfs|directories] [--rounds 5]
"""

import argparse
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from bench import disk, system
from otaflow.platform import tar
from otaflow.platform.btrfs import BtrfsTrees
from otaflow.platform.directories import FolderTrees
from otaflow.platform.protocols import Trees
from otaflow.platform.slots import TreeSlots

SIZES = {"100 MB": 100, "1 GB": 1000}
FILES_IN_MB = 25
SHARES = (0.0, 0.02, 0.2, 1.0)


def measure(work: Callable[[int], None], rounds: int, top: Path) -> float:
    """The median of the seconds that `work(number)` takes, on a settled disk with the page cache warm."""
    taken = []
    for number in range(rounds):
        subprocess.run(["sync", "-f", top], check=True)
        start = time.perf_counter()
        work(number)
        taken.append(time.perf_counter() - start)
    return median(taken)


def copy_slots(top: Path, trees: Trees, rounds: int) -> Iterator[str]:
    """Copying the running slot into the spare one, at two sizes in turn."""
    found: dict[str, tuple[TreeSlots, list[float]]] = {}
    for name, size in SIZES.items():
        root = top / f"slots {size}"
        trees.create(root / "a")
        system.make_system(root / "a", size * 10**6, size * FILES_IN_MB)
        found[name] = TreeSlots(root, ("a", "b"), trees), []
    for number in range(rounds):
        for slots, taken in found.values():
            taken.append(measure(lambda _, slots=slots, kept=f"kept-{number}": slots.copy("a", "b", kept), 1, top))  # type: ignore[misc]
    yield "| copying the slot | s | fastest, s |"
    yield "| --- | --- | --- |"
    yield from (f"| {name} | {median(taken):.3f} | {min(taken):.3f} |" for name, (_, taken) in found.items())
    (_, small), (_, big) = found.values()
    ratio = " / ".join(reversed(SIZES))
    yield f"\n{ratio}: {median(big) / median(small):.2f}, of the fastest {min(big) / min(small):.2f}"


def back_up(top: Path, trees: Trees, rounds: int) -> Iterator[str]:
    """An incremental backup after some of the slot has changed; `copied` is how much of the disk it takes."""
    yield "| 100 MB, changed | incremental backup, s | MB of the disk |"
    yield "| --- | --- | --- |"
    for share in SHARES:
        place = top / f"backups {share}"
        slot = place / "slot"
        trees.create(slot)
        system.make_system(slot, 100 * 10**6, 100 * FILES_IN_MB)
        trees.freeze(slot, place / "base")
        new = place / "new"
        new.mkdir()
        system.take_changed(slot, new, share)
        shutil.copytree(new, slot, dirs_exist_ok=True)
        shutil.rmtree(new)
        trees.sync(slot)
        before = _used(top)
        seconds = measure(
            lambda number, place=place, slot=slot: _freeze(trees, slot, place / f"{number}", place / "base"),  # type: ignore[misc]
            rounds,
            top,
        )
        yield f"| {share:.0%} | {seconds:.3f} | {(_used(top) - before) / rounds / 1e6:.1f} |"


def back_up_in_full(top: Path, rounds: int, btrfs: bool) -> Iterator[str]:
    """The full backup beside other ways to write everything once more, all on the disk at the end."""
    trees = BtrfsTrees() if btrfs else FolderTrees()
    slot = top / "full" / "slot"
    trees.create(slot)
    system.make_system(slot, 300 * 10**6, 7400)
    trees.freeze(slot, top / "full" / "sys")
    frozen = top / "full" / "sys"
    ways: dict[str, Callable[[int], None]] = {
        "otaflow (tar)": lambda n: tar.archive(top / "full", top / f"{n}.tar", ["sys"]),
        "cp -a --reflink=never": lambda n: _run(["cp", "-a", "--reflink=never", frozen, top / f"{n}.cp"], top),
    }
    if btrfs:
        ways["btrfs send -f"] = lambda n: _run(["btrfs", "send", "-q", "-f", top / f"{n}.send", frozen], top)
    yield "| full backup of 300 MB in 7,400 files | s | / otaflow's |"
    yield "| --- | --- | --- |"
    base = 0.0
    for name, work in ways.items():
        seconds = measure(work, rounds, top)
        base = base or seconds
        yield f"| {name} | {seconds:.2f} | {seconds / base:.2f} |"


def _freeze(trees: Trees, slot: Path, target: Path, base: Path) -> None:
    trees.freeze(slot, target, base)
    trees.sync(target)


def _run(command: list[str | Path], top: Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["sync", "-f", top], check=True)


def _used(top: Path) -> int:
    """Bytes of the disk that are in use."""
    subprocess.run(["sync", "-f", top], check=True)
    usage = shutil.disk_usage(top)
    return usage.used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=disk.KINDS, default="btrfs")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    btrfs = chosen.kind == "btrfs"
    trees: Trees = BtrfsTrees() if btrfs else FolderTrees()
    print(f"### slots and backups, {chosen.kind}, median of {chosen.rounds}\n")
    with disk.disk(chosen.kind) as top:
        for lines in (
            copy_slots(top, trees, 5 * chosen.rounds if btrfs else chosen.rounds),
            back_up(top, trees, chosen.rounds),
            back_up_in_full(top, min(chosen.rounds, 3), btrfs),
        ):
            print("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
