"""The power goes while the boot target is flipped: any part of what was not flushed is lost, on the whole disk.

One machine installs an update under a log of its writes. From the log come the disks as power cuts at many moments
around the flip leave them; each is looked at as Linux and as GRUB see it, the first of each kind is booted.
"""

import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from virtual_machine import VirtualMachine
from vm_crash import BUGS, VERSIONS, Bug, Violation, clone, find_flip, look_at, make_cuts, note_filling
from vm_device import begin, check_kept
from vm_disk import KINDS, mounted
from write_log import WriteLog

pytestmark = [pytest.mark.vm, pytest.mark.btrfs]

SEED = int(os.environ.get("OTAFLOW_VM_SEED", "1"))
CUTS = int(os.environ.get("OTAFLOW_VM_CUTS", "150"))
CUTS_OF_A_BUG = 30


class Recording(NamedTuple):
    """A machine's disk before the update, the log of what it wrote then, and a folder where a copy costs nothing."""

    base: Path
    log: Path
    folder: Path


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder where a copy of a disk image costs nothing."""
    with tempfile.TemporaryDirectory(prefix="otaflow-vm-") as folder:
        image, top = Path(folder, "scratch"), Path(folder, "top")
        top.mkdir()
        with image.open("wb") as file:
            file.truncate(16 << 30)
        subprocess.run(["mkfs.btrfs", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop,noatime,nodatasum", image, top], check=True)
        try:
            yield top
        finally:
            for left in reversed(range(100)):  # a loop device in there is let go a moment after its file system
                if subprocess.run(["umount", top], check=left == 0, stderr=subprocess.DEVNULL).returncode == 0:
                    break
                time.sleep(0.1)


@pytest.fixture(scope="module")
def recording(disk: Path, scratch: Path) -> Recording:
    """A machine that has booted, installed the update, and was started again by GRUB."""
    base = clone(disk, scratch / "base")
    with mounted(base, scratch) as (_, top):
        note_filling(top)
    (scratch / "machine").mkdir()
    machine = VirtualMachine(base, scratch / "machine", log=scratch / "log")
    try:
        assert machine.switch_on() == "a"
        machine.wait_idle()
        begin(machine, "good")
    finally:
        machine.cut_power()
        machine.drive.unlink()
    return Recording(base, scratch / "log", scratch)


@pytest.mark.parametrize("kind", KINDS, scope="session")
def test_power_cut_during_the_flip(
    recording: Recording, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    base, log, folder = recording
    found = Counter[str]()
    with WriteLog(log) as written:
        flip = find_flip(written)
        for cut in make_cuts(written, flip, base, folder, seed=SEED, count=CUTS):
            untouched = clone(cut.image, folder / "boot")
            try:
                what = look_at(cut.image, tmp_path)
            except Violation as error:
                pytest.fail(f"power cut {cut.number} of seed {SEED}, before entry {cut.moment}, {flip}: {error}")
            found[what] += 1
            if found[what] == 1:
                record_property("boots", [f"({what})", *boot(untouched, tmp_path, f"{cut.number}")])
    told = "".join(f"\n    {count} times {what}" for what, count in sorted(found.items()))
    record_property("figures", f"{CUTS} power cuts, entries {flip.first} to {flip.end} of the log:{told}")
    assert len({what.split(",")[0] for what in found}) == 2, "both sides of the flip are seen"


@pytest.mark.parametrize("bug", BUGS.values(), ids=[name.replace(" ", "-") for name in BUGS])
def test_planted_bug_is_found(
    recording: Recording, tmp_path: Path, bug: Bug, record_property: Callable[[str, Any], None]
) -> None:
    """The same log as a machine would have written it that has the bug; nothing is booted."""
    base, log, folder = recording
    found: list[str] = []
    with WriteLog(log) as written:
        where = bug.plant(written, find_flip(written), base)
        for cut in make_cuts(written, where, base, folder, seed=SEED, count=CUTS_OF_A_BUG):
            try:
                look_at(cut.image, tmp_path)
            except Violation as error:
                found.append(str(error))
    assert [what for what in found if re.search(bug.pattern, what)], found
    record_property("figures", f"planted, {bug.plant.__name__}: found by {len(found)} of {CUTS_OF_A_BUG} power cuts")


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
        machine.drive.unlink()
