"""The switch of deployments/initrd as a program: it chooses the slot that a machine, or a test, starts next."""

import json
import os
import subprocess
from pathlib import Path

from otaflow.platform.device import Device

SWITCH = Path(__file__).parents[2] / "deployments" / "initrd" / "otaflow-switch"


def choose_slot(
    index: Path,
    slots: Path,
    names: tuple[str, str] = ("a", "b"),
    *,
    shell: tuple[str, ...] = (),
    started: Path | None = None,
) -> str:
    """Run the switch as an initial RAM disk does, which counts a start on trial; the name of the slot that starts.

    It is in the file `started` then, too.
    """
    command = [*shell, SWITCH, index, slots, *names]
    said = {"OTAFLOW_STARTED": str(started)} if started else {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **said})
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def choose_root(device: Device) -> Path:
    """The root folder that `device` starts from next: `machine.root = choose_root(device)` before each boot."""
    slots = device.slots
    return slots.path(choose_slot(device.boot_file, slots.path(slots.names[0]).parent, slots.names))


def counted_starts(device: Device) -> int:
    """How many starts the machine on this device has counted; seen from outside, its boot is not ours."""
    return int(json.loads((device.nvm / "boots.json").read_text())["count"])
