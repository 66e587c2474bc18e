"""The history outlives damage: its sound lines go on, and whoever has read it up to a place goes on from there."""

from pathlib import Path

import pytest

from otaflow.errors import JournalCorrupt
from otaflow.history import FAILED, History, find_unknown, place_of

COUNT = 6


@pytest.fixture
def history(tmp_path: Path) -> History:
    history = History(tmp_path / "history")
    for number in range(COUNT):
        history.add(key=f"s.{number}", name="base", version=f"1.{number}.0", action="Update", resolution=FAILED)
    return history


def damage(history: History, *lines: int) -> bytes:
    """Change a bit in each of the lines; the file as it is then."""
    content = history.file.path.read_bytes().splitlines(keepends=True)
    for line in lines:
        content[line] = content[line][:20] + bytes([content[line][20] ^ 1]) + content[line][21:]
    history.file.path.write_bytes(b"".join(content))
    return b"".join(content)


def versions(history: History) -> list[str]:
    return [record["version"] for record in history.read()]


@pytest.mark.parametrize("how", ["mended", "added to"])
def test_the_sound_lines_go_on(history: History, how: str) -> None:
    was = damage(history, 1, 3)
    with pytest.raises(JournalCorrupt):
        history.read()
    if how == "mended":
        history.mend()
    else:
        history.add(key="s.5", name="base", version="1.5.0")  # it is there already: a repetition
    assert versions(history) == ["1.0.0", "1.2.0", "1.4.0", "1.5.0", "unknown"]
    alarm = history.read()[-1]
    assert (alarm["error"], alarm["lost"]) == ("JournalCorrupt", 2)
    assert "2 of 6 lines" in alarm["why"]
    assert history.file.path.with_name("history.damaged").read_bytes() == was
    history.mend()
    history.add(key="s.6", name="base", version="1.6.0")
    assert versions(history)[-2:] == ["unknown", "1.6.0"]


def test_a_sound_one_is_left_as_it_is(history: History) -> None:
    before = history.file.path.stat()
    assert len(history.mend()) == COUNT
    assert history.file.path.stat() == before
    assert [path.name for path in history.file.path.parent.iterdir()] == ["history"]


@pytest.mark.parametrize(
    ("known", "lost", "unknown"),
    [
        (4, [], ["1.4.0", "1.5.0"]),
        (4, [1], ["1.4.0", "1.5.0", "unknown"]),
        (4, [0, 3], ["1.4.0", "1.5.0", "unknown"]),
        (4, [4], ["1.5.0", "unknown"]),
        (6, [1, 2], ["unknown"]),
        (0, [1], ["1.0.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0", "unknown"]),
    ],
    ids=["nothing", "a known one", "the last known one too", "an unknown one", "all are known", "none is"],
)
def test_what_was_not_read_yet(history: History, known: int, lost: list[int], unknown: list[str]) -> None:
    place = place_of(history.read()[:known])
    damage(history, *lost)
    records = history.mend()
    assert [record["version"] for record in records[find_unknown(records, place) :]] == unknown


def test_a_place_of_before_its_last_record_was_noted(history: History) -> None:
    assert find_unknown(history.read(), {"count": 4}) == 4
