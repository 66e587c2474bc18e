"""A step that fails once is tried again, and remembers only what was before its first try."""

from collections import Counter
from typing import Any

import pytest
from update_world import World, differences, recorded

from otaflow.records import read
from otaflow.tasks.step import STEPS


def retried_points() -> list[str]:
    """The points of the good run's steps that are tried more than once; after `.done` there is nothing to repeat."""
    names = [name for name in recorded()["good"] if " " not in name and not name.endswith(".done")]
    return [name for name in names if STEPS[name.split(".")[0]].limits()[0]]


@pytest.mark.parametrize("point", retried_points())
def test_a_step_that_fails_once_succeeds_with_its_first_memory(
    world: World, worlds: Any, point: str, fault_points: Any
) -> None:
    fault_points(point, "raise")
    world.install(world.up())
    assert differences(worlds.outcome("good", world.kind), world.outcome()) == {}
    session = world.device().journal.session
    intents = Counter((intent.step, intent.phase) for intent in session.intents.values())
    assert set(intents.values()) == {1}
    assert all(intent.done for intent in session.intents.values())


def test_the_update_program_is_not_run_twice(world: World, fault_points: Any) -> None:
    before = world.picture()
    fault_points("run_update_program.acted", "raise")
    with pytest.raises(Exception, match="a fault was asked for"):
        world.install(world.up())
    assert differences(before, world.picture()) == {}


def test_a_step_remembers_before_it_acts(world: World, quick: None) -> None:
    """In the file: each step's intent, then its done, and nothing of another step between them but notes."""
    world.install(world.up())
    records = read(world.device().nvm / "journal")[0]
    kinds = [(record["kind"], record.get("id")) for record in records if record["kind"] in ("intent", "done")]
    assert kinds[0::2] == [("intent", name) for _, name in kinds[0::2]]
    assert kinds[1::2] == [("done", name) for _, name in kinds[0::2]]
