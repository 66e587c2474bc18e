"""What is kept of failed boots: bounded, outside the slots, in sections."""

import os
from pathlib import Path

import pytest

from otaflow.errors import CommandFailed
from otaflow.platform.flight_recorder import (
    FILES,
    SECTION_BYTES,
    SECTIONS,
    FlightRecorder,
    find_boots,
    own_boots,
    read_slot_journal,
)


def test_sections_of_a_session(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path / "logs")
    assert recorder.read("s") == ""
    recorder.keep("s", "first", lambda: ["one", "two"])
    recorder.keep("s", "second", lambda: ["== no title ==", "tab\tand \x1b[31mred\x00", "ü"])
    recorder.keep("s", "first", lambda: ["again"])
    assert recorder.read("s") == "== first ==\none\ntwo\n== second ==\n=_ no title ==\ntab\tand �[31mred�\nü\n"
    assert recorder.path("s").stat().st_mode & 0o777 == 0o600


def test_the_newest_lines_and_sections_stay(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path)
    for number in range(SECTIONS + 2):
        recorder.keep("s", f"boot {number}", lambda: [f"line {line} {'x' * 100}" for line in range(5000)])
    text = recorder.read("s")
    assert len(text) < SECTIONS * (SECTION_BYTES + 100)
    titles = [line for line in text.splitlines() if line.startswith("== ")]
    assert titles == [f"== boot {number} ==" for number in range(2, SECTIONS + 2)]
    assert text.count("… what is older is left out") == SECTIONS
    assert text.count("line 4999 ") == SECTIONS
    assert "line 0 " not in text


def test_the_newest_files_stay(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path)
    for number in range(FILES + 3):
        recorder.keep(f"s{number}", "boot", lambda: ["x"])
        os.utime(recorder.path(f"s{number}"), (number, number))
    recorder.keep("last", "boot", lambda: ["x"])
    assert len(list(tmp_path.iterdir())) == FILES
    assert recorder.read("last")
    assert not recorder.read("s0")


@pytest.mark.parametrize("error", [CommandFailed("no journalctl"), OSError("full"), ValueError("?")], ids=repr)
def test_what_cannot_be_read_stops_nothing(error: Exception, tmp_path: Path) -> None:
    def read() -> list[str]:
        raise error

    FlightRecorder(tmp_path).keep("s", "boot", read)
    assert list(tmp_path.iterdir()) == []


def test_a_slot_without_a_journal_says_so(tmp_path: Path) -> None:
    [line] = read_slot_journal(tmp_path)
    assert line.startswith(f"there is no journal in {tmp_path}")


@pytest.mark.parametrize(
    ("boots", "others", "own"),
    [
        ("1 2 3 4", "1 2", "3 4"),
        ("1 2 3 4", "2 5", "3 4"),
        ("1 2", "2 3", ""),
        ("1 2", "1 2", ""),
        ("1 2", "", "1 2"),
        ("", "1", ""),
    ],
)
def test_a_slot_has_the_journal_of_the_system_that_it_is_a_copy_of(boots: str, others: str, own: str) -> None:
    assert own_boots(boots.split(), others.split()) == own.split()


def test_the_boots_are_found_with_and_without_a_title() -> None:
    """As systemd 252 and 257 write them."""
    first, second = "0f" * 16, "a1" * 16
    old = [f"-1 {first} Sun 2026-11-22 10:00:00 UTC—Sun 2026-11-22 10:01:00 UTC", f" 0 {second} Sun 2026"]
    new = ["IDX BOOT ID                          FIRST ENTRY                 LAST ENTRY", *old]
    assert find_boots(old) == find_boots(new) == [first, second]
