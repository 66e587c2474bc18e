"""The promise for applications: wherever their update fails or is killed, files, data and programs are as they were.

The moments are the fault points that each story really passes. After a kill comes `otaflow recover`; with `power` every
program is gone as well, and the machine starts anew.
"""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_world import FAIL_HALF_WAY, LightWorld, build_system
from update_world import differences

from otaflow import fault
from otaflow.action import Action
from otaflow.errors import OtaflowError
from otaflow.recovery import recover

SICK = {"health": [{"name": "well", "command": ["sh", "-c", "echo unwell; exit 1"], "tries": 1}]}
"""Not a service that ends: whether that is seen at its start or later depends on the machine."""
DATABASE = {"kind": "sqlite", "path": "notes.db", "application": "notes"}
OF_THE_SYSTEM: dict[str, Any] = {
    "migrations": [{"database": DATABASE, "sql": ["up.sql"]}],
    "services": {"restart": ["notes.service"]},
}
STORIES: dict[str, Callable[[LightWorld], list[Action]]] = {
    "update": lambda world: [world.update_light()],
    "failing migration": lambda world: [
        world.action("1.1.0", world.build_light("1.1.0", before="1.0.0", sql=FAIL_HALF_WAY))
    ],
    "sick application": lambda world: [world.update_light(**SICK)],
    "system and application": lambda world: [
        build_system(world, files={"up.sql": "INSERT INTO notes (text) VALUES ('of the system');"}, **OF_THE_SYSTEM),
        world.update_light(),
    ],
    "remove": lambda world: [world.action("1.0.0", Path(), "remove")],
}
ALLOWED = {"1.0.0 on schema 1", "1.1.0 on schema 2"}
"""A program is never started on another one's data, at no moment of any story."""
Picture = dict[str, Any]


@functools.cache
def recorded() -> dict[str, list[str]]:
    """Every fault point that each story passes, in order."""
    passed: dict[str, list[str]] = {}
    point, fault.point = fault.point, lambda name: names.append(name)
    names: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="otaflow-test-") as folder:
            for number, (story, choose) in enumerate(STORIES.items()):
                world = LightWorld(Path(folder, str(number)))
                try:
                    world.install_light()
                    names = []
                    with contextlib.suppress(OtaflowError):
                        world.install(*choose(world))
                finally:
                    world.close()
                passed[story] = list(dict.fromkeys(names))
    finally:
        fault.point = point
    return passed


def told(of: Callable[[str], list[str]], *stories: str) -> list[Any]:
    return [pytest.param(story, point, id=f"{story}: {point}") for story in stories for point in of(story)]


def killed(of: Callable[[str], list[str]], *stories: str) -> list[Any]:
    """Each point with a kill, or with the power cut, by turns; with both where data is what is at stake."""
    cases = []
    for number, case in enumerate(told(of, *stories)):
        story, point = case.values
        both = any(word in str(point) for word in ("migrat", "replace_files", "start_services"))
        for how in ("kill", "power") if both else (("kill", "power")[number % 2],):
            cases.append(pytest.param(story, point, how, id=f"{case.id}, {how}"))
    return cases


def steps_of(story: str, of: Callable[[str], list[str]] | None = None) -> list[str]:
    """The points of steps, until the update is committed.

    Without those at which a retry finds the backup done, and goes on; or at which the rollback cannot restart either,
    which test_every_moment.py tries.
    """
    names = recorded()[story]
    names = names[: names.index("<Finish Activated.before")]
    wanted = of(story) if of else names
    others = ("back_up_migration_data.done", "restart.acted", "restart.done")
    return [name for name in names if name in wanted and " " not in name and name not in others]


def moments_beside(story: str) -> list[str]:
    """What a good story passes that the update alone does not, and where both change the same data."""
    names = recorded()[story]
    return [
        name
        for name in names
        if name not in recorded()["update"]
        or name.startswith(("migrate.", "back_up_migration_data.", "start_services."))
    ]


def own_moments(story: str) -> list[str]:
    """What a story that ends badly passes after what it has in common with the good one."""
    return [name for name in recorded()[story] if name not in recorded()["update"] or "Cleaning-Up" in name]


