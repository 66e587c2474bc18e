"""The power-cut bench: a story is told on a recording disk, then its log is cut at thousands of moments, and what each
cut leaves is started and checked.

`make test-power` runs all of it (docs/testing.md); tests/power a part. A cut is known by its story and seed.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from own_machine import MachineFailed, run_machine
from power_check import check
from power_stories import STORIES, Facts, Story, make, open_world, tell
from recording_disk import Log, Rest, copy_sparse, make_disk, memory_folder, recording, what_is_missing


@dataclass
class Recorded:
    """A story that was told: the disk as it was before, the log, and the facts."""

    story: Story
    kind: str
    base: Path
    log: Path
    facts: Facts
    options: str = ""

    @property
    def title(self) -> str:
        return f"{self.story.name}, {self.kind}"


@dataclass(frozen=True, order=True)
class Cut:
    """The power goes after `number` entries of the log; `seed` says what is left of what was not flushed."""

    number: int
    seed: int
    point: str = ""
    """The fault point at whose mark it is."""


@dataclass
class Result:
    """What became of the cuts of one recording."""

    title: str
    cuts: int = 0
    points: int = 0
    violations: list[tuple[Cut, list[str]]] = field(default_factory=list)


class Bench:
    """One folder in memory; the device is mounted at `top`, which each machine has for itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.top = folder / "top"
        self.top.mkdir()
        self._number = 0

    def record(self, story: Story, kind: str, bug: Callable[[], None] | None = None, options: str = "") -> Recorded:
        """Make the story's device, and tell the story on a recording disk; `bug` is planted before it is told."""
        self._number += 1
        folder = self.folder / str(self._number)
        folder.mkdir()
        base, live, log = folder / "base.img", folder / "live.img", folder / "log"
        file_system = "btrfs" if kind == "btrfs" else "ext4"
        make_disk(base, file_system)
        output = folder / "output"
        facts = run_machine(base, self.top, lambda: make(story, self.top, kind), log=output)
        copy_sparse(base, live)
        log.touch()

        def work() -> Facts:
            if bug:
                bug()
            return tell(story, open_world(story, self.top, kind), facts, log)

        with recording(live, log, folder) as device:
            told = run_machine(device, self.top, work, options=options, log=output)
            end = told["marks"][-1]["at"]
        live.unlink()
        os.truncate(log, end)  # what the unmounting flushed was not there when the power went
        return Recorded(story, kind, base, log, facts | told, options)

    def cut(self, recorded: Recorded, cuts: list[Cut], jobs: int = 2) -> Result:
        """Make each cut, start what it leaves, and check it."""
        result = Result(recorded.title, len(cuts), sum(bool(cut.point) for cut in cuts))
        shares = [sorted(cuts)[worker::jobs] for worker in range(jobs)]
        readers = [self._start_worker(recorded, share, worker) for worker, share in enumerate(shares)]
        for child, path in readers:
            os.waitpid(child, 0)
            for number, seed, point, wrong in json.loads(path.read_text()):
                if wrong:
                    result.violations.append((Cut(number, seed, point), wrong))
        return result

    def _start_worker(self, recorded: Recorded, share: list[Cut], worker: int) -> tuple[int, Path]:
        folder = recorded.base.parent / f"worker-{worker}"
        folder.mkdir(exist_ok=True)
        answers = folder / "answers"
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                found = self._work(recorded, share, folder)
            except BaseException:
                found = [[0, 0, "", [f"the bench: {traceback.format_exc()}"]]]
            answers.write_text(json.dumps(found))
            os._exit(0)
        return child, answers

    def _work(self, recorded: Recorded, share: list[Cut], folder: Path) -> list[Any]:
        log = Log(recorded.log)
        rest = Rest(recorded.base, log, folder)
        found = []
        for cut in share:
            image = rest.cut(cut.number, random.Random(cut.seed))
            moment = log.ends[cut.number - 1] if cut.number else 0
            found.append([cut.number, cut.seed, cut.point, self.check(recorded, image, moment, folder)])
        return found

    def check(self, recorded: Recorded, image: Path, moment: int, folder: Path) -> list[str]:
        """What is wrong with the image of a cut."""
        world = open_world(recorded.story, self.top, recorded.kind)
        try:
            wrong: list[str] = run_machine(
                image,
                self.top,
                lambda: check(recorded.story, world, recorded.facts, moment),
                options=recorded.options,
                log=folder / "output",
            )
        except MachineFailed as error:
            return [str(error)[-1500:]]
        return wrong


def matrix_cuts(recorded: Recorded, seed: int = 0) -> list[Cut]:
    """A cut at the mark of each fault point, in the order in which they were reached."""
    log = Log(recorded.log)
    cuts = {}
    for mark in recorded.facts["marks"]:
        number = sum(end <= mark["at"] for end in log.ends)
        cuts.setdefault(mark["name"], Cut(number, seed + len(cuts), mark["name"]))
    return list(cuts.values())


def random_cuts(recorded: Recorded, count: int, seed: int) -> list[Cut]:
    """`count` cuts anywhere in the log, each known by its own seed: the first one by `seed`."""
    length = len(Log(recorded.log).entries)
    return [Cut(random.Random(f"{seed + place}").randrange(length + 1), seed + place) for place in range(count)]


@contextmanager
def bench() -> Iterator[Bench]:
    """A bench in memory, gone at the end."""
    with memory_folder() as folder:
        yield Bench(folder)


def main() -> None:
    """The whole bench."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cuts", type=int, default=5000)
    parser.add_argument("--story", default="")
    parser.add_argument("--kind", default="")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    if missing := what_is_missing():
        sys.exit(missing)
    with bench() as at:
        for name in STORIES if not chosen.story else [chosen.story]:
            for kind in ("btrfs", "directories") if not chosen.kind else [chosen.kind]:
                began = time.monotonic()
                recorded = at.record(STORIES[name], kind)
                told = time.monotonic()
                log = Log(recorded.log)
                cuts = matrix_cuts(recorded) + random_cuts(recorded, chosen.cuts, chosen.seed)
                result = at.cut(recorded, cuts, chosen.jobs)
                print(
                    f"{result.title}: recorded in {told - began:.1f} s, {len(log.entries)} entries, {len(log.flushes)} flushes,"
                    f" {len(log.content) / 1e6:.1f} MB, {len(cuts)} cuts ({result.points} points) in {time.monotonic() - told:.1f} s,"
                    f" {len(result.violations)} violations",
                    flush=True,
                )
                for cut, wrong in result.violations[:5]:
                    print("  ", cut, wrong, flush=True)


if __name__ == "__main__":
    main()
