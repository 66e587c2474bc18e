"""Whole updates that end well: what they leave, what they record, and what a retry may not do twice."""

from typing import Any

from update_world import World, differences


def test_a_good_update_is_kept(world: World, quick: None) -> None:
    before = world.picture()
    world.install(world.up())
    after = world.picture()
    device = world.device()
    assert device.running_system().version == "1.2.0"
    assert world.resolutions()[-1] == ("1.2.0", "kActivated")
    assert after["?state"] == "Idle"
    changed = {name.partition("/")[0] for name in differences(before, after)}
    assert changed <= {"slots", "main", "backups", "index.json", "nvm", "?running", "?subvolumes"}
    assert not [n for n in after if ".kept" in n or n.startswith("cache/extracted") or ".new" in n or ".gone" in n]


def test_a_copy_of_a_world_is_the_same_world(world: World, tmp_path: Any) -> None:
    other = world.copy(world.folder.parent / "other")
    assert differences(world.picture(), other.picture()) == {}
