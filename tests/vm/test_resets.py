"""What stops a machine with GRUB from outside, or damages it: a watchdog, the plug, zeros in GRUB's environment."""

import pytest
from virtual_machine import VirtualMachine
from vm_device import AGAIN, FALLBACK, FIRST, GIVEN_UP, SECOND, begin, check_kept, check_rolled_back, read_last
from vm_disk import HOLD

from otaflow.history import ACTIVATED

pytestmark = pytest.mark.vm


def test_slot_that_hangs(machine: VirtualMachine) -> None:
    """Its kernel stops: only the hardware's watchdog can end that."""
    begin(machine, "hangs")
    while machine.wait_up() != "a":  # it may stop before we hear of it
        pass
    assert check_rolled_back(machine, "1.5.0") == "slot b did not start in 2 tries: the boot loader went back to slot a"
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
    check_kept(machine, "1.0.0", "a")
    assert "GRUB's environment" in read_last(machine)["why"]
    assert machine.reboot() == "a"
    assert machine.starts() == ["slot a (no environment)", AGAIN]
