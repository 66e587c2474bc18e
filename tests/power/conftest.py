"""The bench on its recording disk; tests that use it are skipped where there can be none."""

import os
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def power() -> Iterator[Any]:
    """A `Run` of the bench (tests/support/power_run.py)."""
    from power_bench import open_bench, what_the_bench_misses
    from power_run import Run
    from rich.console import Console

    if missing := what_the_bench_misses():
        if os.environ.get("OTAFLOW_REQUIRE_BTRFS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with open_bench() as bench:
        yield Run(bench, seed=1, console=Console(soft_wrap=True))
