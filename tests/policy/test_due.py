"""When a poll is due."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from otaflow.config import Policy
from otaflow.policy.consent import Answer, Choice
from otaflow.policy.due import RETRY, Known, Last, find_due
from otaflow.policy.failures import Failure, Kind
from otaflow.policy.offer import Offer
from otaflow.policy.windows import Window, Windows

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
OFFER = Offer("base", "1.1.0", "c1" * 32)
NIGHT, OPENED = Windows([Window("30 2 * * *", "UTC", 60)]), Windows([Window("45 11 * * *", "UTC", 60)])
ASKED = Last(NOW - HOUR, boots=3)
"""An hour ago there was a poll: the interval is not over, the window was closed, no answer given."""


def said(choice: Choice, *, ago: timedelta = 2 * HOUR, boots: int = 3) -> Known:
    time = NOW - ago
    return Known(OFFER, Answer(OFFER.content, "base", "1.1.0", choice, "ann", "command", time, boots))


def failed(known: Known, ago: timedelta) -> Known:
    return replace(known, failure=Failure(OFFER.content, "base", "1.1.0", 1, NOW - ago, Kind.PROCESSING))


CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "never polled": (True, {"last": None}),
    "polled just now": (False, {"last": Last(NOW, 3)}),
    "the interval is over": (True, {"last": Last(NOW - 8 * HOUR, 3)}),
    "nearly over": (False, {"last": Last(NOW - 8 * HOUR + MINUTE, 3)}),
    "the clock was set back a little": (False, {"last": Last(NOW + HOUR, 3)}),
    "the clock was set back a year": (True, {"last": Last(NOW + timedelta(days=365), 3)}),
    "nobody answered": (False, {"offers": [Known(OFFER)], "windows": OPENED}),
    "its window has opened": (True, {"offers": [said(Choice.IN_WINDOW)], "windows": OPENED}),
    "its window is closed": (False, {"offers": [said(Choice.IN_WINDOW)], "windows": NIGHT}),
    "it has none any more": (False, {"offers": [said(Choice.IN_WINDOW)]}),
    "nobody is asked, and the window has opened": (
        True,
        {"offers": [Known(OFFER)], "windows": OPENED, "rules": Policy(ask=False)},
    ),
    "nobody is asked, and the window is closed": (
        False,
        {"offers": [Known(OFFER)], "windows": NIGHT, "rules": Policy(ask=False)},
    ),
    "restarted": (True, {"offers": [said(Choice.AT_NEXT_RESTART)], "boots": 4}),
    "not restarted": (False, {"offers": [said(Choice.AT_NEXT_RESTART)]}),
    "answered since": (True, {"offers": [said(Choice.NOW, ago=MINUTE)]}),
    "refused": (False, {"offers": [said(Choice.NOT_THIS_ONE)], "windows": OPENED}),
    "the wait after a failure is over": (
        True,
        {"offers": [failed(said(Choice.IN_WINDOW), 8 * HOUR)], "windows": Windows([Window("0 * * * *", "UTC", 60)])},
    ),
    "it failed in this window": (
        False,
        {"offers": [failed(said(Choice.IN_WINDOW), 5 * MINUTE)], "windows": OPENED, "last": Last(NOW - 5 * MINUTE, 3)},
    ),
    "a poll in this window could not install it": (
        False,
        {"offers": [said(Choice.IN_WINDOW)], "windows": OPENED, "last": Last(NOW - 10 * MINUTE, 3)},
    ),
    "that is a while ago": (True, {"offers": [said(Choice.NOW)], "last": Last(NOW - RETRY, 3)}),
    "the second of two": (True, {"offers": [Known(replace(OFFER, content="c2")), said(Choice.NOW, ago=MINUTE)]}),
}


@pytest.mark.parametrize(("due", "given"), CASES.values(), ids=CASES)
def test_when_a_poll_is_due(due: bool, given: dict[str, Any]) -> None:
    facts = {"offers": [], "last": ASKED, "now": NOW, "boots": 3, "wait": 8 * HOUR}
    facts |= {"windows": Windows(), "rules": Policy()} | given
    assert bool(find_due(**facts)) is due
