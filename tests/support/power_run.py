"""`make test-power`: every story cut at each of its moments and at random ones, and the planted bugs; as a table.

A violation is told with the command that makes it again, and its recording is kept in build/power.
"""

import argparse
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from own_machine import MachineFailed
from power_bench import (
    FILE_SYSTEMS,
    Bench,
    Cut,
    Recorded,
    Result,
    matrix_cuts,
    open_bench,
    random_cuts,
    what_the_bench_misses,
)
from power_bugs import BUGS, Bug
from power_stories import STORIES, Story
from rich.console import Console
from rich.table import Table

KEPT = Path(__file__).parents[2] / "build/power"
WHOLE = ("btrfs", "directories")
"""The storages of every story; the others have the stories in which slots are changed."""
TWICE, SECOND_CUTS = 2, 12
"""How many cuts of each recording are started on a recording disk, and how often that is cut again."""
BUG_CUTS, RECORDINGS = 300, 5
"""How many cuts a recording with a planted bug gets, and how many recordings there are before it is not found."""
TOLD = 5
"""So many violations of a recording are told; they often have one cause."""


@dataclass
class Row:
    """A line of the table."""

    story: str
    kind: str
    moments: int = 0
    random: int = 0
    second: int = 0
    violations: int = 0


class Run:
    """What is asked for, and what was found."""

    def __init__(self, bench: Bench, seed: int, console: Console) -> None:
        self.bench, self.seed, self.console = bench, seed, console
        self.rows: list[Row] = []
        self.found: dict[str, str] = {}
        self.seconds = 0.0

    def cut_story(self, story: Story, kind: str, count: int, *, matrix: bool = True, second: bool = True) -> Row:
        """Record the story once, and cut it."""
        began = time.monotonic()
        row = Row(story.name, kind)
        recorded = self.bench.record(story, kind)
        moments = matrix_cuts(recorded, self.seed) if matrix else []
        result = self.bench.cut(recorded, moments + random_cuts(recorded, count, self.seed))
        row.moments, row.random, row.violations = len(moments), count, len(result.violations)
        self.tell(recorded, result)
        if second and not story.calls:
            for place in random_cuts(recorded, TWICE, self.seed + count):
                self._cut_twice(recorded, place, row)
        self.rows.append(row)
        self.seconds += time.monotonic() - began
        return row

    def _cut_twice(self, recorded: Recorded, cut: Cut, row: Row) -> None:
        try:
            again = self.bench.record_recovery(recorded, cut)
        except MachineFailed as error:
            row.violations += 1
            self.tell(recorded, Result([cut], [(cut, [str(error)])]))
            return
        result = self.bench.cut(again, random_cuts(again, SECOND_CUTS, self.seed))
        row.second += len(result.cuts)
        row.violations += len(result.violations)
        self.tell(again, result)

    def find(self, bug: Bug, cuts: int = BUG_CUTS) -> bool:
        """Whether the bench finds the planted bug; how is in `found`.

        A `sync` of anybody on this machine, at the right moment, writes what the bug forgets: then it is told again.
        """
        self.found[bug.name] = ""
        for _ in range(RECORDINGS):
            recorded = self.bench.record(STORIES[bug.story], bug.kind, bug.plant, bug.options)
            moments = matrix_cuts(recorded, self.seed)
            since = next((cut.number for cut in moments if cut.point == bug.since), 0)
            chosen = [cut for cut in moments if cut.number >= since] + random_cuts(recorded, cuts, self.seed, since)
            result = self.bench.cut(recorded, chosen, enough=1)
            if result.violations:
                self.found[bug.name] = result.violations[0][1][0]
                break
        return bool(self.found[bug.name])

    def tell(self, recorded: Recorded, result: Result) -> None:
        """Say what is wrong, how to make it again, and keep the recording."""
        for number, (cut, wrong) in enumerate(result.violations[:TOLD]):
            if number == 0:
                name = "".join(one if one.isalnum() else "-" for one in recorded.story.name)
                folder = KEPT / f"{name}-{recorded.kind}-{int(time.time())}"
                recorded.keep(folder)
            one = f'SEED={cut.seed} CUTS=1 STORY="{recorded.story.name}" KIND={recorded.kind}'
            self.console.print(f"VIOLATION {recorded.story.name}, {recorded.kind}: {cut}", style="red", markup=False)
            for line in wrong:
                self.console.print(f"  {line}"[:1500], markup=False)
            again = f"AGAIN={folder} CUT={cut.number}:{cut.seed}"
            self.console.print(f"  again, exactly: make test-power {again}", markup=False)
            if not cut.point:
                self.console.print(f"  or, recorded anew: make test-power {one}", markup=False)

    def show(self) -> None:
        """The tables."""
        table = Table(title=f"power cuts (seed {self.seed}, {self.seconds:.0f} s)")
        for name in ("story", "storage", "at fault points", "at random", "in the recovery", "violations"):
            table.add_column(name, justify="left" if name in ("story", "storage") else "right")
        for row in self.rows:
            table.add_row(*(str(value) for value in vars(row).values()))
        sums = [sum(getattr(row, name) for row in self.rows) for name in ("moments", "random", "second", "violations")]
        table.add_section()
        table.add_row("all", "", *(str(value) for value in sums))
        self.console.print(table)
        if self.found:
            bugs = Table(title="planted bugs")
            for name in ("bug", "found", "by"):
                bugs.add_column(name)
            for bug, wrong in self.found.items():
                bugs.add_row(bug, "yes" if wrong else "NO", wrong[:90])
            self.console.print(bugs)

    @property
    def is_good(self) -> bool:
        """No violation, and every planted bug found."""
        return not any(row.violations for row in self.rows) and all(self.found.values())


def again(folder: Path, cut: str, console: Console) -> bool:
    """Make one cut of a kept recording again."""
    number, seed = cut.split(":")
    with open_bench(1) as bench:
        run = Run(bench, int(seed), console)
        result = bench.cut(Recorded.load(folder), [Cut(int(number), int(seed))])
        console.print(json.dumps([wrong for _, wrong in result.violations], indent=1), markup=False)
        return not result.violations and run.is_good


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cuts", type=int, default=5000, help="random cuts, of all stories together")
    parser.add_argument("--story", default="", help=", ".join(STORIES))
    parser.add_argument("--kind", default="", help=", ".join(FILE_SYSTEMS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", type=Path, help="a kept recording")
    parser.add_argument("--cut", default="", help="NUMBER:SEED of it")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nothing stays mounted
    console = Console(soft_wrap=True)
    if missing := what_the_bench_misses():
        sys.exit(missing)
    if asked.again:
        sys.exit(not again(asked.again, asked.cut, console))
    stories = [STORIES[asked.story]] if asked.story else list(STORIES.values())
    kinds = [asked.kind] if asked.kind else list(FILE_SYSTEMS)
    places = [(story, kind) for story in stories for kind in kinds if kind in WHOLE or story.of_slots]
    one = asked.cuts == 1 and len(stories) == 1
    with open_bench(asked.jobs) as bench:
        run = Run(bench, asked.seed, console)
        share, more = divmod(asked.cuts, len(places))
        for number, (story, kind) in enumerate(places):
            row = run.cut_story(story, kind, share + (number < more), matrix=not one, second=not one)
            console.print(f"{row} after {run.seconds:.0f} s", markup=False)
        for bug in BUGS if not asked.story else ():
            run.find(bug)
        run.show()
    sys.exit(not run.is_good)


if __name__ == "__main__":
    main()
