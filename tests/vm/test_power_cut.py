"""The power goes while the boot target is flipped: any part of what was not flushed is lost, on the whole disk.

One machine installs an update under a log of its writes. From the log come the disks as power cuts at many moments
around the flip leave them; each is looked at as Linux and as GRUB see it, some are booted.
"""

import gc
import hashlib
import io
import os
import random
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from virtual_machine import VirtualMachine
from vm_device import begin, check_kept
from vm_disk import LOADER_AT, LOADER_SIZE, SLOTS_AT, mounted
from write_log import WriteLog

from otaflow.platform import grubenv
from otaflow.platform.labels import read_label

pytestmark = [pytest.mark.vm, pytest.mark.btrfs]

SEED = int(os.environ.get("OTAFLOW_VM_SEED", "1"))
CUTS = int(os.environ.get("OTAFLOW_VM_CUTS", "150"))
AROUND = 25
"""So many entries of the log before the flip, and after its end, belong to it."""
VERSIONS = {"a": "1.0.0", "b": "1.1.0"}


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder where a copy of a disk image costs nothing."""
    image, top = tmp_path / "scratch", tmp_path / "top"
    top.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 30)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop,noatime,nodatasum", image, top], check=True)
    try:
        yield top
    finally:
        gc.collect()  # a test that failed may hold the log open
        for left in reversed(range(100)):  # a loop device in there is let go a moment after its file system
            if subprocess.run(["umount", top], check=left == 0, stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.1)
        image.unlink()


def clone(source: Path, target: Path) -> Path:
    target.unlink(missing_ok=True)
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", source, target], check=True)
    return target


def what_grub_sees(image: Path) -> dict[str, str]:
    """The environment read without the journal of its ext4; nothing where GRUB would find none, or a damaged one."""
    look = ["debugfs", "-R", "cat /grub/grubenv", f"{image}?offset={LOADER_AT}"]
    try:
        return grubenv.read_block(subprocess.run(look, capture_output=True, check=False).stdout)
    except grubenv.BadBlock:
        return {}


def check_slot(top: Path, slot: str, promise: str | None = None) -> None:
    """It holds all of its version; what is promised, too."""
    tree = top / "slots" / slot
    assert (tree / "etc/version").read_text().strip() == VERSIONS[slot], slot
    label = read_label(tree)
    assert label.version == VERSIONS[slot]
    assert promise in (None, label.generation)
    if slot == "b":
        known = (top / "filling.sha256").read_text()
        assert hashlib.sha256((tree / "opt/filling").read_bytes()).hexdigest() == known


def look_at(image: Path, folder: Path) -> str:
    """Check what a power cut left; how Linux finds the boot target, and GRUB."""
    seen = what_grub_sees(image)
    with mounted(image, folder) as (loader, top):
        environment = grubenv.read_block((loader / "grub/grubenv").read_bytes())
        target = environment["otaflow_target"]
        check_slot(top, target, environment["otaflow_promise"])
        by_grub = seen.get("otaflow_target", "")
        check_slot(top, by_grub or "a")
        assert (by_grub or "a") in (target, "a")
    return f"the target is {target}, GRUB sees {by_grub or 'none'}"


def test_power_cut_during_the_flip(
    disk: Path, scratch: Path, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    base = clone(disk, scratch / "base")
    with mounted(base, tmp_path) as (_, top):
        _note_filling(top)
    written = WriteLog(record(base, scratch))
    flip, end = find_flip(written)
    chance = random.Random(SEED)
    moments = sorted(chance.choices(range(flip - AROUND, end), k=CUTS))
    durable, done, found = clone(base, scratch / "durable"), 0, Counter[str]()
    for number, moment in enumerate(moments):
        flushed = written.last_flush(moment)
        written.apply(durable, done, flushed)
        done = max(done, flushed)
        image = clone(durable, scratch / "cut")
        written.apply_some(image, done, moment, random.Random(f"{SEED} {number}"))
        if number in (CUTS // 4, CUTS // 2, CUTS - 1):
            record_property("boots", boot(clone(image, scratch / "boot"), scratch, f"{number}"))
        try:
            found[look_at(image, tmp_path)] += 1
        except (AssertionError, KeyError, OSError) as error:
            pytest.fail(f"power cut {number} of seed {SEED}, before entry {moment} (flip: {flip} to {end}): {error!r}")
    told = "; ".join(f"{what}: {count}" for what, count in sorted(found.items()))
    record_property("figures", f"power cuts around the flip: {CUTS}, entries {flip} to {end} of the log: {told}")
    assert len({what.split(",")[0] for what in found}) == 2, "both sides of the flip are seen"


def _note_filling(top: Path) -> None:
    """Beside the slots: what the update's file is, from its package."""
    with tarfile.open(top / "updates" / "good.nsr") as repository:
        package = next(member for member in repository.getmembers() if member.name.endswith(".nsu"))
        file = repository.extractfile(package)
        assert file is not None
        with tarfile.open(fileobj=io.BytesIO(file.read())) as archive:
            filling = archive.extractfile("assets/filling")
            assert filling is not None
            (top / "filling.sha256").write_text(hashlib.sha256(filling.read()).hexdigest())


def record(base: Path, folder: Path) -> Path:
    """The log of a machine that has booted, installed the update and was started again by GRUB."""
    (folder / "machine").mkdir()
    machine = VirtualMachine(base, folder / "machine", log=folder / "log")
    try:
        assert machine.switch_on() == "a"
        machine.wait_idle()
        begin(machine, "good")
    finally:
        machine.cut_power()
        machine.drive.unlink()
    return folder / "log"


def find_flip(written: WriteLog) -> tuple[int, int]:
    """The first entry with the new target in the boot loader's file system, and the end of what follows it there."""
    loader = range(LOADER_AT, LOADER_AT + LOADER_SIZE)
    assert loader.stop == SLOTS_AT
    there = [number for number, entry in enumerate(written.entries) if entry.length and entry.offset in loader]
    flip = next(number for number in there if b"otaflow_target=b" in written.data(written.entries[number]))
    near = [number for number in there if number < flip + 40]
    return flip, min(max(near) + AROUND, len(written.entries))


def boot(image: Path, folder: Path, name: str) -> list[str]:
    """Switch a machine on with that disk: it ends on a good slot. What GRUB told."""
    (folder / name).mkdir()
    machine = VirtualMachine(image, folder / name)
    try:
        machine.switch_on()
        machine.wait_idle()
        check_kept(machine, VERSIONS[machine.slot], machine.slot)
        return machine.starts()
    finally:
        machine.cut_power()
