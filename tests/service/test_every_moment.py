"""The promise of the whole: wherever an update fails or is killed, the device is exactly what it was.

The moments are not listed here: they are the fault points that a good run, a failing one and a sick one really pass
(`recorded`). A kill is SIGKILL; after it comes `otaflow recover`, the real command.
"""

from typing import Any

import pytest
from update_world import STORIES, World, differences, recorded

from otaflow.errors import OtaflowError
from otaflow.tasks.step import STEPS


def moments(story: str) -> list[str]:
    return recorded()[story]


def steps_of(story: str) -> list[str]:
    """The points of steps, up to the flip; what comes later is on trial, and taken back as a whole."""
    names = [name for name in moments(story) if " " not in name and not name.startswith("undo.")]
    return names[: names.index("restart.before")]


def test_the_records_hold_every_step() -> None:
    passed = {name.split(".")[0] for story in STORIES for name in moments(story)}
    of_the_repository = {"connect", "check_certificate", "authenticate", "update_package_repository"}
    of_the_repository |= {"find_new_packages", "download_package", "authenticate_package"}
    of_retention = {"find_expired", "end_full_backup", "end_snapshot", "remove_old_files"}
    assert set(STEPS) - passed - of_the_repository == of_retention


@pytest.mark.parametrize("point", steps_of("good"))
def test_a_step_that_fails_leaves_the_device_as_it_was(world: World, point: str, fault_points: Any) -> None:
    before = world.picture()
    fault_points(point, "fail")
    with pytest.raises(OtaflowError, match="a fault was asked for"):
        world.install(world.up())
    assert differences(before, world.picture()) == {}
    assert world.last()["resolution"] == "kFailed"
    assert "a fault was asked for" in world.last()["why"]
    assert len(world.resolutions()) == 2


@pytest.mark.parametrize("point", moments("good"))
def test_a_kill_and_recover_leave_all_or_nothing(
    world: World, worlds: Any, point: str, zygote: Any, otaflow: Any
) -> None:
    before = world.picture()
    assert zygote.run(world, "install", fault=f"{point}:kill", action=world.up()) == -9
    otaflow("recover")
    all_points = moments("good")
    if all_points.index(point) < all_points.index("flip_slot.done"):
        assert differences(before, world.picture()) == {}
        began = point != "<ProcessSwPackage Idle.before"
        assert world.resolutions()[1:] == ([("1.2.0", "kFailed")] if began else [])
    else:
        assert differences(worlds.outcome("good", world), world.outcome()) == {}
        assert world.picture()["?state"] == "Idle"
        assert world.resolutions()[1:] == [("1.2.0", "kActivated")]
