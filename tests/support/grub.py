"""GRUB's own code on this machine: Debian's grub-emu runs the shipped grub.cfg on two disk images, without root.

What cannot be done here is replaced: loading a kernel says so, or fails where KERNEL.bad is, and starting it ends
the emulator.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from otaflow.platform.run import clean_environment

GRUB_CFG = Path(__file__).parents[2] / "deployments" / "grub" / "grub.cfg"
STUBS = """
function linux {
    if [ -e "$1.bad" ]; then
        cat "$1.none"
    else
        echo "LINUX $2 $3 $4 $5 $6 $7 $8"
        true
    fi
}
function initrd {
    echo "INITRD $1"
}
"""
REPLACED = {
    "set timeout=3": "set timeout=0",
    "        boot\n": '        echo "BOOT"; halt\n',
    "    sleep --interruptible 60\n    reboot": "    halt",
}


class GrubMachine:
    """A machine in `folder` whose disk has the environment, on ext4, and whose other disk the slots, on btrfs.

    With `partitions` each slot is an ext4 of its own.
    """

    def __init__(self, folder: Path, *, partitions: bool = False) -> None:
        for program, package in (("grub-emu", "grub-emu"), ("grub-editenv", "grub-common"), ("script", "bsdutils")):
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not installed (Debian: {package})")
        self.folder, self.partitions = folder, partitions
        self.missing: set[str] = set()
        """The slots whose partition cannot be found."""
        self.grub, self.slots = folder / "boot" / "grub", folder / "top" / "slots"
        self.environment = self.grub / "grubenv"
        self.grub.mkdir(parents=True)
        for name in ("a", "b"):
            (self.slots / name / "boot").mkdir(parents=True)
            (self.slots / name / "boot" / "vmlinuz-6.1").write_text("kernel")
            (self.slots / name / "boot" / "initrd.img-6.1").write_text("initrd")
            (self.slots / name / "vmlinuz").symlink_to("boot/vmlinuz-6.1")
            (self.slots / name / "initrd.img").symlink_to("boot/initrd.img-6.1")
        script = _make_script()
        if partitions:
            script = re.sub(
                "^set otaflow_partitions= .*$", "set otaflow_partitions=otaflow-", script, flags=re.MULTILINE
            )
        (self.grub / "grub.cfg").write_text(script)
        call("grub-editenv", self.environment, "create")

    def start(self) -> str:
        """Switch it on. What GRUB said; `environment` is then as GRUB left it."""
        disk = self.folder / "boot.img"
        _make_image(disk, "mkfs.ext4", "-q", "-d", self.grub.parent)
        disks = [disk, *self._make_slots()]
        lines = [f"(hd{number}) {image}\n" for number, image in enumerate(disks)]
        (self.folder / "device.map").write_text("".join(lines))
        # it wants a terminal
        emulator = f"grub-emu -m {self.folder}/device.map -d /grub -r hd0"
        done = subprocess.run(
            ["script", "-qec", emulator, "/dev/null"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            env=clean_environment({"TERM": "linux", "COLUMNS": "250"}),
            check=False,
        )
        assert done.returncode == 0, done.stdout
        if self.environment.exists():
            call("debugfs", "-R", f"dump /grub/grubenv {self.environment}", disk)
        return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stdout))

    def _make_slots(self) -> list[Path]:
        """The disks with the slots."""
        if not self.partitions:
            image = self.folder / "slots.img"
            _make_image(image, "mkfs.btrfs", "-q", "-L", "otaflow", "-r", self.slots.parent, size=128 << 20)
            return [image]
        images = {name: self.folder / f"{name}.img" for name in ("a", "b") if name not in self.missing}
        for name, image in images.items():
            _make_image(image, "mkfs.ext4", "-q", "-L", f"otaflow-{name}", "-d", self.slots / name)
        return list(images.values())


def _make_image(image: Path, *command: str | Path, size: int = 4 << 20) -> None:
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
    call(*command, image)


def call(*words: str | Path) -> str:
    """What a program says that has to end well."""
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=clean_environment())
    return done.stdout


def _make_script() -> str:
    """The shipped script, with what an emulator can do."""
    text = GRUB_CFG.read_text()
    for here, there in REPLACED.items():
        assert text.count(here) == 1, here
        text = text.replace(here, there)
    return STUBS + text
