"""What the boot targets of the real loaders share: which slot runs, what may be written, the restart by a command.

The boot loader says on the kernel's command line which slot it started: `otaflow.slot=NAME` (deployments/grub, u-boot).
The switch of an initial RAM disk, which cannot change that line, says it in a file (deployments/initrd).
"""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from otaflow.errors import OtaflowError
from otaflow.platform.run import run

COMMAND_LINE = Path("/proc/cmdline")
STARTED = Path("/run/otaflow/started")
RESTART_TIMEOUT = 120.0
PROMISE = re.compile(r"[A-Za-z0-9 ._:-]{0,128}")

Detect = Callable[[Mapping[str, Path]], str | None]
"""Which of the slots, with their trees, the present system was started from; None when that cannot be told."""


def find_mounted_slot(
    slots: Mapping[str, Path], *, root: Path = Path("/"), started: Path = STARTED, command_line: Path = COMMAND_LINE
) -> str | None:
    """The slot that is the mounted root file system, else what the switch says, else the command line, else None."""
    for name, path in slots.items():
        if path.exists() and os.path.samefile(path, root):
            return name
    return _find_started_slot(slots, started) or find_named_slot(slots, command_line=command_line)


def _find_started_slot(slots: Collection[str], started: Path) -> str | None:
    """The slot that the switch says it started, whatever it could count; None where it says nothing."""
    try:
        slot = started.read_text().strip()
    except (OSError, ValueError):
        return None
    return slot if slot in slots else None


def find_named_slot(slots: Collection[str], *, command_line: Path = COMMAND_LINE) -> str | None:
    """The slot that the kernel's command line names, by `otaflow.slot=` or as btrfs' `rootflags=subvol=`, else None."""
    for word in command_line.read_text().split():
        key, _, value = word.partition("=")
        if key == "otaflow.slot" and value in slots:
            return value
        for flag in value.split(",") if key == "rootflags" else ():
            name = flag.removeprefix("subvol=").rpartition("/")[2]
            if flag.startswith("subvol=") and name in slots:
                return name
    return None


def detect_slot(slots: Mapping[str, Path], detect: Detect) -> str:
    """The running slot. OtaflowError when neither the root file system, the switch nor the command line names one."""
    slot = detect(slots)
    if slot is None:
        raise OtaflowError(
            f"cannot tell which slot runs: neither the root file system, nor {STARTED}, nor the kernel's command line "
            f"is one of {' and '.join(slots)}",
            hint="have the boot loader start the slots, with otaflow.slot=NAME on the command line",
        )
    return slot


def other_slot(slots: Collection[str], slot: str) -> str:
    """The one of the two slots that is not `slot`."""
    return next(name for name in slots if name != slot)


def check_target(slots: Collection[str], slot: str, promise: str) -> None:
    """OtaflowError when the device has no such slot, or a boot loader's script could not read the promise."""
    if slot not in slots:
        raise OtaflowError(f"cannot start the slot {slot!r}: the device has {' and '.join(slots)}")
    if not PROMISE.fullmatch(promise):
        raise OtaflowError(f"cannot promise {promise!r}: it is no name of a content, which boot loaders can read")


def restart_machine(command: Sequence[str]) -> bool:
    """Ask for the restart: False, as the machine goes down. CommandFailed when it does not."""
    run(list(command), timeout=RESTART_TIMEOUT)
    return False
