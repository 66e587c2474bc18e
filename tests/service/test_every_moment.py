"""The promise of the whole: wherever an update fails or is killed, the device is exactly what it was.

The moments are not listed here: they are the fault points that a good run, a failing one and a sick one really pass
(`recorded`). A kill is SIGKILL; after it comes `otaflow recover`, the real command.
"""

from collections.abc import Callable
from typing import Any

import pytest
from update_world import STORIES, World, differences, recorded

from otaflow.errors import HealthCheckFailed, OtaflowError, UndoFailed
from otaflow.flows.retention import retention
from otaflow.recovery import recover
from otaflow.tasks.step import STEPS

DECIDED = {"good": "flip_slot.done", "previous-slot": "flip_slot.done", "backup": "flip_slot.done"}
DECIDED["snapshot"] = "restore_main.done"
"""From this moment on a story goes on after a kill; before it, it is taken back."""

WAYS_BACK = ("previous-slot", "backup", "snapshot")


def moments(story: str) -> list[str]:
    return recorded()[story]


def steps_of(story: str, first: str = "", before: str = "restart.before") -> list[str]:
    """The points of steps from `first` on, up to `before`."""
    names = moments(story)
    names = names[names.index(first) if first else 0 : names.index(before) if before else None]
    return [name for name in names if " " not in name and not name.startswith("undo.")]


def is_decided(story: str, point: str) -> bool:
    return moments(story).index(point) >= moments(story).index(DECIDED[story])


def told(*stories: str, of: Callable[[str], list[str]] = moments) -> list[Any]:
    """(story, point) for each point of each story."""
    return [pytest.param(story, point, id=f"{story}: {point}") for story in stories for point in of(story)]


def test_the_records_hold_every_step() -> None:
    passed = {name.split(".")[0] for story in STORIES for name in moments(story)}
    of_the_repository = {"connect", "check_certificate", "authenticate", "update_package_repository"}
    of_the_repository |= {"find_new_packages", "download_package", "take_file", "authenticate_package"}
    of_the_repository |= {"find_packages_of"}
    of_retention = {"find_expired", "end_full_backup", "end_snapshot", "remove_leavings", "remove_old_files"}
    elsewhere = ("policy", "applications", "services", "migration")  # test_every_moment_of_applications.py has the rest
    others = {name for name, step in STEPS.items() if step.do.__module__.rpartition(".")[2] in elsewhere}
    others |= {"check_application", "check_removal", "check_connection"}
    assert set(STEPS) - passed - of_the_repository - others == of_retention


# --- a step fails -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("story", "point"), told("good", *WAYS_BACK, of=steps_of))
def test_a_step_that_fails_leaves_the_device_as_it_was(world: World, story: str, point: str, fault_points: Any) -> None:
    before = world.picture()
    action = STORIES[story](world)
    fault_points(point, "fail")
    with pytest.raises(OtaflowError, match="a fault was asked for"):
        world.install(action)
    assert differences(before, world.picture()) == {}
    assert world.resolutions()[1:] == [(action.version, "kFailed")]
    assert "a fault was asked for" in world.last()["why"]


@pytest.mark.parametrize("point", steps_of("good", "restart.before", "forget_kept.before"))
def test_a_trial_that_fails_is_rolled_back(world: World, point: str, fault_points: Any) -> None:
    before = world.picture()
    fault_points(point, "fail")
    with pytest.raises(OtaflowError, match="a fault was asked for") as refusal:
        world.install(world.up())
    if point in ("restart.acted", "restart.done"):  # the rollback cannot restart either
        assert world.device().journal.state == "RollingBackFailed"
        fault_points("")
        with world.ucm() as ucm:
            recover(ucm)
    else:
        assert isinstance(refusal.value, HealthCheckFailed)
    assert differences(before, world.picture()) == {}
    assert world.resolutions()[1:] == [("1.2.0", "kVerificationFailed")]


@pytest.mark.parametrize("point", steps_of("good", "forget_kept.before", ""))
def test_cleaning_that_fails_is_an_alarm_and_is_made_up_for(
    world: World, worlds: Any, point: str, fault_points: Any
) -> None:
    good = worlds.outcome("good", world.kind)
    fault_points(point, "fail")
    world.install(world.up())
    fault_points("")
    assert world.device().journal.state == "Idle"
    assert world.resolutions()[1:] == [("1.2.0", "kActivated"), ("1.2.0", "kFailed")]
    assert world.last()["action"] == "CleanUp"
    with world.ucm() as ucm:
        ucm.run(retention, {})
    assert differences(good, world.outcome()) == {}


