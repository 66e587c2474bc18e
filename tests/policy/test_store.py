"""The policy's small files: old or new, whatever happens; damaged ones count as empty and are kept."""

import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from otaflow.policy.consent import Answer, Choice, Consents
from otaflow.policy.offer import Offer
from otaflow.policy.store import Store
from otaflow.policy.windows import Window, Windows
from otaflow.records import encode


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "file")
    assert store.read() == {}
    assert not store.path.parent.exists()
    with store.changing() as content:
        content["a"] = {"b": "ü"}
    assert Store(store.path).read() == {"a": {"b": "ü"}}


def test_a_change_that_raises_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "file")
    with store.changing() as content:
        content["a"] = {"n": 1}
    with pytest.raises(ZeroDivisionError), store.changing() as content:
        content["a"]["n"] = 2
        raise ZeroDivisionError
    assert store.read() == {"a": {"n": 1}}


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "torn": lambda old: old[:-5],
    "without its newline": lambda old: old[:-1],
    "zeros": lambda old: bytes(len(old)),
    "a flipped bit": lambda old: old[:20] + bytes([old[20] ^ 1]) + old[21:],
    "another file": lambda _: b'{"answers": {}}\n',
    "no dict of dicts": lambda _: encode({"a": 1}),
    "two lines": lambda old: old + old,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_counts_as_empty_and_is_kept(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "file")
    with store.changing() as content:
        content["a"] = {"some": "thing that is long enough"}
    damaged = damage(store.path.read_bytes())
    store.path.write_bytes(damaged)
    assert store.read() == {}
    assert (tmp_path / "file.damaged").read_bytes() == damaged
    assert "file.damaged" in caplog.text
    with store.changing() as content:
        content["b"] = {}
    assert store.read() == {"b": {}}


def test_changes_of_many_threads_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def change(number: int) -> None:
        for turn in range(5):
            with Store(path).changing() as content:
                content[f"{number}.{turn}"] = {}

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Store(path).read()) == 20


NIGHTLY = Windows([Window("0 2 * * *", "UTC", 60)])
CALLS = ("open", "fsync", "replace")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_kill_leaves_the_old_answer_or_the_new_one(
    tmp_path: Path, offer: Offer, now: datetime, call: str, place: str
) -> None:
    """A child process is killed at each of the calls that replace the file, the first, second, … time it is made."""
    seen = set()
    for turn in range(1, 12):
        path = tmp_path / f"{turn}" / "consent"
        old = answer(Consents(path), offer, Choice.IN_WINDOW, now, NIGHTLY)
        assert old.choice == Choice.IN_WINDOW
        child = os.fork()
        if child == 0:
            try:
                die_at(call, place, turn)
                answer(Consents(path), offer, Choice.NOW, now, Windows())
                os._exit(0)
            finally:  # whatever it is: the child is not to run the other tests
                os._exit(1)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, 9)
        found = Consents(path).find(offer.content, now)
        assert found is not None
        assert found.choice in (Choice.IN_WINDOW, Choice.NOW)
        assert not path.with_name("consent.damaged").exists()
        if ended == 0:
            assert found.choice == Choice.NOW
            seen.add(found.choice)
            break
        seen.add(found.choice)
        assert answer(Consents(path), offer, Choice.NOW, now, Windows()).choice == Choice.NOW
    else:
        pytest.fail("the call was never left behind")
    assert Choice.NOW in seen


def answer(consents: Consents, offer: Offer, choice: Choice, now: datetime, windows: Windows) -> Answer:
    return consents.answer(offer, choice, by="ann", through="command", now=now, boots=3, days=7, windows=windows)


def die_at(call: str, place: str, turn: int) -> None:
    """Make this process end at the `turn`th `os.<call>`, without any clearing up."""
    real = getattr(os, call)
    left = turn

    def dying(*args: object, **named: object) -> object:
        nonlocal left
        left -= 1
        if left == 0 and place == "before":
            os._exit(9)
        result = real(*args, **named)
        if left == 0:
            os._exit(9)
        return result

    setattr(os, call, dying)
