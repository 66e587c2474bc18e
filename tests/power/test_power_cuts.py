"""A part of `make test-power` that is short enough for every run: 300 cuts, and every planted bug is found."""

from typing import Any

import pytest
from power_bugs import BUGS, Bug
from power_stories import STORIES

CUTS = {
    ("restarting update", "btrfs"): 44,
    ("restarting sick update", "btrfs"): 44,
    ("migration by a program", "directories"): 20,
    ("PostgreSQL by a program", "directories"): 12,
    ("system and application", "btrfs"): 60,
    ("sick application", "directories"): 40,
    ("good update", "directories"): 30,
    ("sick update", "partitions"): 30,
    ("sick update", "ostree"): 20,
}


@pytest.mark.btrfs
@pytest.mark.parametrize(("story", "kind"), CUTS)
def test_a_power_cut_at_any_moment(power: Any, story: str, kind: str) -> None:
    row = power.cut_story(STORIES[story], kind, CUTS[story, kind], matrix=False, second=False)
    assert row.violations == 0


@pytest.mark.btrfs
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_bench_finds_a_planted_bug(power: Any, bug: Bug) -> None:
    assert power.find(bug, 60)