# --- a kill -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", moments("good"))
def test_a_kill_and_recover_leave_all_or_nothing(
    world: World, worlds: Any, point: str, zygote: Any, otaflow: Any
) -> None:
    before = world.picture()
    assert zygote.run(world, "install", fault=f"{point}:kill", action=world.up()) == -9
    otaflow("recover")
    check_all_or_nothing(world, worlds, "good", point, before)


def moments_of_its_own(story: str) -> list[str]:
    """Up to the trial, and what the trial and the cleaning of an update do not pass: those are tried above."""
    names = moments(story)
    trial = names.index("restart.before")
    return [name for number, name in enumerate(names) if number < trial or name not in moments("good")]


@pytest.mark.parametrize(("story", "point"), told(*WAYS_BACK, of=moments_of_its_own))
def test_a_way_back_that_is_killed_is_gone_wholly_or_not(
    world: World, worlds: Any, story: str, point: str, zygote: Any
) -> None:
    before = world.picture()
    assert zygote.run(world, "install", fault=f"{point}:kill", action=STORIES[story](world)) == -9
    assert zygote.run(world, "recover") == 0
    check_all_or_nothing(world, worlds, story, point, before)


def check_all_or_nothing(world: World, worlds: Any, story: str, point: str, before: Any) -> None:
    if is_decided(story, point):
        assert differences(worlds.outcome(story, world.kind), world.outcome()) == {}
        assert [end for _, end in world.resolutions()[1:]] == ["kActivated"]
    else:
        assert differences(before, world.picture()) == {}
        began = point != "<ProcessSwPackage Idle.before"
        assert [end for _, end in world.resolutions()[1:]] == (["kFailed"] if began else [])


def own_moments(story: str) -> list[str]:
    """What a story that ends badly passes after what it has in common with the good one."""
    return [name for name in moments(story) if name not in moments("good") or "Cleaning-Up" in name]


ENDS = {"failing program": "kFailed", "sick system": "kVerificationFailed"}


@pytest.mark.parametrize(("story", "point"), told(*ENDS, of=own_moments))
def test_a_kill_in_the_middle_of_an_undo(world: World, story: str, point: str, zygote: Any) -> None:
    before = world.picture()
    assert zygote.run(world, "install", fault=f"{point}:kill", action=STORIES[story](world)) == -9
    assert zygote.run(world, "recover") == 0
    assert differences(before, world.picture()) == {}
    assert [end for _, end in world.resolutions()[1:]] == [ENDS[story]]


def undo_moments() -> list[str]:
    names = [name for name in moments("failing program") if name.startswith("undo.")]
    cancelled = "!ProcessSwPackageCancelled Processing"
    return [*names, f"{cancelled}.before", f"{cancelled}.after"]


@pytest.mark.parametrize("point", undo_moments())
def test_a_second_kill_in_the_middle_of_recover(world: World, point: str, zygote: Any) -> None:
    before = world.picture()
    assert zygote.run(world, "install", fault="run_update_program.acted:kill", action=world.up()) == -9
    assert zygote.run(world, "recover", fault=f"{point}:kill") == -9
    assert zygote.run(world, "recover") == 0
    assert differences(before, world.picture()) == {}
    assert world.resolutions()[1:] == [("1.2.0", "kFailed")]


def rollback_moments() -> list[str]:
    names = moments("sick system")
    return names[names.index("!Fail Verifying.before") :]


@pytest.mark.parametrize("point", rollback_moments())
def test_a_second_kill_while_recover_rolls_back(world: World, point: str, zygote: Any) -> None:
    before = world.picture()
    action = STORIES["sick system"](world)
    assert zygote.run(world, "install", fault="restart.acted:kill", action=action) == -9
    assert zygote.run(world, "recover", fault=f"{point}:kill") == -9
    assert zygote.run(world, "recover") == 0
    assert differences(before, world.picture()) == {}
    assert world.resolutions()[1:] == [("1.2.0", "kVerificationFailed")]


# --- an undo fails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [name for name in undo_moments() if name.endswith((".before", ".acted"))][:-1])
def test_an_undo_that_fails_is_told_and_tried_again(world: World, point: str, fault_points: Any) -> None:
    before = world.picture()
    fault_points(point, "fail")
    with pytest.raises(UndoFailed, match="cannot take back"):
        world.install(STORIES["failing program"](world))
    assert world.device().journal.state == "Processing"
    fault_points("")
    with world.ucm() as ucm:
        recover(ucm)
    assert differences(before, world.picture()) == {}
    assert [end for _, end in world.resolutions()[1:]] == ["kFailed"]
