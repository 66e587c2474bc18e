"""Whole updates on a machine with GRUB, from the command to the boot that ends them: whatever the new slot does, the
machine ends on a good slot.
"""

import pytest
from virtual_machine import VirtualMachine
from vm_device import AGAIN, FALLBACK, FIRST, GIVEN_UP, SECOND, begin, check_kept, check_rolled_back, read_last
from vm_disk import KINDS

from otaflow.history import ACTIVATED

pytestmark = [pytest.mark.vm, pytest.mark.parametrize("kind", KINDS, scope="session")]


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
    assert check_rolled_back(machine, "1.2.0") == "slot b did not start: the boot loader went back to slot a"
    assert machine.starts() == [FALLBACK, AGAIN]


def test_slot_that_does_not_boot(machine: VirtualMachine) -> None:
    begin(machine, "no-init")
    assert machine.wait_up() == "a"
    assert check_rolled_back(machine, "1.3.0") == "slot b did not start in 2 tries: the boot loader went back to slot a"
    assert machine.starts() == [FIRST, SECOND, GIVEN_UP, FALLBACK, AGAIN]


def test_slot_that_is_unhealthy(machine: VirtualMachine) -> None:
    begin(machine, "unhealthy")
    assert machine.wait_up() == "b"
    assert machine.wait_up() == "a"
    assert "the engine does not start" in check_rolled_back(machine, "1.4.0")
    assert machine.starts() == [FIRST, AGAIN]
