"""A virtual machine that has booted long ago: made once, it spares each test a boot.

python tests/support/vm_booted.py       # makes all that the tests on virtual machines need
"""

import tempfile
from pathlib import Path

from virtual_machine import VirtualMachine
from vm_disk import KINDS, make_disk
from vm_parts import find_parts


def find_booted(disk: Path) -> Path:
    """An overlay of the disk, with a snapshot of the machine that has booted from it; kept beside the disk."""
    kept = disk.with_name("booted.qcow2")
    if not kept.exists():
        print(f"making {kept}", flush=True)
        with tempfile.TemporaryDirectory(prefix="booted-", dir=disk.parent) as folder:
            machine = VirtualMachine(disk, Path(folder))
            try:
                _boot(machine)
            finally:
                machine.cut_power()
            machine.drive.rename(kept)
    return kept


def _boot(machine: VirtualMachine) -> None:
    assert machine.switch_on() == "a"
    machine.wait_idle()
    assert machine.starts() == ["slot a (trusted)"]
    machine.save()


if __name__ == "__main__":
    for kind in KINDS:
        find_booted(make_disk(find_parts(), kind))
