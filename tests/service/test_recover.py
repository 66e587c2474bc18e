"""`otaflow recover`: nothing to do, a torn or damaged journal, a session that waits for its client."""

import errno
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from update_world import World, differences

from otaflow.errors import JournalCorrupt, OperationNotPermitted
from otaflow.platform.describe import describe
from otaflow.records import encode, read
from otaflow.tasks.applications import prepare_files

WATCHED = """
import sys
sys.argv = ["otaflow", "recover"]
from otaflow.cli import main
main()
heavy = {"prefect", "tuf", "httpx", "fastapi", "securesystemslib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_with_nothing_to_do_it_changes_nothing_and_loads_no_prefect(world: World) -> None:
    before = describe(world.root, times=True)
    environment = {**os.environ, "OTAFLOW_CONFIG": str(world.config)}
    done = subprocess.run([sys.executable, "-c", WATCHED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing to recover" in done.stdout
    assert describe(world.root, times=True) == before


def test_with_something_to_do_it_loads_no_prefect(world: World, zygote: Any) -> None:
    assert zygote.run(world, "install", fault="run_update_program.done:kill", action=world.up()) == -9
    environment = {**os.environ, "OTAFLOW_CONFIG": str(world.config)}
    done = subprocess.run([sys.executable, "-c", WATCHED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "recovered: Idle" in done.stdout


def test_the_fault_of_the_environment_kills(world: World, otaflow: Any, zygote: Any) -> None:
    """The way in which a person asks for a fault: OTAFLOW_FAULT."""
    before = world.picture()
    assert zygote.run(world, "install", fault="flip_slot.acted:kill", action=world.up()) == -9
    done = otaflow("recover", check=False, OTAFLOW_FAULT="undo.flip_slot.acted:kill")
    assert done.returncode == -9
    otaflow("recover")
    assert differences(before, world.picture()) == {}
    history = json.loads(otaflow("history", "--json").stdout)
    assert [record["resolution"] for record in history] == ["kActivated", "kFailed"]
    status = json.loads(otaflow("status", "--json").stdout)
    assert status["ucm_state"] == "Idle"
    assert status["system_version"] == "1.1.0"
    assert status["last_result"]["resolution"] == "kFailed"


def test_a_session_of_a_client_waits_for_it(world: World, zygote: Any) -> None:
    before = world.picture()
    assert zygote.run(world, "process", action=world.up()) == 0
    ready = world.picture()
    assert ready["?state"] == "Ready"
    assert zygote.run(world, "recover") == 0
    assert differences(ready, world.picture()) == {}
    assert zygote.run(world, "revert") == 0
    assert differences(before, world.picture()) == {}


def test_a_second_package_that_is_killed_leaves_the_first_ready(world: World, zygote: Any) -> None:
    assert zygote.run(world, "process", action=world.up()) == 0
    ready = world.picture()
    second = world.up(world.packages.make("1.3.0", number=3), "1.3.0", 3)
    for point in ("<ProcessSwPackage Ready.after", "copy_active_slot.done", "run_update_program.acted"):
        assert zygote.run(world, "process", fault=f"{point}:kill", action=second) == -9
        assert zygote.run(world, "recover") == 0
        assert differences(ready, world.picture()) == {}, point


# --- the journal's file -----------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_dropped(world: World, otaflow: Any, zygote: Any) -> None:
    before = world.picture()
    assert zygote.run(world, "install", fault="back_up_full.acted:kill", action=world.up()) == -9
    journal = world.device().nvm / "journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + encode({"kind": "done", "id": "x"})[:-7])
    otaflow("recover")
    assert differences(before, world.picture()) == {}
    assert journal.read_bytes().startswith(whole)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_journal_cut_anywhere_in_its_last_line_is_recovered(world: World, zygote: Any, cut: int) -> None:
    before = world.picture()
    assert zygote.run(world, "install", fault="copy_active_slot.before:kill", action=world.up()) == -9
    journal = world.device().nvm / "journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:-cut])
    assert zygote.run(world, "recover") == 0
    assert differences(before, world.picture()) == {}


def test_a_damaged_line_in_the_middle_is_a_clear_error(world: World, otaflow: Any) -> None:
    journal = world.device().nvm / "journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"kind", b"kimd")
    journal.write_bytes(b"".join(lines))
    before = describe(world.root, times=True)
    done = otaflow("recover", check=False)
    assert done.returncode == 1
    assert "line 4 is damaged" in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    assert describe(world.root, times=True) == before


def test_a_damaged_history_is_a_clear_error(world: World, otaflow: Any) -> None:
    with pytest.raises(OperationNotPermitted), world.ucm() as ucm:
        ucm.finish()
    history = world.device().nvm / "history"
    history.write_bytes(b"00000000 {}\n" + history.read_bytes())
    done = otaflow("history", check=False)
    assert done.returncode == 1
    assert "line 1 is damaged" in done.stderr
    with pytest.raises(JournalCorrupt):
        world.device().history.read()


def test_the_journal_starts_anew_when_it_has_grown(world: World, quick: None, monkeypatch: Any) -> None:
    monkeypatch.setattr("otaflow.journal.COMPACT_BYTES", 100)
    world.install(world.up())
    records = read(world.device().nvm / "journal")[0]
    assert {record["kind"] for record in records} <= {"transition", "note", "kept"}
    assert not any("checks" in record for record in records)
    assert world.device().journal.state == "Idle"
    world.install(world.action("previous-slot"))
    assert world.device().running_system().version == "1.1.0"


def test_a_disk_too_full_to_start_it_anew_keeps_the_old_one(world: World, quick: None, monkeypatch: Any) -> None:
    """The session's end is on the disk by then: it is not told as a failure."""
    monkeypatch.setattr("otaflow.journal.COMPACT_BYTES", 100)

    def replace(self: Any, records: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("otaflow.records.RecordFile.replace", replace)
        world.install(world.up())
    journal = world.device().nvm / "journal"
    assert "intent" in {record["kind"] for record in read(journal)[0]}
    assert world.device().journal.state == "Idle"
    world.install(world.action("previous-slot"))
    assert "intent" not in {record["kind"] for record in read(journal)[0]}


# --- the history ------------------------------------------------------------------------------------------------------


def test_the_history_is_kept_for_ever_and_holds_each_end_once(world: World, zygote: Any) -> None:
    """A kill between the record and the transition repeats the record's writing, not the record."""
    for number in range(3):
        point = "!ProcessSwPackageCancelled Processing.before"
        assert zygote.run(world, "install", fault="back_up_full.done:kill", action=world.up()) == -9
        assert zygote.run(world, "recover", fault=f"{point}:kill") == -9
        assert zygote.run(world, "recover", fault=f"{point}:kill") == -9
        assert zygote.run(world, "recover") == 0
        assert len(world.resolutions()) == number + 2


def test_the_processing_log_tells_what_the_program_said(world: World, otaflow: Any, quick: None) -> None:
    world.install(world.up())
    assert "installing 1.2.0 over 1.1.0" in otaflow("history", "--log").stdout
    assert Path(world.device().logs, f"{world.last()['session']}.log").is_file()


def test_a_journal_of_another_otaflow_is_read(world: World) -> None:
    """An update may bring a new otaflow: its recovery reads what the former one wrote, and the other way round."""
    device = world.device()
    journal = device.nvm / "journal"
    records = read(journal)[0]
    for record in records:
        if "action" in record and record["kind"] == "transition":
            record["action"]["of another version"] = 1
            del record["action"]["source"]
    journal.write_bytes(b"".join(encode(record) for record in records))
    assert world.device().journal.state == "Idle"


def test_what_a_former_otaflow_remembered_is_enough_to_take_it_back() -> None:
    """It kept no room for an application."""
    prepared = {"name": "notes", "kept": "0123456789ab-0", "made_data": False}
    undo = prepare_files.take_back
    assert undo
    assert inspect.signature(undo).bind(**prepared)
