"""Messages to applications."""

import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from otaflow.errors import OtaflowError
from otaflow.policy.inbox import LONGEST_TEXT, READERS, Inbox, Kind, Message

MakeInbox = Callable[..., Inbox]


def post(inbox: Inbox, now: datetime, text: str = "", count: int = 1) -> list[int]:
    return [inbox.post(Kind.AVAILABLE, "base", "1.1.0", text, now=now).id for _ in range(count)]


def ids(messages: list[Message]) -> list[int]:
    return [message.id for message in messages]


def path_of(tmp_path: Path) -> Path:
    return tmp_path / "policy" / "inbox"


def test_messages_are_read_in_their_order(make_inbox: MakeInbox, now: datetime) -> None:
    inbox = make_inbox()
    assert inbox.read() == []
    first = inbox.post(Kind.AVAILABLE, "base", "1.1.0", "An update.", now=now, bytes=5)
    assert first.record() == {
        "id": 1,
        "time": "2026-03-02T12:00:00.000Z",
        "kind": "available",
        "package": "base",
        "version": "1.1.0",
        "text": "An update.",
        "facts": {"bytes": 5},
    }
    post(inbox, now, count=2)
    assert make_inbox().read()[0] == first
    assert ids(make_inbox().read()) == [1, 2, 3]
    assert ids(make_inbox().read(after=2)) == [3]


def test_each_reader_has_its_own_place(make_inbox: MakeInbox, now: datetime) -> None:
    inbox = make_inbox()
    post(inbox, now, count=4)
    inbox.acknowledge("player", 2)
    inbox.acknowledge("player", 1)
    inbox.acknowledge("radio", 4)
    assert ids(make_inbox().read(reader="player")) == [3, 4]
    assert ids(make_inbox().read(after=3, reader="player")) == [4]
    assert ids(make_inbox().read(reader="radio")) == []
    assert ids(make_inbox().read(reader="map")) == [1, 2, 3, 4]
    assert ids(make_inbox().read()) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("reader", "id"),
    [("", 1), ("a b", 1), ("a" * 65, 1), ("../x", 1), ("a", 0), ("a", 2), ("a", -1)],
    ids=["no name", "space", "long", "slash", "zero", "never posted", "negative"],
)
def test_a_bad_acknowledgement_is_refused(make_inbox: MakeInbox, now: datetime, reader: str, id: int) -> None:
    inbox = make_inbox()
    post(inbox, now)
    with pytest.raises(OtaflowError, match="cannot acknowledge") as refused:
        inbox.acknowledge(reader, id)
    assert refused.value.hint


def test_the_oldest_go_when_nobody_reads(make_inbox: MakeInbox, now: datetime) -> None:
    post(make_inbox(10), now, count=35)
    assert ids(make_inbox().read()) == list(range(26, 36))


def test_what_all_have_acknowledged_goes_first(make_inbox: MakeInbox, now: datetime) -> None:
    inbox = make_inbox(8)
    post(inbox, now, count=8)
    inbox.acknowledge("player", 5)
    inbox.acknowledge("radio", 2)
    assert ids(inbox.read()) == [1, 2, 3, 4, 5, 6, 7, 8]
    post(inbox, now)
    assert ids(inbox.read()) == [3, 4, 5, 6, 7, 8, 9], "1 and 2, though 8 would have had room"
    assert ids(inbox.read(reader="player")) == [6, 7, 8, 9]
    post(inbox, now, count=2)
    assert ids(inbox.read()) == [4, 5, 6, 7, 8, 9, 10, 11], "then the oldest"


def test_an_id_is_never_used_twice(make_inbox: MakeInbox, now: datetime) -> None:
    for turn in range(30):
        assert post(make_inbox(10), now) == [turn + 1]
        make_inbox(10).acknowledge("player", turn + 1)


def test_the_file_stays_small(make_inbox: MakeInbox, now: datetime, tmp_path: Path) -> None:
    inbox = make_inbox(10)
    for reader in range(READERS + 10):
        [id] = post(inbox, now, "x" * 10_000)
        inbox.acknowledge(f"reader-{reader}", id)
    sizes = set()
    for _ in range(100):
        [id] = post(inbox, now, "x" * 10_000)
        inbox.acknowledge("reader-5", id)
        sizes.add(path_of(tmp_path).stat().st_size)
    assert max(sizes) < 60 * (LONGEST_TEXT + 300)
    assert len(inbox.read()) <= 10


def test_too_long_facts_are_left_out(make_inbox: MakeInbox, now: datetime) -> None:
    message = make_inbox().post(Kind.FAILED, "base", "1", "text", now=now, log="x" * 10_000)
    assert message.facts == {}
    assert make_inbox().read() == [message]


@pytest.mark.parametrize("cut", [1, 2, 10, 60])
def test_a_torn_last_line_is_dropped(make_inbox: MakeInbox, now: datetime, tmp_path: Path, cut: int) -> None:
    post(make_inbox(), now, count=3)
    path = path_of(tmp_path)
    os.truncate(path, path.stat().st_size - cut)
    assert ids(make_inbox().read()) == [1, 2]
    assert post(make_inbox(), now) == [3]
    assert ids(make_inbox().read()) == [1, 2, 3]


def test_of_a_damaged_file_the_sound_lines_go_on(make_inbox: MakeInbox, now: datetime, tmp_path: Path) -> None:
    post(make_inbox(), now, count=3)
    path = path_of(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = lines[0] + b"\0" * 50 + b"\n" + lines[2]
    path.write_bytes(damaged)
    assert ids(make_inbox().read()) == [1, 3]
    assert path.with_name("inbox.damaged").read_bytes() == damaged
    assert post(make_inbox(), now) == [4]


def test_one_who_waits_gets_what_is_posted(make_inbox: MakeInbox, now: datetime) -> None:
    inbox = make_inbox()
    post(inbox, now)
    got: list[list[int]] = []
    thread = threading.Thread(target=lambda: got.append(ids(inbox.wait(60, after=1))))
    thread.start()
    post(inbox, now)
    thread.join()
    assert got == [[2]]


def test_one_who_waits_gets_what_another_process_posts(make_inbox: MakeInbox, now: datetime) -> None:
    inbox = make_inbox()
    got: list[list[int]] = []
    thread = threading.Thread(target=lambda: got.append(ids(inbox.wait(60))))
    thread.start()
    post(make_inbox(), now)  # shares nothing but the file
    thread.join()
    assert got == [[1]]


def test_waiting_ends(make_inbox: MakeInbox, now: datetime) -> None:
    inbox = make_inbox()
    assert inbox.wait(0) == []
    post(inbox, now)
    inbox.acknowledge("player", 1)
    assert inbox.wait(0.01, reader="player") == []
    assert ids(inbox.wait(0)) == [1]


def test_many_post_at_once(make_inbox: MakeInbox, now: datetime) -> None:
    threads = [threading.Thread(target=post, args=(make_inbox(100), now, "", 10)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids(make_inbox(100).read()) == list(range(1, 41))