DECIDED = {
    "update": "replace_files.done",
    "remove": "remove_application.done",
    "system and application": "flip_slot.done",
}


def is_decided(story: str, point: str, how: str) -> bool:
    """Whether the story goes on after a kill at `point`; before that it is taken back.

    After a power cut the boot loader starts what the boot target says, recorded or not.
    """
    decisive = DECIDED[story]
    if how == "power" and decisive == "flip_slot.done":
        decisive = "flip_slot.acted"
    return recorded()[story].index(point) >= recorded()[story].index(decisive)


def outcome(world: LightWorld) -> Picture:
    """The picture without what differs between two good updates."""
    picture = world.picture()
    return {
        name: value[:5] if isinstance(value, tuple) else value
        for name, value in picture.items()
        if not name.endswith((".otaflow-application.json", ".otaflow.json"))
    } | {"?starts": world.starts()[-1:]}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LightWorld]:
    world = LightWorld(tmp_path / "w")
    try:
        world.install_light()
        yield world
        assert set(world.starts()) <= ALLOWED
    finally:
        world.close()


@functools.cache
def good_end(story: str) -> Picture:
    """How the story ends when nothing goes wrong."""
    with tempfile.TemporaryDirectory(prefix="otaflow-test-") as folder:
        world = LightWorld(Path(folder, "w"))
        try:
            world.install_light()
            world.install(*STORIES[story](world))
            return outcome(world)
        finally:
            world.close()


@pytest.mark.parametrize(
    ("story", "point"),
    [
        *told(steps_of, "update", "remove"),
        *told(lambda story: steps_of(story, moments_beside), "system and application"),
    ],
)
def test_a_step_that_fails_leaves_everything_as_it_was(
    world: LightWorld, story: str, point: str, fault_points: Any
) -> None:
    before = world.picture()
    actions = STORIES[story](world)
    fault_points(point, "fail")
    with pytest.raises(OtaflowError, match="a fault was asked for"):
        world.install(*actions)
    fault_points("")
    assert differences(before, world.picture()) == {}
    assert world.last()["resolution"] in ("kFailed", "kVerificationFailed")


@pytest.mark.parametrize(
    ("story", "point", "how"),
    [
        *killed(lambda story: recorded()[story], "update", "remove"),
        *killed(moments_beside, "system and application"),
    ],
)
def test_a_kill_and_recover_leave_all_or_nothing(
    world: LightWorld, story: str, point: str, how: str, zygote: Any
) -> None:
    before = world.picture()
    assert zygote.run(world, "install", fault=f"{point}:kill", action=STORIES[story](world)) == -9
    if how == "power":
        world.cut_power()
    assert zygote.run(world, "recover") == 0
    if is_decided(story, point, how):
        assert differences(good_end(story), outcome(world)) == {}
        assert world.last()["resolution"] == "kActivated"
    else:
        assert differences(before, world.picture()) == {}


@pytest.mark.parametrize(("story", "point", "how"), killed(own_moments, "failing migration", "sick application"))
def test_a_kill_in_the_middle_of_an_undo(world: LightWorld, story: str, point: str, how: str, zygote: Any) -> None:
    before = world.picture()
    assert zygote.run(world, "install", fault=f"{point}:kill", action=STORIES[story](world)) == -9
    if how == "power":
        world.cut_power()
    assert zygote.run(world, "recover") == 0
    assert differences(before, world.picture()) == {}
    assert world.last()["resolution"] == "kVerificationFailed"


def undo_moments() -> list[str]:
    return [name for name in own_moments("sick application") if name.startswith("undo.") and not name.endswith(".done")]


@pytest.mark.parametrize("point", undo_moments())
def test_an_undo_that_fails_is_tried_again(world: LightWorld, point: str, fault_points: Any) -> None:
    before = world.picture()
    actions = STORIES["sick application"](world)
    fault_points(point, "fail")
    with pytest.raises(OtaflowError):
        world.install(*actions)
    fault_points("")
    with world.ucm() as ucm, contextlib.suppress(OtaflowError):
        recover(ucm)
    with world.ucm() as ucm, contextlib.suppress(OtaflowError):
        recover(ucm)
    assert differences(before, world.picture()) == {}
