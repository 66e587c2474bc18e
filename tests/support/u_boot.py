"""U-Boot's own code in qemu: Debian's build for x86, with the shipped boot.cmd and slots on ext4.

That build counts no starts and knows no btrfs: the test sets bootcount, and a slot is a folder or, on a second disk, a
partition. A kernel is not started, but named: `otaflow_boot` is an `echo`, after which the script tries the next slot.
"""

import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from otaflow.platform.run import clean_environment

BOOT_CMD = Path(__file__).parents[2] / "deployments" / "u-boot" / "boot.cmd"
ROM = Path("/usr/lib/u-boot/qemu-x86/u-boot.rom")
ENDLESS = "sleep 60\nreset\n"
SECONDS = 120
ADDRESSES = {"kernel_addr_r": "2000000", "fdt_addr_r": "2800000", "ramdisk_addr_r": "3000000"}
DEVICE = "scsi 0:0"
PARTITIONS, DISK_ID = "scsi 1", "0a0b0c0d"
PARTITION_BYTES = 4 << 20


class UBootMachine:
    """A machine at U-Boot's prompt, on a disk made of the folder `content`; use it as a context.

    Each of the folders `partitions` is a partition of a second disk.
    """

    def __init__(self, folder: Path, content: Path, partitions: Sequence[Path] = ()) -> None:
        for program, package in (
            ("qemu-system-i386", "qemu-system-x86"),
            ("mkimage", "u-boot-tools"),
            (str(ROM), "u-boot-qemu"),
            ("sfdisk", "fdisk"),
        ):
            if shutil.which(program) is None and not Path(program).exists():
                pytest.skip(f"{program} is not installed (Debian: {package})")
        text = BOOT_CMD.read_text()
        assert text.count(ENDLESS) == 1
        (content / "boot.cmd").write_text(text.replace(ENDLESS, ""))
        _call("mkimage", "-A", "x86", "-T", "script", "-C", "none", "-d", content / "boot.cmd", content / "boot.scr")
        disk, second = folder / "disk.img", folder / "second.img"
        for image, size in ((disk, 8 << 20), (second, PARTITION_BYTES * (1 + len(partitions)))):
            with image.open("wb") as file:
                file.truncate(size)
        _call("mkfs.ext4", "-q", "-d", content, disk)
        places = [PARTITION_BYTES * (1 + number) for number in range(len(partitions))]
        lines = [f"start={place // 512},size={PARTITION_BYTES // 512},type=83\n" for place in places]
        table = f"label: dos\nlabel-id: 0x{DISK_ID}\n{''.join(lines)}"
        subprocess.run(["sfdisk", "--quiet", second], input=table, text=True, check=True, env=clean_environment())
        for place, part in zip(places, partitions, strict=True):
            where = ["-E", f"offset={place}", second, f"{PARTITION_BYTES // 1024}k"]
            _call("mkfs.ext4", "-q", "-d", part, *where)
        self._disks = [disk, second]

    def __enter__(self) -> "UBootMachine":
        machine = f"qemu-system-i386 -machine q35 -m 256 -bios {ROM} -nographic -nodefaults -net none -serial stdio"
        drives = [word for disk in self._disks for word in ("-drive", f"file={disk},format=raw,if=ide")]
        self._qemu = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *machine.split(), *drives],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_for("Hit any key")
            self._send("\n")
            self._wait_for("=> ")
            self.run("scsi scan")
            self.set(ADDRESSES)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._qemu.kill()
        self._qemu.communicate()

    def run(self, command: str) -> str:
        """What U-Boot says to a command."""
        self._send(f"{command}\n")
        return self._wait_for("=> ").partition("\n")[2]

    def start(self) -> str:
        """Run boot.cmd. What it says."""
        self.run(f"load {DEVICE} 1000000 /boot.scr")
        return self.run("source 1000000")

    def set(self, variables: Mapping[str, str]) -> None:
        """Set variables of the environment; empty ones are removed."""
        for name, value in variables.items():
            self.run(f"setenv {name} '{value}'" if value else f"setenv {name}")

    def _send(self, text: str) -> None:
        assert self._qemu.stdin is not None
        self._qemu.stdin.write(text.encode())
        self._qemu.stdin.flush()

    def _wait_for(self, text: str) -> str:
        """All that is said until `text`."""
        assert self._qemu.stdout is not None
        said, deadline = "", time.monotonic() + SECONDS
        while not said.rstrip("\r\n").endswith(text) and text not in said.rpartition("\n")[2]:
            ready, _, _ = select.select([self._qemu.stdout], [], [], deadline - time.monotonic())
            assert ready, f"no {text!r} in {said}"
            piece = os.read(self._qemu.stdout.fileno(), 65536)
            assert piece, f"qemu ended: {said}"
            said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said + piece.decode(errors="replace").replace("\r", ""))
        return said


def _call(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True, env=clean_environment())
