"""Whole updates on a machine with GRUB, from the command to the boot that ends them: whatever the new slot does, and
whenever the power goes, the machine ends on a good slot.
"""

from typing import Any

import pytest
from virtual_machine import VirtualMachine

pytestmark = pytest.mark.vm

FIRST, SECOND = "slot b (on trial, tries left after this one: 1)", "slot b (on trial, tries left after this one: 0)"
GIVEN_UP = "slot b has no tries left"
FALLBACK = "slot a (fallback)"
INSTALL = "python3 /device/updates/vm_install.py /device/updates/{}.nsr"


def begin(machine: VirtualMachine, update: str) -> None:
    """Install it; the machine restarts by itself when it is activated."""
    machine.send(INSTALL.format(update))
    machine.wait_until(lambda: bool(machine.starts()))


def kept(machine: VirtualMachine, version: str, slot: str) -> dict[str, Any]:
    """The machine is Idle, and the slot that runs holds `version`, is trusted, and is what starts next."""
    machine.wait_idle()
    status = machine.json("otaflow status --json")
    assert (status["ucm_state"], status["active_slot"], status["boot_target"]) == ("Idle", slot, slot), status
    assert (status["system_version"], status["tries_left"], status["alarm"]) == (version, None, None), status
    assert machine.check("cat /etc/version /device/main/etc/sys/version 2>/dev/null || :").split() == {
        "1.0.0": ["1.0.0"],
        "1.1.0": ["1.1.0", "version", "=", "1.1.0"],
    }.get(version)
    last: dict[str, Any] = machine.json("otaflow history --json")[-1]
    return last


def rolled_back(machine: VirtualMachine, version: str) -> str:
    """The machine is on the former slot as if nothing had been; returns why, from its history."""
    last = kept(machine, "1.0.0", "a")
    assert (last["version"], last["resolution"]) == (version, "kRolledBack"), last
    return str(last["why"])


def test_good_update(machine: VirtualMachine) -> None:
    begin(machine, "good")
    assert machine.wait_up() == "b"
    last = kept(machine, "1.1.0", "b")
    assert (last["version"], last["resolution"]) == ("1.1.0", "kActivated")
    assert machine.reboot() == "b"
    assert machine.starts() == [FIRST, "slot b (trusted)"]


def test_slot_without_a_kernel(machine: VirtualMachine) -> None:
    begin(machine, "no-kernel")
    assert machine.wait_up() == "a"
    assert "slot b did not start: slot a runs" in rolled_back(machine, "1.2.0")
    assert machine.starts()[-1] == FALLBACK


def test_slot_that_does_not_boot(machine: VirtualMachine) -> None:
    begin(machine, "no-init")
    assert machine.wait_up() == "a"
    why = rolled_back(machine, "1.3.0")
    assert "slot b did not start: slot a runs, after the boot loader had used up its tries" in why
    assert machine.starts() == [FIRST, SECOND, GIVEN_UP, FALLBACK]


def test_slot_that_is_unhealthy(machine: VirtualMachine) -> None:
    begin(machine, "unhealthy")
    assert machine.wait_up() == "b"
    assert machine.wait_up() == "a"
    assert "the engine does not start" in rolled_back(machine, "1.4.0")
    assert machine.starts() == [FIRST, "slot a (trusted)"]


def test_slot_that_hangs(machine: VirtualMachine) -> None:
    """Its kernel stops: only the hardware's watchdog can end that."""
    begin(machine, "hangs")
    assert machine.wait_up() == "b"
    while machine.wait_up() != "a":
        pass
    assert "after the boot loader had used up its tries" in rolled_back(machine, "1.5.0")
    assert machine.console.read_text(errors="replace").count("the kernel stops") == 2
    assert machine.starts() == [FIRST, SECOND, GIVEN_UP, FALLBACK]


def test_power_cuts_while_the_new_slot_boots(machine: VirtualMachine) -> None:
    """More of them than there are tries: the one that otaflow could see is given back."""
    begin(machine, "good")
    assert machine.wait_up() == "b"
    machine.cut_power()  # before anything of otaflow ran
    assert machine.switch_on() == "b"
    machine.wait_active("otaflow-recover.service")
    machine.cut_power()
    assert machine.switch_on() == "b"
    last = kept(machine, "1.1.0", "b")
    assert (last["version"], last["resolution"]) == ("1.1.0", "kActivated")
    assert machine.starts() == [FIRST, SECOND, SECOND]


def test_damaged_environment(machine: VirtualMachine) -> None:
    machine.check("dd if=/dev/zero of=/boot/loader/grub/grubenv bs=1024 count=1 conv=fsync status=none")
    assert machine.reboot() == "a"
    assert machine.starts() == ["slot a (no environment)"]
    _, output = machine.run("otaflow status")
    assert "GRUB's environment" in output
