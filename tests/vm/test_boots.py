"""Whole updates on a machine with GRUB, from the command to the boot that ends them: whatever the new slot does, and
whenever the power goes, the machine ends on a good slot.
"""

import pytest
from virtual_machine import VirtualMachine
from vm_device import begin, check_kept, read_last
from vm_disk import HOLD

from otaflow.history import ACTIVATED, VERIFICATION_FAILED

pytestmark = pytest.mark.vm

FIRST, SECOND = "slot b (on trial, tries left after this one: 1)", "slot b (on trial, tries left after this one: 0)"
GIVEN_UP = "slot b has no tries left"
FALLBACK = "slot a (fallback)"
AGAIN = "slot a (trusted)"
"""What was taken back is started once more, after the boot loader has fallen back: it ran while its data came back."""


def rolled_back(machine: VirtualMachine, version: str) -> str:
    """The machine is on the former slot as if nothing had been; returns why, from its history."""
    check_kept(machine, "1.0.0", "a")
    last = read_last(machine)
    assert (last["version"], last["resolution"]) == (version, VERIFICATION_FAILED), last
    return str(last["why"])


def test_good_update(machine: VirtualMachine) -> None:
    begin(machine, "good")
    assert machine.wait_up() == "b"
    check_kept(machine, "1.1.0", "b")
    last = read_last(machine)
    assert (last["version"], last["resolution"]) == ("1.1.0", ACTIVATED)
    assert machine.reboot() == "b"
    assert machine.starts() == [FIRST, "slot b (trusted)"]


def test_slot_without_a_kernel(machine: VirtualMachine) -> None:
    begin(machine, "no-kernel")
    assert machine.wait_up() == "a"
    assert rolled_back(machine, "1.2.0") == "slot b did not start: the boot loader went back to slot a"
    assert machine.starts() == [FALLBACK, AGAIN]


def test_slot_that_does_not_boot(machine: VirtualMachine) -> None:
    begin(machine, "no-init")
    assert machine.wait_up() == "a"
    assert rolled_back(machine, "1.3.0") == "slot b did not start in 2 tries: the boot loader went back to slot a"
    assert machine.starts() == [FIRST, SECOND, GIVEN_UP, FALLBACK, AGAIN]


def test_slot_that_is_unhealthy(machine: VirtualMachine) -> None:
    begin(machine, "unhealthy")
    assert machine.wait_up() == "b"
    assert machine.wait_up() == "a"
    assert "the engine does not start" in rolled_back(machine, "1.4.0")
    assert machine.starts() == [FIRST, AGAIN]


def test_slot_that_hangs(machine: VirtualMachine) -> None:
    """Its kernel stops: only the hardware's watchdog can end that."""
    begin(machine, "hangs")
    while machine.wait_up() != "a":  # it may stop before we hear of it
        pass
    assert rolled_back(machine, "1.5.0") == "slot b did not start in 2 tries: the boot loader went back to slot a"
    assert machine.console.read_text(errors="replace").count("the kernel stops") == 2
    assert machine.starts() == [FIRST, SECOND, GIVEN_UP, FALLBACK, AGAIN]


def test_power_cuts_while_the_new_slot_boots(machine: VirtualMachine) -> None:
    """As many of them as there are tries: those that `otaflow recover` has seen begin are given back."""
    machine.check(f"touch {HOLD}")
    begin(machine, "good")
    for _ in range(2):
        assert machine.wait_up() == "b"
        machine.wait_active("otaflow-recover.service")
        machine.cut_power()
        machine.switch_on(wait=False)
    assert machine.wait_up() == "b"
    machine.check(f"rm {HOLD}")
    check_kept(machine, "1.1.0", "b")
    last = read_last(machine)
    assert (last["version"], last["resolution"]) == ("1.1.0", ACTIVATED)
    assert machine.starts() == [FIRST, SECOND, SECOND]


def test_damaged_environment(machine: VirtualMachine) -> None:
    machine.check("dd if=/dev/zero of=/boot/loader/grub/grubenv bs=1024 count=1 conv=fsync status=none")
    assert machine.reboot() == "a"
    assert machine.starts() == ["slot a (no environment)"]
    _, output = machine.run("otaflow status")
    assert "GRUB's environment" in output
