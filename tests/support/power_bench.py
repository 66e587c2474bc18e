"""The power-cut bench: a story is told on a recording disk, its log is cut at many moments, and what each cut leaves is
started and checked. power_run.py is the whole of it, tests/power a part.
"""

import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from own_machine import MachineFailed, run_machine
from postgres import find_programs
from power_check import allowed_ends, check
from power_stories import STORIES, Facts, Story, make, open_world, tell, tell_recovery
from recording_disk import Log, Parts, Rest, copy_sparse, make_disk, memory_folder, recording, what_is_missing
from slot_kinds import NAMES
from without_journal import read_slots

TOP = Path("/mnt")
"""Where each machine mounts its device, for itself alone: always the same, as the device holds its own path."""
MIB = 2**20
FILE_SYSTEMS = {"btrfs": "btrfs", "directories": "ext4", "ostree": "ext4", "partitions": "ext4"}
PARTS = {"partitions": ((0, 416 * MIB), (416 * MIB, 48 * MIB), (464 * MIB, 48 * MIB))}
"""The main file system, and the two slots; of the other kinds all is on one."""
TELLS = 20
"""One of so many cuts is also told to a server of Prefect's, where the story is: that takes seconds."""


@dataclass
class Recorded:
    """A story that was told: the disk as it was before (`base`), the log, and the facts."""

    story: Story
    kind: str
    folder: Path
    facts: Facts

    @property
    def base(self) -> Path:
        return self.folder / "base.img"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def parts(self) -> Parts:
        return PARTS.get(self.kind, ())

    @property
    def points(self) -> list[str]:
        """The fault points that were reached."""
        return list(dict.fromkeys(m["name"] for m in self.facts["marks"] if not m["name"].startswith("?")))

    def keep(self, target: Path) -> None:
        """Keep it for `load`: to be cut again at exactly the same moments."""
        target.mkdir(parents=True, exist_ok=True)
        copy_sparse(self.base, target / "base.img")
        shutil.copy(self.log, target / "log")
        (target / "story.json").write_text(json.dumps([self.story.name, self.kind, self.facts]))

    @classmethod
    def load(cls, folder: Path) -> "Recorded":
        """What `keep` kept."""
        name, kind, facts = json.loads((folder / "story.json").read_text())
        return cls(STORIES[name], kind, folder, facts)


@dataclass(frozen=True, order=True)
class Cut:
    """The power goes after `number` entries of the log; `seed` says what is left of what was not flushed.

    `point` is the fault point at whose mark it is.
    """

    number: int
    seed: int
    point: str = ""


@dataclass
class Result:
    """What became of the cuts of one recording."""

    cuts: list[Cut] = field(default_factory=list)
    violations: list[tuple[Cut, list[str]]] = field(default_factory=list)


