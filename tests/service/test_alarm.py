"""What cannot be cleaned up: tried a bounded number of times, then Idle with an alarm, and tried again later."""

from collections.abc import Iterator
from typing import Any

import pytest
from update_world import NAME, SICK, World, differences

from otaflow import fault
from otaflow.action import Action
from otaflow.actions import find_way_back
from otaflow.cli.report import read_status
from otaflow.errors import NothingToRollback, OtaflowError, UndoFailed
from otaflow.flows.retention import retention
from otaflow.recovery import recover
from otaflow.ucm.states import State

TRIES = 3
LIMIT = f"[health]\nclean_ups = {TRIES}\n"


@pytest.fixture(autouse=True)
def no_fault_is_left() -> Iterator[None]:
    yield
    fault.arm("")


def be_rolled_back(world: World, point: str) -> None:
    """A sick system is rolled back, and what is left cannot be taken back: the last try gives it up."""
    world.configure(LIMIT)
    fault.arm(point, "fail")
    with pytest.raises(UndoFailed):
        world.install(world.up(world.packages.make(health=SICK)))
    for _ in range(TRIES - 2):
        assert world.device().journal.state is State.CLEANING_UP
        with world.ucm() as ucm, pytest.raises(UndoFailed):
            recover(ucm)
    assert world.device().journal.state is State.CLEANING_UP
    with world.ucm() as ucm:
        recover(ucm)
    assert world.device().journal.state is State.IDLE


def clean_up(world: World) -> None:
    with world.ucm() as ucm:
        ucm.run(retention, {})


@pytest.mark.parametrize("step", ["copy_active_slot", "back_up_full", "snapshot_main_partition", "extract_package"])
def test_it_ends_in_idle_with_an_alarm_and_is_tried_again(world: World, quick: None, step: str) -> None:
    before = world.picture()
    be_rolled_back(world, f"undo.{step}.before")
    fault.arm("")
    status = read_status(world.device())
    assert status["system_version"] == "1.1.0"
    assert step in status["alarm"]
    first, alarm = world.device().history.read()[1:]
    assert (first["version"], first["resolution"]) == ("1.2.0", "kVerificationFailed")
    assert (alarm["action"], alarm["resolution"], alarm["error"]) == ("CleanUp", "kFailed", "UndoFailed")
    assert f"{TRIES} times" in alarm["why"]
    assert step.split("_")[0] in alarm["why"]
    clean_up(world)
    assert differences(before, world.picture()) == {}
    assert read_status(world.device())["alarm"] is None


def test_a_former_system_that_is_none_is_not_gone_back_to(world: World, quick: None) -> None:
    be_rolled_back(world, "undo.copy_active_slot.before")
    with pytest.raises(NothingToRollback):
        find_way_back(world.device(), "previous-slot")
    with pytest.raises(UndoFailed):
        clean_up(world)
    assert world.device().slots.kept_names()
    fault.arm("")
    clean_up(world)
    assert find_way_back(world.device(), "previous-slot").version == "1.0.0"


def test_an_update_goes_on_top_of_it(world: World, quick: None) -> None:
    """What was given up belongs to no session any more; the next cleaning removes it."""
    be_rolled_back(world, "undo.copy_active_slot.before")
    fault.arm("")
    world.install(Action("up", NAME, "1.2.0", 2, package=str(world.packages.make())))
    assert world.device().running_system().version == "1.2.0"
    clean_up(world)
    assert world.device().slots.kept_names() == []
    assert read_status(world.device())["alarm"] is None


def test_the_journal_keeps_what_it_gave_up(world: World, quick: None, monkeypatch: Any) -> None:
    monkeypatch.setattr("otaflow.journal.COMPACT_BYTES", 100)
    be_rolled_back(world, "undo.copy_active_slot.before")
    fault.arm("")
    assert [intent.step for intent in world.device().journal.open_intents()].count("copy_active_slot") == 1


def test_leavings_of_a_revert_are_an_alarm(world: World, quick: None) -> None:
    """All is taken back; a temporary file that stays is no reason to stay in Ready."""
    with world.ucm() as ucm:
        ucm.process(world.up())
        fault.arm("remove_temporary.before", "fail")
        ucm.revert()
        assert ucm.state is State.IDLE
    assert world.last()["action"] == "CleanUp"


def test_a_try_that_succeeds_leaves_no_alarm(world: World, quick: None) -> None:
    before = world.picture()
    world.configure(LIMIT)
    fault.arm("undo.copy_active_slot.before", "fail")
    with pytest.raises(OtaflowError):
        world.install(world.up(world.packages.make(health=SICK)))
    fault.arm("")
    with world.ucm() as ucm:
        recover(ucm)
    world.configure()
    assert differences(before, world.picture()) == {}
    assert world.resolutions()[1:] == [("1.2.0", "kVerificationFailed")]
