"""Boot loaders for the contract of boot targets: an adapter, and what its boot loader does at a start of the machine.

The real programs change the real environment: grub-editenv in place, as GRUB's save_env; fw_setenv, as U-Boot; the
switch of deployments/initrd. That grub.cfg and boot.cmd do the same is tested with GRUB's and U-Boot's own code.
"""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from switch import choose_slot

from otaflow.platform.boots import Boots
from otaflow.platform.fake import FakeBoot, make_fake_slots
from otaflow.platform.grub import GrubBoot
from otaflow.platform.index_file import IndexFile
from otaflow.platform.protocols import BootTarget
from otaflow.platform.running import find_mounted_slot
from otaflow.platform.u_boot import UBootBoot

RESTART = ["true"]


@dataclass
class Loader:
    """A boot target that starts slot a, trusted. `start`: the machine starts, whatever ended its former run.

    `damage` spoils what the target is kept in, `remove` removes it; None where it is only in memory.
    """

    boot: BootTarget
    start: Callable[[], None]
    damage: Callable[[], None] | None = None
    remove: Callable[[], None] | None = None

    def restart(self) -> None:
        """Restart into what the boot loader chooses."""
        if not self.boot.restart():
            self.start()


def make_fake(folder: Path) -> Loader:
    boot = FakeBoot(make_fake_slots(folder / "slots"), at_once=False)
    return Loader(boot, boot.start)


def make_index(folder: Path, *, detects: str = "") -> Loader:
    """The index file and the initial RAM disk's switch.

    `detects`: the running slot is on the kernel's command "line", or in the "file" that the switch writes.
    """
    slots, line, boot_id = _make_slots(folder), _make_line(folder), folder / "boot_id"
    index, started = folder / "index.json", folder / "run" / "started"
    detect = partial(find_mounted_slot, command_line=line, started=started) if detects else lambda _: None
    boots = Boots(folder / "boots.json", boot_id)
    boot = IndexFile(index, folder / "running.json", slots=slots, boots=boots, restart=RESTART, detect=detect)
    boot_id.write_text("0")

    def start() -> None:
        slot = choose_slot(index, folder / "slots", started=started if detects == "file" else None)
        line.write_text(f"otaflow.slot={slot}" if detects == "line" else "quiet rootflags=subvol=slots/a")
        boot_id.write_text(str(int(boot_id.read_text()) + 1))

    boot.set_target("a", "")
    return Loader(boot, start, lambda: index.write_text("{"), index.unlink)


def make_grub(folder: Path) -> Loader:
    _need("grub-editenv", "grub-common")
    slots, line, path = _make_slots(folder), _make_line(folder), folder / "grubenv"
    _edit(path, "create")
    boot = GrubBoot(path, slots=slots, restart=RESTART, detect=partial(find_mounted_slot, command_line=line))

    def start() -> None:
        """What deployments/grub/grub.cfg does."""
        values = dict(line.split("=", 1) for line in _edit(path, "list").splitlines())
        slot, tries = values["otaflow_target"], values.get("otaflow_tries")
        if tries == "0":
            slot = values["otaflow_fallback"]
        elif tries:
            _edit(path, "set", f"otaflow_tries={int(tries) - 1}")
        line.write_text(f"BOOT_IMAGE=/slots/{slot}/vmlinuz otaflow.slot={slot} ro")

    boot.set_target("a", "")
    return Loader(boot, start, lambda: path.write_bytes(bytes(1024)), path.unlink)


def make_u_boot(folder: Path) -> Loader:
    _need("fw_setenv", "libubootenv-tool")
    slots, line, config = _make_slots(folder), _make_line(folder), make_u_boot_environment(folder)
    boot = UBootBoot(config, slots=slots, restart=RESTART, detect=partial(find_mounted_slot, command_line=line))

    def start() -> None:
        """What U-Boot's bootcount and deployments/u-boot/boot.cmd do."""
        values = dict(line.split("=", 1) for line in _call("fw_printenv", "-c", config).splitlines())
        slot = values["otaflow_target"]
        if values["upgrade_available"] == "1":
            count = int(values["bootcount"]) + 1
            _call("fw_setenv", "-c", config, "bootcount", str(count))
            if count > int(values["bootlimit"]):
                slot = values["otaflow_fallback"]
        line.write_text(f"otaflow.slot={slot}")

    boot.set_target("a", "")
    return Loader(boot, start, lambda: (folder / "uboot.env").write_bytes(bytes(0x4000)), (folder / "uboot.env").unlink)


def make_u_boot_environment(folder: Path) -> Path:
    """A redundant environment in a file, with one variable of U-Boot's own; its fw_env.config."""
    environment, config, first = folder / "uboot.env", folder / "fw_env.config", folder / "first"
    environment.write_bytes(bytes(0x4000))
    config.write_text(f"{environment} 0x0 0x2000\n{environment} 0x2000 0x2000\n")
    first.write_text("bootdelay=2\n")
    _call("fw_setenv", "-c", config, "-f", first, "-s", first)
    return config


LOADERS = {
    "fake": make_fake,
    "index file": make_index,
    "index file and command line": partial(make_index, detects="line"),
    "index file and the switch's word": partial(make_index, detects="file"),
    "grub": make_grub,
    "u-boot": make_u_boot,
}


def _make_slots(folder: Path) -> dict[str, Path]:
    slots = {name: folder / "slots" / name for name in ("a", "b")}
    for path in slots.values():
        (path / "etc").mkdir(parents=True)
    return slots


def _make_line(folder: Path) -> Path:
    line = folder / "cmdline"
    line.write_text("otaflow.slot=a")
    return line


def _need(program: str, package: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (Debian: {package})")


def _edit(path: Path, *words: str) -> str:
    return _call("grub-editenv", path, *words)


def _call(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