class Bench:
    """A folder in memory, and what is recorded in it."""

    def __init__(self, folder: Path, jobs: int = 2) -> None:
        self.folder, self.jobs = folder, jobs
        self._number = 0

    def record(self, story: Story, kind: str, bug: Callable[[], None] | None = None, options: str = "") -> Recorded:
        """Make the story's device, and tell the story on a recording disk, mounted with `options`, `bug` planted."""
        folder = self._new_folder()
        base, log = folder / "base.img", folder / "log"
        parts = PARTS.get(kind, ())
        make_disk(base, FILE_SYSTEMS[kind], parts)
        facts = run_machine(base, TOP, lambda: make(story, TOP, kind), parts=parts, log=folder / "output")

        def work() -> Facts:
            if bug:
                bug()
            return tell(story, open_world(story, TOP, kind), facts, log)

        recorded = Recorded(story, kind, folder, facts)
        recorded.facts |= self._run_recorded(recorded, work, options)
        return recorded

    def record_recovery(self, recorded: Recorded, cut: Cut) -> Recorded:
        """What a cut leaves is started on a recording disk: for a second cut. Raises MachineFailed."""
        folder = self._new_folder()
        log = Log(recorded.log)
        moment = moment_of(log, cut)
        rest = Rest(recorded.base, log, folder)
        rest.cut(cut.number, random.Random(cut.seed)).rename(folder / "base.img")
        allowed = sorted(allowed_ends(recorded.story, recorded.facts, moment))
        passed = [{**mark, "at": 0} for mark in recorded.facts["marks"] if mark["at"] <= moment]
        facts = recorded.facts | {"allowed": allowed, "marks": passed}
        again = Recorded(recorded.story, recorded.kind, folder, facts)
        world = open_world(recorded.story, TOP, recorded.kind)
        work = lambda: tell_recovery(world, facts, again.log)  # noqa: E731
        again.facts |= self._run_recorded(again, work)
        return again

    def _new_folder(self) -> Path:
        self._number += 1
        folder = self.folder / str(self._number)
        folder.mkdir()
        return folder

    def _run_recorded(self, recorded: Recorded, work: Callable[[], Facts], options: str = "") -> Facts:
        base, log, live = recorded.base, recorded.log, recorded.folder / "live.img"
        copy_sparse(base, live)
        log.touch()
        with recording(live, log, base.parent) as device:
            told: Facts = run_machine(
                device, TOP, work, options=options, parts=recorded.parts, log=base.parent / "output"
            )
        live.unlink()
        # what the unmounting flushed was not there when the power went
        os.truncate(log, told["marks"][-1]["at"])
        return told

    def cut(self, recorded: Recorded, cuts: list[Cut], *, enough: int = 0) -> Result:
        """Make each cut, start what it leaves, and check it; `enough` violations are enough for a worker."""
        result = Result()
        (recorded.folder / "enough").unlink(missing_ok=True)
        shares = [sorted(cuts)[worker :: self.jobs] for worker in range(self.jobs)]
        workers = [self._start_worker(recorded, share, number, enough) for number, share in enumerate(shares)]
        for child, answers in workers:
            os.waitpid(child, 0)
            for number, seed, point, wrong in json.loads(answers.read_text()):
                result.cuts.append(Cut(number, seed, point))
                if wrong:
                    result.violations.append((Cut(number, seed, point), wrong))
        return result

    def _start_worker(self, recorded: Recorded, share: list[Cut], number: int, enough: int) -> tuple[int, Path]:
        folder = recorded.folder / f"worker-{number}"
        folder.mkdir(exist_ok=True)
        answers = folder / "answers"
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                found = self._work(recorded, share, folder, enough)
            except BaseException:
                found = [[0, 0, "", [f"the bench: {traceback.format_exc()}"]]]
            answers.write_text(json.dumps(found))
            os._exit(0)
        return child, answers

    def _work(self, recorded: Recorded, share: list[Cut], folder: Path, enough: int) -> list[list[Any]]:
        log = Log(recorded.log)
        rest = Rest(recorded.base, log, folder)
        found: list[list[Any]] = []
        for cut in share:
            image = rest.cut(cut.number, random.Random(cut.seed))
            wrong = check_image(recorded, image, moment_of(log, cut), folder, tells=cut.seed % TELLS == 0)
            found.append([*asdict(cut).values(), wrong])
            if enough and sum(bool(one[-1]) for one in found) >= enough:
                (recorded.folder / "enough").touch()
            if (recorded.folder / "enough").exists():
                break
        for image in folder.glob("*.img"):
            image.unlink()
        return found


def check_image(recorded: Recorded, image: Path, moment: int, folder: Path, *, tells: bool = False) -> list[str]:
    """What is wrong with the image of a cut when the log was `moment` long."""
    world = open_world(recorded.story, TOP, recorded.kind)
    seen = read_slots(image, recorded.parts, NAMES, folder)
    try:
        work = lambda: check(recorded.story, world, recorded.facts, moment, seen, tells=tells)  # noqa: E731
        wrong: list[str] = run_machine(image, TOP, work, parts=recorded.parts, log=folder / "output")
    except MachineFailed as error:
        return [str(error)[-1500:]]
    return wrong


def moment_of(log: Log, cut: Cut) -> int:
    """How long the log was at the cut."""
    return log.ends[cut.number - 1] if cut.number else 0


def matrix_cuts(recorded: Recorded, seed: int = 0) -> list[Cut]:
    """A cut at the mark of each fault point, in the order in which they were reached."""
    log = Log(recorded.log)
    cuts: dict[str, Cut] = {}
    for mark in recorded.facts["marks"]:
        if not mark["name"].startswith("?"):
            number = sum(end <= mark["at"] for end in log.ends)
            cuts.setdefault(mark["name"], Cut(number, seed + len(cuts), mark["name"]))
    return list(cuts.values())


def random_cuts(recorded: Recorded, count: int, seed: int, since: int = 0) -> list[Cut]:
    """`count` cuts anywhere in the log behind `since` entries, each known by a seed of its own, from `seed` on."""
    length = len(Log(recorded.log).entries) - since + 1
    seeds = range(seed, seed + count)
    return [Cut(since + int(random.Random(f"place {one}").random() * length), one) for one in seeds]


def what_the_bench_misses() -> str:
    """Why there can be no bench here; empty where there can."""
    return what_is_missing() or ("" if find_programs() else "the stories need PostgreSQL's server")


@contextmanager
def open_bench(jobs: int = 2) -> Iterator[Bench]:
    """A bench in memory, gone at the end."""
    with memory_folder() as folder:
        yield Bench(folder, jobs)
