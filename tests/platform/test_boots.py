"""How a boot ended, told at the next one."""

import json
from pathlib import Path
from typing import Any

import pytest

from otaflow.platform.boots import KEPT, Boots, Ending


class Machine:
    """A machine whose boots are played: its boot id, its watchdog, its pstore."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.boot_id = folder / "boot_id"
        self.number = 0
        (folder / "sys/fs/pstore").mkdir(parents=True)
        self.start()

    def start(self) -> None:
        self.number += 1
        self.boot_id.write_text(f"boot-{self.number}\n")

    def boots(self) -> Boots:
        return Boots(self.folder / "nvm/boots.json", self.boot_id, self.folder / "sys")

    def reset(self, status: str, name: str = "watchdog0") -> None:
        path = self.folder / f"sys/class/watchdog/{name}/bootstatus"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(status)

    def dump(self, name: str = "dmesg-efi-1") -> None:
        (self.folder / "sys/fs/pstore" / name).write_text("panic")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


ENDS: dict[str, tuple[Any, Ending]] = {
    "nothing is left": (lambda machine: None, Ending.POWER_CUT),
    "a note": (lambda machine: machine.boots().note_going_down(), Ending.ORDERLY),
    "a deadline's note": (lambda machine: machine.boots().note_going_down(Ending.DEADLINE), Ending.DEADLINE),
    "the watchdog": (lambda machine: machine.reset("32\n"), Ending.HANG),
    "the watchdog, in hexadecimal": (lambda machine: machine.reset("0x8020"), Ending.HANG),
    "the second watchdog": (lambda machine: [machine.reset("0"), machine.reset("32", "watchdog1")], Ending.HANG),
    "a watchdog that did nothing": (lambda machine: machine.reset("0x8000"), Ending.POWER_CUT),
    "a watchdog that cannot be read": (lambda machine: machine.reset("?"), Ending.POWER_CUT),
    "a crash dump": (lambda machine: machine.dump(), Ending.CRASH),
    "a watchdog and a dump": (lambda machine: [machine.reset("32"), machine.dump()], Ending.HANG),
    "a note, and the watchdog while it went down": (
        lambda machine: [machine.boots().note_going_down(), machine.reset("32")],
        Ending.ORDERLY,
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_how_a_boot_ended(case: str, machine: Machine) -> None:
    end, ending = ENDS[case]
    assert machine.boots().note_boot() == 1
    end(machine)
    machine.start()
    assert machine.boots().note_boot() == 2
    assert machine.boots().note_boot() == 2
    assert machine.boots().endings(0) == [ending]
    assert machine.boots().endings(2) == []


def test_a_note_and_a_dump_count_for_one_boot(machine: Machine) -> None:
    machine.boots().note_boot()
    machine.boots().note_going_down()
    machine.dump()
    for _ in range(3):
        machine.start()
        machine.boots().note_boot()
    assert machine.boots().endings(1) == [Ending.ORDERLY, Ending.POWER_CUT, Ending.POWER_CUT]
    machine.dump("dmesg-efi-2")
    machine.start()
    machine.boots().note_boot()
    assert machine.boots().endings(4) == [Ending.CRASH]


def test_a_restart_of_the_system_alone_is_orderly(machine: Machine) -> None:
    assert machine.boots().note_restart() == 2
    assert machine.boots().endings(1) == [Ending.ORDERLY]


def test_a_boot_that_nobody_counted_is_not_judged(machine: Machine) -> None:
    """The broken slot's boots: no otaflow ran in them."""
    machine.boots().note_boot()
    machine.start()
    machine.start()
    assert machine.boots().note_boot() == 2
    assert len(machine.boots().endings(0)) == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"count": 7, "boot_id": "x", "endings": 3}', "\0"], ids=repr)
def test_a_damaged_counter_begins_anew(text: str, machine: Machine) -> None:
    machine.boots().note_boot()
    (machine.folder / "nvm/boots.json").write_text(text)
    assert machine.boots().note_boot() == 1


def test_the_counter_of_a_former_otaflow_is_read(machine: Machine) -> None:
    (machine.folder / "nvm").mkdir()
    (machine.folder / "nvm/boots.json").write_text('{"count": 7, "boot_id": "earlier"}')
    assert machine.boots().note_boot() == 8
    assert machine.boots().endings(7) == [Ending.POWER_CUT]


def test_endings_are_bounded_and_unknown_ones_left_out(machine: Machine) -> None:
    for _ in range(KEPT + 9):
        machine.boots().note_boot()
        machine.start()
    file = machine.folder / "nvm/boots.json"
    values = json.loads(file.read_text())
    assert len(values["endings"]) == KEPT
    values["endings"][str(values["count"] - 1)] = "of another otaflow"
    file.write_text(json.dumps(values))
    assert len(machine.boots().endings(0)) == KEPT - 1


def test_a_torn_note_is_no_note(machine: Machine) -> None:
    machine.boots().note_boot()
    (machine.folder / "nvm/going-down").write_text("boot-1 ORD")
    machine.start()
    machine.boots().note_boot()
    assert machine.boots().endings(1) == [Ending.POWER_CUT]
