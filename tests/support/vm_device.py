"""The device in a virtual machine: updates of it, and what must hold when they are over."""

from typing import Any

from virtual_machine import VirtualMachine

from otaflow.history import VERIFICATION_FAILED

INSTALL = "python3 /device/updates/vm_install.py /device/updates/{}.nsr"
FIRST, SECOND = "slot b (on trial, tries left after this one: 1)", "slot b (on trial, tries left after this one: 0)"
GIVEN_UP = "slot b has no tries left"
FALLBACK = "slot a (fallback)"
AGAIN = "slot a (trusted)"
"""What was taken back is started once more, after the boot loader has fallen back: it ran while its data came back."""
CONFIGURATIONS = {"1.0.0": [], "1.1.0": ["version", "=", "1.1.0"]}


def begin(machine: VirtualMachine, update: str) -> None:
    """Install it; the machine restarts by itself when it is activated, and GRUB has told of it."""
    told = len(machine.starts())
    machine.send(INSTALL.format(update))
    machine.wait_until(lambda: len(machine.starts()) > told)


def check_kept(machine: VirtualMachine, version: str, slot: str) -> None:
    """The machine is Idle, and the slot that runs holds `version`, is trusted, and is what starts next."""
    machine.wait_idle()
    status = machine.json("otaflow status --json")
    assert (status["ucm_state"], status["active_slot"], status["boot_target"]) == ("Idle", slot, slot), status
    assert (status["system_version"], status["tries_left"], status["alarm"]) == (version, None, None), status
    found = machine.check("cat /etc/version; cat /device/main/etc/sys/version 2>/dev/null || :").split()
    assert found == [version, *CONFIGURATIONS[version]]


def read_last(machine: VirtualMachine) -> dict[str, Any]:
    """The newest record of the history."""
    last: dict[str, Any] = machine.json("otaflow history --json")[-1]
    return last


def check_rolled_back(machine: VirtualMachine, version: str) -> str:
    """The machine is on the former slot as if nothing had been; returns why, from its history."""
    check_kept(machine, "1.0.0", "a")
    last = read_last(machine)
    assert (last["version"], last["resolution"]) == (version, VERIFICATION_FAILED), last
    return str(last["why"])
