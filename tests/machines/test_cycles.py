"""Update, restart, verification, again and again, every third one broken: nothing is left over, nothing grows."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cycle_bench import BROKEN, CLEANED, FAILS, Cycles
from cycle_figures import MIB, Figures, disk_without_backups, find_growth
from cycle_machine import CycleInside
from cycle_table import show
from rich.console import Console

FEW = 4
BUGS = {
    "the undo of the update program skipped": "the system is not the one of before",
    "the undo of the slot's copy skipped": "left over: slots/.kept",
    "the undo of the backup skipped": "left over: backups",
    "what was extracted is left": "left over: cache/extracted",
    "trusted at once": "it starts again and again",
}
"""What is planted (bug_inside.py), and what is said of it."""


@pytest.fixture
def cycles(btrfs_tmp: Path, tmp_path: Path) -> Iterator[Cycles]:
    """A new device with an application, on its machine."""
    if os.geteuid() != 0 or not shutil.which("systemd-nspawn"):
        pytest.skip("a machine with systemd needs root and systemd-nspawn (Debian: systemd-container)")
    world = CycleInside(btrfs_tmp / "w", tmp_path)
    try:
        world.enter()
        yield Cycles(world)
    finally:
        world.close()


def calm(**more: int) -> Figures:
    names = ("disk", "rest", "records", "history", "journal", "logs", "boot_logs", "ends", "backups", "full")
    return Figures(**dict.fromkeys((*names, "subvolumes", "systemd", "agent"), 0) | more)


@pytest.mark.parametrize(
    ("name", "grows"),
    [
        ("memory of systemd", lambda place: {"systemd": place * MIB}),
        ("memory of the agent", lambda place: {"agent": (100 + place) * MIB}),
        ("files beside slots and backups", lambda place: {"rest": place * 10_000}),
        ("whole backups", lambda place: {"full": place}),
        ("the journal", lambda place: {"journal": place * 20_000}),
        ("the history", lambda place: {"ends": place, "history": place**2 * 200}),
        ("logs of sessions", lambda place: {"logs": 10 * place}),
        ("logs of boots", lambda place: {"boot_logs": 2 * place}),
        ("backups", lambda place: {"backups": 2 * place}),
        ("subvolumes", lambda place: {"backups": place // 2, "subvolumes": place * 2}),
        ("bytes of the disk for each backup", lambda place: {"backups": place // 2, "disk": place**3 * 1000}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_growth_is_found(name: str, grows: Callable[[int], dict[str, int]]) -> None:
    assert find_growth([calm(**grows(0)) for _ in range(60)], 40, CLEANED) == []
    wrong = find_growth([calm(**grows(place)) for place in range(60)], 40, CLEANED)
    assert [line.partition(":")[0].removesuffix(", last third") for line in wrong] == [name]


@pytest.mark.btrfs
def test_a_few_cycles(cycles: Cycles) -> None:
    for number in range(1, FEW + 1):
        cycles.make(number)
    assert find_growth(cycles.figures, cycles.good, CLEANED) == []
    _, now, most = disk_without_backups(cycles.world, cycles.figures[0])
    assert now <= most


@pytest.mark.cycles
@pytest.mark.btrfs
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(cycles: Cycles, bug: str) -> None:
    broken = BROKEN[0] if bug == "trusted at once" else next(kind for kind in BROKEN if kind.program == FAILS)
    with pytest.raises(AssertionError) as found:
        cycles.make(1, broken, bug)
    assert BUGS[bug] in str(found.value)


@pytest.mark.cycles
@pytest.mark.btrfs
def test_many_cycles(cycles: Cycles, capsys: Any) -> None:
    """So many as the environment's CYCLES says."""
    began, console = time.monotonic(), Console(width=110)
    for number in range(1, int(os.environ.get("CYCLES", "200")) + 1):
        since = time.monotonic()
        kind = cycles.make(number)
        with capsys.disabled():
            console.print(f"{number}: {kind.name or 'good'}, {time.monotonic() - since:.0f} s", highlight=False)
    grown = find_growth(cycles.figures, cycles.good, CLEANED)
    start, now, most = disk_without_backups(cycles.world, cycles.figures[0])
    with capsys.disabled():
        show(cycles, time.monotonic() - began, (start, now), console)
    assert grown == []
    assert now <= most
