"""A 300 MB system replaced whole and with 2 % changed, beside snapshot + `tar xzf` + sync of the same package.

    python -m bench.update [--kind btrfs|directories] [--rounds 3] [--mb 300] [--files 7400]

All ways in turn, on the same disk, each in a process of its own, on a device made anew; medians are printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench import disk, system

BACKUPS = ("back up incrementally", "back up in full", "snapshot main partition")
SHARE = 0.02
PACKAGES = ("one file", "2 %", "whole")
WAYS = ("tar", "plain", "prefect")
Figures = dict[str, Any]


def work(**arguments: Any) -> Figures:
    """Run a function of bench.worker in a process of its own."""
    command = [sys.executable, "-m", "bench.worker", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(done.stdout.strip().rpartition("\n")[2])
    return figures


def make_packages(folder: Path, size: int, files: int) -> dict[str, Path]:
    """The first system, a small package that is installed before the measurement, and those that are measured."""
    system.make_system(folder / "system", size, files)
    (folder / "first" / "assets").mkdir(parents=True)
    (folder / "first" / "assets" / "release").write_text("1.0.1")
    made = {"first": system.make_package(folder / "first", "1.0.1", 1, system.CHANGED)}
    (folder / "none" / "assets").mkdir(parents=True)
    (folder / "none" / "assets" / "release").write_text("1.1.0")
    made["one file"] = system.make_package(folder / "none", "1.1.0", 2, system.CHANGED)
    system.take_changed(folder / "system", folder / "changed" / "assets", SHARE)
    made["2 %"] = system.make_package(folder / "changed", "1.1.0", 2, system.CHANGED)
    system.make_system(folder / "whole" / "assets", size, files, seed=2)
    made["whole"] = system.make_package(folder / "whole", "1.1.0", 2, system.WHOLE)
    return made


def measure(
    kind: str, rounds: int, size: int, files: int, only: list[str], chosen: list[str]
) -> dict[str, dict[str, list[Figures]]]:
    """What each way took with each package, round after round."""
    found: dict[str, dict[str, list[Figures]]] = {}
    with disk.disk(kind) as top, tempfile.TemporaryDirectory(prefix="otaflow-bench-") as home:
        os.environ["PREFECT_HOME"] = home
        os.environ.pop("PREFECT_API_URL", None)
        packages = make_packages(top, size, files)
        first = packages.pop("first")
        for number in range(rounds):
            for what, package in ((what, packages[what]) for what in only):
                for way in chosen:
                    place = top / f"{number} {what} {way}".replace(" ", "-")
                    place.mkdir()
                    work(work="make_device", top=str(place), kind=kind, system=str(top / "system"), first=str(first))
                    disk.settle(top)
                    found.setdefault(what, {}).setdefault(way, []).append(_run(place, kind, way, package))
                    disk.empty(place, kind)
        return found


def _run(place: Path, kind: str, way: str, package: Path) -> Figures:
    # The package was just fetched: it is in the page cache.
    package.read_bytes()
    common = {"top": str(place), "kind": kind, "package": str(package)}
    if way == "tar":
        return work(work="tar", **common)
    return work(work="update", version="1.1.0", prefect=way == "prefect", **common)


# --- the tables -------------------------------------------------------------------------------------------------------


def of(runs: list[Figures], name: str) -> float:
    """The median of one figure of the cost."""
    return float(median(run["cost"][name] for run in runs))


def backups(runs: list[Figures]) -> float:
    """The median of what the three backup steps took."""
    return float(median(sum(seconds for name, seconds in run["steps"] if name in BACKUPS) for run in runs))


def describe(found: dict[str, dict[str, list[Figures]]]) -> Iterator[str]:
    """The tables, in Markdown."""
    yield "| package | way | s | backups, s | s / tar's | without backups / tar's | CPU s | server's CPU s | peak MB |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for what, ways in found.items():
        base = of(ways["tar"], "seconds")
        for way, runs in ways.items():
            seconds = of(runs, "seconds")
            kept = 0.0 if way == "tar" else backups(runs)
            yield (
                f"| {what} | {way} | {seconds:.2f} | {kept:.2f} | {seconds / base:.2f} | {(seconds - kept) / base:.2f} "
                f"| {of(runs, 'cpu'):.2f} | {of(runs, 'apart_cpu'):.2f} | {of(runs, 'tree_mb'):.0f} |"
            )
    yield ""
    yield from describe_steps(found)
    if all({"plain", "prefect"} <= ways.keys() for ways in found.values()):
        yield ""
        yield from describe_prefect(found)


def describe_steps(found: dict[str, dict[str, list[Figures]]]) -> Iterator[str]:
    """Seconds of each step, with each package, without and with Prefect."""
    columns = [(what, way) for what, ways in found.items() for way in ways if way != "tar"]
    yield "| step, s | " + " | ".join(f"{what}, {way}" for what, way in columns) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for name in [name for name, _ in found[columns[0][0]][columns[0][1]][0]["steps"]]:
        cells = [median(dict(run["steps"])[name] for run in found[what][way]) for what, way in columns]
        yield f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"
    rest = [of(found[what][way], "seconds") - step_sum(found[what][way]) for what, way in columns]
    yield "| all between the steps | " + " | ".join(f"{cell:.3f}" for cell in rest) + " |"


def step_sum(runs: list[Figures]) -> float:
    """The median of the seconds inside of the steps."""
    return float(median(sum(seconds for _, seconds in run["steps"]) for run in runs))


def describe_prefect(found: dict[str, dict[str, list[Figures]]]) -> Iterator[str]:
    """What Prefect adds to all between the steps, for each step; and between two steps of one phase."""
    for what, ways in found.items():
        between = [of(ways[way], "seconds") - step_sum(ways[way]) for way in ("plain", "prefect")]
        count = len(ways["plain"][0]["steps"])
        added = 1000 * (between[1] - between[0])
        step = 1000 * (step_gap(ways["prefect"]) - step_gap(ways["plain"]))
        yield f"* Prefect, {what}: {added:.0f} ms, {added / count:.1f} ms for each of {count} steps, all in;"
        yield f"  {step:.1f} ms from step to step of one phase"


def step_gap(runs: list[Figures]) -> float:
    """The median of the seconds from the end of a step to the begin of the next one of its phase."""
    gaps = [
        after[0] - before[0]
        for run in runs
        for before, after in pairwise(run["timeline"])
        if (before[1], after[1]) == ("done", "step")
    ]
    return float(median(gaps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=disk.KINDS, default="btrfs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mb", type=int, default=300)
    parser.add_argument("--files", type=int, default=7400)
    parser.add_argument("--only", nargs="+", choices=PACKAGES, default=PACKAGES, help="the packages to measure")
    parser.add_argument("--ways", nargs="+", choices=WAYS[1:], default=WAYS[1:], help="beside tar")
    parser.add_argument("--json", type=Path, help="keep the raw figures in this file")
    chosen = parser.parse_args()
    found = measure(chosen.kind, chosen.rounds, chosen.mb * 10**6, chosen.files, chosen.only, [WAYS[0], *chosen.ways])
    if chosen.json:
        chosen.json.write_text(json.dumps(found))
    print(f"### {chosen.mb} MB in {chosen.files} files, {chosen.kind}, median of {chosen.rounds}\n")
    print("\n".join(describe(found)))


if __name__ == "__main__":
    main()
