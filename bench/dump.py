"""What a dump of a SQLite database costs beside `cp` and an fsync, in turn on the same disk.

python -m bench.dump [--megabytes 1000] [--rounds 5] [--folder /somewhere]
"""

import argparse
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median

from bench import disk
from otaflow.files import fsync_file, fsync_folder
from otaflow.platform.sqlite import SqliteDatabase

ROW = 1900
MODES = ("delete", "wal")


def make_database(path: Path, megabytes: int, mode: str) -> None:
    """Rows with an index, in no order of the file."""
    rows = max(1, megabytes * 10**6 // (ROW + 180))
    with closing(sqlite3.connect(path, isolation_level=None)) as opened:
        opened.execute("PRAGMA synchronous = OFF")
        opened.execute("CREATE TABLE notes (id integer PRIMARY KEY, name text, content blob)")
        opened.execute("CREATE INDEX by_name ON notes (name)")
        opened.execute("BEGIN")
        values = ((f"name {number * 7919 % rows}", os.urandom(ROW)) for number in range(rows))
        opened.executemany("INSERT INTO notes (name, content) VALUES (?, ?)", values)
        opened.execute("COMMIT")
        opened.execute(f"PRAGMA journal_mode = {mode}")


def copy(source: Path, target: Path) -> None:
    """What everybody does, safe against a power cut."""
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
    fsync_file(target)
    fsync_folder(target.parent)


def measure(ways: dict[str, Callable[[Path], None]], folder: Path, rounds: int) -> dict[str, list[float]]:
    """The seconds of each way, one after the other in every round, the page cache warm; the order changes."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            target = folder / "target"
            target.unlink(missing_ok=True)
            os.sync()
            start = time.perf_counter()
            ways[name](target)
            taken[name].append(time.perf_counter() - start)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    print(f"### dumps of a SQLite database of {chosen.megabytes} MB, median of {chosen.rounds}\n")
    print("| | s | MB/s | speed / cp's | fastest / fastest |\n| --- | --- | --- | --- | --- |")
    for mode in MODES:
        with disk.disk("directories", chosen.folder) as top:
            path = top / "notes.db"
            make_database(path, chosen.megabytes, mode)
            database = SqliteDatabase(path)
            ways: dict[str, Callable[[Path], None]] = {
                "`cp` + fsync": lambda target, path=path: copy(path, target),  # type: ignore[misc]
                f"dump, {mode}": database.dump,
            }
            taken = measure(ways, top, chosen.rounds)
            base = taken["`cp` + fsync"]
            for name, seconds in taken.items():
                speed, ratio = path.stat().st_size / median(seconds) / 1e6, median(base) / median(seconds)
                print(
                    f"| {name} | {median(seconds):.2f} | {speed:.0f} | {ratio:.2f} | {min(base) / min(seconds):.2f} |"
                )


if __name__ == "__main__":
    main()
