"""Step 11 of the update processes: what goes when, and what never goes."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from update_world import World

from otaflow.flows.retention import retention
from otaflow.platform.backups import Entry
from otaflow.platform.device import using
from otaflow.tasks.cleanup import is_over

NOW = datetime(2026, 5, 20, 12, tzinfo=UTC)


@pytest.fixture
def kind() -> str:
    return "directories"


@pytest.mark.parametrize(
    ("days", "restarts", "over"),
    [
        pytest.param(7, 3, True, id="both limits are over"),
        pytest.param(8, 2, False, id="days are, restarts are not: the update's own is not counted"),
        pytest.param(6.99, 10, False, id="restarts are, days are not"),
        pytest.param(100, 0, False, id="never restarted"),
        pytest.param(0, 0, False, id="just made"),
        pytest.param(100, 100, True, id="long ago"),
        pytest.param(-365, 100, False, id="made while the clock was a year ahead"),
    ],
)
def test_both_limits_must_be_over(world: World, days: float, restarts: int, over: bool) -> None:
    time = (NOW - timedelta(days=days)).isoformat()
    entry = Entry("0001", "demo-system", "1.0.0", 1, time, boots=5)
    with using(world.device()):
        assert is_over(entry, NOW, 5 + restarts) is over


def age(world: World, days: float) -> None:
    """Let every backup have been made that long before."""
    for path in world.device().backups.folder.glob("*/entry.json"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"time": (datetime.now(UTC) - timedelta(days=days)).isoformat()}))


def restart(world: World, times: int) -> None:
    for _ in range(times):
        world.device().boots.note_restart()


def clean_up(world: World) -> list[str]:
    with world.ucm() as ucm:
        removed: list[str] = ucm.run(retention, {})
        return removed


def parts(world: World) -> dict[str, set[str]]:
    """What each backup, told by its version, holds."""
    device = world.device()
    return {entry.version: {path.name for path in device.backups.path(entry.id).iterdir()} for entry in device.backups}


WHOLE = {"entry.json", "sys", "etc-sys", "full.tar", "main"}
INCREMENTAL = {"entry.json", "sys", "etc-sys"}


def test_full_backups_go_and_incremental_ones_stay(world: World, quick: None) -> None:
    world.install(world.up())
    assert parts(world) == {"1.0.0": WHOLE, "1.1.0": WHOLE}
    assert clean_up(world) == []
    age(world, 30)
    assert clean_up(world) == []
    restart(world, 2)
    assert len(clean_up(world)) == 2
    assert parts(world) == {"1.0.0": INCREMENTAL, "1.1.0": INCREMENTAL}
    assert clean_up(world) == []


def test_the_last_verified_version_is_never_given_up(world: World, quick: None) -> None:
    """Gone back to 1.1.0: its own full backup stays, however old it is."""
    world.install(world.up())
    world.install(world.action("previous-slot"))
    assert world.device().running_system().version == "1.1.0"
    age(world, 400)
    restart(world, 50)
    clean_up(world)
    kept = parts(world)
    assert kept["1.1.0"] == WHOLE
    assert kept["1.0.0"] == INCREMENTAL
    assert kept["1.2.0"] == INCREMENTAL


def test_a_way_back_to_an_old_incremental_backup_is_open_for_ever(world: World, quick: None) -> None:
    world.install(world.up())
    age(world, 400)
    restart(world, 50)
    clean_up(world)
    oldest = next(iter(world.device().backups))
    from otaflow.action import Action

    world.install(Action("backup", "demo-system", oldest.version, oldest.update_number, backup=oldest.id))
    device = world.device()
    assert device.running_system().version == "1.0.0"
    assert Path(device.slots.path(device.boot.running()), "bin/hello").read_text() == "1.0.0"
    assert (device.configuration / "net.conf").read_text() == "first=1\n"
    assert (device.configuration / "removed.conf").exists()


def test_the_time_of_a_backup_is_known(world: World, otaflow: Any) -> None:
    backups = json.loads(otaflow("backups", "--json").stdout)
    assert [(b["version"], b["update_number"], b["full"], b["main_snapshot"]) for b in backups] == [
        ("1.0.0", 0, True, True)
    ]
    assert datetime.fromisoformat(backups[0]["time"]) <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("name", "days", "stays"),
    [
        pytest.param("demo-system-1.1.0.nsu", 2, False, id="installed"),
        pytest.param("demo-system-1.0.0.nsu", 2, False, id="older"),
        pytest.param("demo-system-1.1.0.nsu", 0, True, id="installed a moment ago"),
        pytest.param("demo-system-1.2.0.nsu", 29, True, id="may still be installed"),
        pytest.param("demo-system-1.2.0.nsu", 31, False, id="nobody installed it for a month"),
        pytest.param("demo-system-more-1.0.0.nua", 2, True, id="another name"),
        pytest.param("demo-system-1.0.0.nsu.part", 2, True, id="a download"),
    ],
)
def test_what_stays_in_the_cache(world: World, name: str, days: int, stays: bool) -> None:
    packages = world.device().cache / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    (packages / name).write_text("a package")
    time = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    os.utime(packages / name, (time, time))
    clean_up(world)
    assert (packages / name).exists() is stays
