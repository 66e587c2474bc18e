"""The logs of packages."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from otaflow.errors import GeneralReject, InvalidTransferId
from otaflow.transfer.logs import Level, PackageLogs

ID = "a" * 32


def messages(logs: PackageLogs, id: str = ID) -> list[str]:
    return [record["message"] for record in logs.read(id)]


def make(folder: Path, **values: Any) -> PackageLogs:
    logs = PackageLogs(folder / "logs", **values)
    logs.add(ID)
    return logs


@pytest.mark.parametrize("level", range(7))
def test_levels(tmp_path: Path, level: int) -> None:
    logs = make(tmp_path)
    assert logs.level(ID) == Level.INFO
    logs.set_level(ID, level)
    for each in (logs, PackageLogs(tmp_path / "logs")):
        assert each.level(ID) == level
        for number in range(1, 7):
            each.write(ID, number, f"level {number}")
    assert messages(logs) == 2 * [f"level {number}" for number in range(1, level + 1)]


def test_records(tmp_path: Path) -> None:
    logs = make(tmp_path, clock=lambda: 1_700_000_000.25)
    logs.write(ID, 3, "zwei\nZeilen \x00 ü")
    expected = [{"time": "2023-11-14T22:13:20.250Z", "level": 3, "message": "zwei\nZeilen \x00 ü"}]
    assert logs.read(ID) == PackageLogs(tmp_path / "logs").read(ID) == expected


def test_unknown_id(tmp_path: Path) -> None:
    logs = make(tmp_path)
    for call in (
        lambda: logs.read("b" * 32),
        lambda: logs.read("../logs"),
        lambda: logs.write("b" * 32, 4, "x"),
        lambda: logs.set_level("b" * 32, 4),
        lambda: logs.level("b" * 32),
        lambda: logs.add("../x"),
    ):
        with pytest.raises(InvalidTransferId):
            call()
    assert [path.name for path in tmp_path.rglob("*")].count("b" * 32) == 0


@pytest.mark.parametrize("level", [-1, 7, True, "4", None], ids=repr)
def test_level_is_refused(tmp_path: Path, level: Any) -> None:
    logs = make(tmp_path)
    with pytest.raises(GeneralReject, match="0 to 6"):
        logs.set_level(ID, level)
    with pytest.raises(GeneralReject, match="1 to 6"):
        logs.write(ID, level or 0, "x")
    assert messages(logs) == []


def test_bounded(tmp_path: Path) -> None:
    """However much is written, the log has its bytes, and the newest are in it, none missing between."""
    logs = make(tmp_path, max_bytes=20_000)
    for number in range(2000):
        logs.write(ID, 4, str(number))
    size = sum(path.stat().st_size for path in (tmp_path / "logs" / ID).glob("log*"))
    assert 10_000 <= size <= 20_000
    kept = [int(message) for message in messages(logs)]
    assert kept == list(range(kept[0], 2000))
    logs.write(ID, 4, "ü" * 10**6)
    assert len(messages(logs)[-1]) < 10**4


def test_longest_unused_goes(tmp_path: Path) -> None:
    logs = PackageLogs(tmp_path / "logs", keep=3)
    ids = [f"{number:032x}" for number in range(5)]
    for id in ids[:3]:
        logs.add(id)
    logs.write(ids[0], 4, "still in use")
    logs.add(ids[3])
    logs.add(ids[4])
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [ids[0], ids[3], ids[4]]
    assert messages(logs, ids[0]) == ["still in use"]


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    logs = make(tmp_path)
    logs.write(ID, 4, "first")
    with (tmp_path / "logs" / ID / "log").open("ab") as file:
        file.write(bytes(50) + b"\n0badc0de {}\n" + b'12345678 {"time": "to')
    logs = make(tmp_path)
    logs.write(ID, 4, "second")
    assert messages(logs) == ["first", "second"]


def test_half_made_log(tmp_path: Path) -> None:
    (tmp_path / "logs" / ID).mkdir(parents=True)
    logs = PackageLogs(tmp_path / "logs")
    assert (logs.level(ID), logs.read(ID)) == (Level.INFO, [])


def test_full_disk_stops_no_update(small_disk: Path) -> None:
    logs = make(small_disk)
    with (small_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    for _ in range(100):
        logs.write(ID, 2, "x" * 1000)
    assert logs.read(ID) == []


def test_many_threads(tmp_path: Path) -> None:
    logs = make(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: logs.write(ID, 4, str(number)), range(400)))
    assert sorted(map(int, messages(logs))) == list(range(400))


def test_killed(tmp_path: Path) -> None:
    """Each message that was written is there after SIGKILL, in its order."""
    make(tmp_path, max_bytes=2**16)
    code = f"""
import itertools, sys
from pathlib import Path
from otaflow.transfer.logs import PackageLogs
logs = PackageLogs(Path({str(tmp_path / "logs")!r}), max_bytes=2**16)
for number in itertools.count():
    logs.write({ID!r}, 4, str(number))
    print(number, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    said = [child.stdout.readline() for _ in range(1500)]
    child.kill()
    said += child.stdout.readlines()
    child.wait()
    last = max(int(line) for line in said if line.endswith("\n"))
    kept = [int(message) for message in messages(PackageLogs(tmp_path / "logs"))]
    assert last <= kept[-1] <= last + 1
    assert kept == list(range(kept[0], kept[-1] + 1))
