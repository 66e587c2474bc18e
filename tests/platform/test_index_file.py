"""platform/index_file.py and boots.py beyond the contract: reboots, damage, finding the mounted slot."""

import json
from pathlib import Path

import pytest

from otaflow.errors import CommandFailed, OtaflowError
from otaflow.platform.boots import Boots
from otaflow.platform.index import _sum
from otaflow.platform.index_file import IndexFile
from otaflow.platform.running import find_mounted_slot


class Machine:
    """A device's files, and a boot id that can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.boot_id = folder / "boot_id"
        self.slots = {"a": folder / "slots" / "a", "b": folder / "slots" / "b"}
        for path in self.slots.values():
            path.mkdir(parents=True)
        self.reboot("1")

    def reboot(self, boot_id: str) -> None:
        self.boot_id.write_text(f"{boot_id}\n")

    def boots(self) -> Boots:
        return Boots(self.folder / "nvm" / "boots.json", self.boot_id)

    def boot(self, **options: object) -> IndexFile:
        return IndexFile(
            self.folder / "index.json",
            self.folder / "nvm" / "running.json",
            slots=self.slots,
            boots=self.boots(),
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.boot().set_target("a", "")
    return made


def test_a_machine_that_was_started_anew_runs_the_target(machine: Machine) -> None:
    machine.boot().set_target("b", "x")
    assert machine.boot().running() == "a"
    machine.reboot("2")
    assert machine.boot().running() == "b"
    machine.boot().set_target("a", "")
    assert machine.boot().running() == "b"


def test_the_running_slot_is_noted_before_the_first_switch(machine: Machine) -> None:
    assert not (machine.folder / "nvm" / "running.json").exists()
    machine.boot().set_target("b", "")
    assert machine.boot().running() == "a"


def test_restart_by_a_command(machine: Machine) -> None:
    boot = machine.boot(restart=["touch", str(machine.folder / "asked")], detect=lambda _: None)
    boot.set_target("b", "")
    assert boot.restart() is False
    assert (machine.folder / "asked").exists()
    assert boot.running() == "a"
    machine.reboot("2")
    assert boot.running() == "b"


def test_a_restart_command_that_fails(machine: Machine) -> None:
    with pytest.raises(CommandFailed):
        machine.boot(restart=["false"], detect=lambda _: None).restart()


def test_the_mounted_slot_is_believed_more_than_the_record(machine: Machine) -> None:
    boot = machine.boot(restart=["true"], detect=lambda _: "b")
    assert boot.running() == "b"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("quiet", None),
        ("quiet otaflow.slot=b", "b"),
        ("otaflow.slot=c", None),
        ("rootflags=subvol=/slots/b rw", "b"),
        ("rootflags=compress=zstd,subvol=b", "b"),
        ("rootflags=subvolid=257", None),
        ("rootflags=subvol=/slots/c", None),
    ],
    ids=str,
)
def test_the_slot_in_the_command_line(machine: Machine, words: str, found: str | None) -> None:
    line = machine.folder / "cmdline"
    line.write_text(f"BOOT_IMAGE=/vmlinuz {words}\n")
    assert find_mounted_slot(machine.slots, command_line=line) == found


@pytest.mark.parametrize(("content", "found"), [("b\n", "b"), ("c\n", "a"), ("", "a"), ("\udcff", "a")], ids=ascii)
def test_the_slot_that_the_switch_started(machine: Machine, content: str, found: str) -> None:
    line, started = machine.folder / "cmdline", machine.folder / "started"
    line.write_text("otaflow.slot=a\n")
    assert find_mounted_slot(machine.slots, started=started, command_line=line) == "a"
    started.write_text(content, errors="surrogateescape")
    assert find_mounted_slot(machine.slots, started=started, command_line=line) == found


def test_the_slot_that_is_the_root(machine: Machine) -> None:
    started = machine.folder / "started"
    started.write_text("a")
    assert find_mounted_slot(machine.slots, root=machine.slots["b"], started=started) == "b"


def sealed(**values: object) -> str:
    return json.dumps({**values, "checksum": _sum(dict(values))})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "no index"),
        ("[]", "no index"),
        ('{"boot": "a"}', "no index"),
        ("\0" * 100, "no index"),
        ('{"format": 1, "boot": "b", "promise": "", "checksum": "0"}', "checksum is wrong"),
        (sealed(format=2, boot="a", promise=""), "its format is 2"),
        (sealed(format=1, boot="c", promise=""), "names the slot 'c'"),
    ],
    ids=["empty", "list", "keys", "zeros", "checksum", "format", "slot"],
)
def test_a_damaged_index(machine: Machine, content: str, why: str) -> None:
    (machine.folder / "index.json").write_text(content)
    with pytest.raises(OtaflowError, match=f"cannot use the index file.*{why}") as caught:
        machine.boot().target()
    assert caught.value.hint


def test_no_index(machine: Machine) -> None:
    (machine.folder / "index.json").unlink()
    with pytest.raises(OtaflowError, match="there is none"):
        machine.boot().running()


def test_a_damaged_run_record_is_not_guessed(machine: Machine) -> None:
    machine.boot().running()
    (machine.folder / "nvm" / "running.json").write_text("{")
    with pytest.raises(OtaflowError, match="cannot tell which slot runs"):
        machine.boot().running()


def test_counting_boots(machine: Machine) -> None:
    boots = machine.boots()
    assert boots.count() == 1, "it runs, counted or not"
    assert [boots.note_boot(), boots.note_boot(), boots.count()] == [1, 1, 1]
    machine.reboot("2")
    assert boots.count() == 2
    assert [boots.note_boot(), boots.note_boot()] == [2, 2]
    machine.boot().restart()
    assert [boots.note_boot(), boots.count()] == [3, 3]


@pytest.mark.parametrize("content", ["", "{}", "[]", "null"])
def test_a_damaged_counter_starts_again(machine: Machine, content: str) -> None:
    machine.boots().note_boot()
    (machine.folder / "nvm" / "boots.json").write_text(content)
    assert machine.boots().note_boot() == 1
