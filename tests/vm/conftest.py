"""Machines in qemu with a real GRUB; `make test-vm` runs what is here, a plain `make test` does not."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from virtual_machine import VirtualMachine
from vm_booted import find_booted
from vm_disk import make_disk
from vm_parts import find_parts

PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "grub-mkimage": "grub-common",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "modprobe": "kmod",
    "sfdisk": "fdisk",
    "mkfs.btrfs": "btrfs-progs",
}


@pytest.fixture(scope="session")
def kind() -> str:
    """Where the slots are (vm_disk.KINDS): a test may ask for others."""
    return "btrfs"


@pytest.fixture(scope="session")
def disk(kind: str) -> Path:
    """The disk image, with the project as it is."""
    if os.geteuid() != 0:
        pytest.skip("making a disk needs root")
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if missing or not Path("/usr/lib/grub/i386-pc").exists():
        pytest.skip(f"machines in qemu need {' '.join([*missing, 'grub-pc-bin'])}")
    return make_disk(find_parts(), kind)


@pytest.fixture(scope="session")
def booted(disk: Path) -> Path:
    """An overlay of the disk, with the machine that has booted from it."""
    return find_booted(disk)


@pytest.fixture
def machine(
    disk: Path, booted: Path, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> Iterator[VirtualMachine]:
    """A machine that is on, runs 1.0.0 in slot a, and has booted long ago."""
    machine = VirtualMachine(disk, tmp_path, overlay=booted)
    try:
        assert machine.switch_on(snapshot=True) == "a"
        yield machine
    finally:
        machine.cut_power()
        machine.drive.unlink()
        record_property("boots", machine.starts())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print every boot, as GRUB told it."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    for report in reports:
        for name, value in report.user_properties if getattr(report, "when", "") == "teardown" else ():
            if name == "boots":
                story = report.nodeid.rpartition("::test_")[2].partition("@")[0].replace("_", " ")
                terminalreporter.write_line(f"{story}: power on" + "".join(f"\n    {line}" for line in value))
            elif name == "figures":
                terminalreporter.write_line(str(value))
