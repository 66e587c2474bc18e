"""Maintenance windows, the two nights of the clock change included."""

from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otaflow.config import parse
from otaflow.errors import ConfigError
from otaflow.policy.windows import LONGEST, Window, Windows

BERLIN = "Europe/Berlin"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


NIGHTLY = Windows([Window("30 2 * * *", BERLIN, 60)])
"""In winter from 01:30 to 02:30 UTC, in summer from 00:30 to 01:30."""
# In Berlin the clocks go from 02:00 to 03:00 on 2026-03-29 at 01:00 UTC, and back on 2026-10-25 at 01:00 UTC.
OPEN = {
    "before its start": (NIGHTLY, "2026-01-10T01:29:59", False),
    "at its start": (NIGHTLY, "2026-01-10T01:30", True),
    "a moment before its end": (NIGHTLY, "2026-01-10T02:29:59.999", True),
    "at its end": (NIGHTLY, "2026-01-10T02:30", False),
    "in summer": (NIGHTLY, "2026-07-10T00:30", True),
    "before the gap": (NIGHTLY, "2026-03-29T00:59:59", False),
    "after the gap": (NIGHTLY, "2026-03-29T01:00", True),
    "its minutes after the gap": (NIGHTLY, "2026-03-29T01:59", True),
    "over after the gap": (NIGHTLY, "2026-03-29T02:00", False),
    "the first time in the fold": (NIGHTLY, "2026-10-25T00:30", True),
    "through the fold": (NIGHTLY, "2026-10-25T01:29", True),
    "not again in the fold": (NIGHTLY, "2026-10-25T01:30", False),
    "every hour, first time in the fold": (Windows([Window("30 * * * *", BERLIN, 10)]), "2026-10-25T00:35", True),
    "every hour, second time in the fold": (Windows([Window("30 * * * *", BERLIN, 10)]), "2026-10-25T01:35", True),
    "wrong weekday": (Windows([Window("0 2 * * SAT", "UTC", 60)]), "2026-03-06T02:10", False),
    "right weekday": (Windows([Window("0 2 * * SAT", "UTC", 60)]), "2026-03-07T02:10", True),
    "began the day before": (Windows([Window("0 23 * * *", "UTC", 120)]), "2026-03-07T00:30", True),
    "the second of two": (
        Windows([Window("0 2 * * *", "UTC", 5), Window("0 4 * * *", "UTC", 5)]),
        "2026-03-07T04:01",
        True,
    ),
    "none": (Windows(), "2026-03-07T04:01", False),
}


@pytest.mark.parametrize(("windows", "now", "is_open"), OPEN.values(), ids=OPEN)
def test_is_open(windows: Windows, now: str, is_open: bool) -> None:
    assert windows.is_open(utc(now)) is is_open


TWO = Windows([Window("0 2 * * *", "UTC", 60), Window("30 2 * * *", "UTC", 60)])
TOUCHING = Windows([Window("0 2 * * *", "UTC", 60), Window("0 3 * * *", "UTC", 60)])
ALWAYS = Windows([Window("* * * * *", "UTC", 2)])
ENDS = {
    "closed": (NIGHTLY, "2026-01-10T00:00", None, "2026-01-10T01:30"),
    "open": (NIGHTLY, "2026-01-10T01:45", "2026-01-10T02:30", "2026-01-11T01:30"),
    "closed, before the gap": (NIGHTLY, "2026-03-28T12:00", None, "2026-03-29T01:00"),
    "open in the gap's night": (NIGHTLY, "2026-03-29T01:00", "2026-03-29T02:00", "2026-03-30T00:30"),
    "between the two 02:30 of the fold": (NIGHTLY, "2026-10-25T01:10", "2026-10-25T01:30", "2026-10-26T01:30"),
    "overlapping": (TWO, "2026-01-10T02:10", "2026-01-10T03:30", "2026-01-11T02:00"),
    "touching": (TOUCHING, "2026-01-10T02:10", "2026-01-10T04:00", "2026-01-11T02:00"),
    "never closes": (ALWAYS, "2026-01-10T02:10", None, None),
    "none": (Windows(), "2026-01-10T02:10", None, None),
    "leap day": (Windows([Window("0 0 29 2 *", "UTC", 1)]), "2026-01-10T02:10", None, "2028-02-29T00:00"),
}


@pytest.mark.parametrize(("windows", "now", "closes", "opens"), ENDS.values(), ids=ENDS)
def test_closes_and_opens_next(windows: Windows, now: str, closes: str | None, opens: str | None) -> None:
    assert windows.closes(utc(now)) == (closes and utc(closes))
    assert windows.opens_next(utc(now)) == (opens and utc(opens))


def test_two_starts_that_the_gap_moves_to_one_moment_are_one() -> None:
    starts = Window("0,30 2 * * *", BERLIN, 5).starts(utc("2026-03-29T00:00"))
    assert [next(starts), next(starts)] == [utc("2026-03-29T01:00"), utc("2026-03-30T00:00")]


moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))
# Around the nights in which the clocks change, the interesting ones, as often as anywhere.
changes = st.sampled_from(["2026-03-29T01:00", "2026-10-25T01:00", "2026-10-03T15:30", "2026-04-04T15:00"]).flatmap(
    lambda text: st.timedeltas(timedelta(hours=-5), timedelta(hours=5)).map(lambda by: utc(text) + by)
)
fields = st.tuples(
    st.sampled_from(["0", "30", "*/20", "15,45"]),
    st.sampled_from(["2", "*", "1-3", "0", "23"]),
    st.sampled_from(["*", "1", "25-31"]),
    st.sampled_from(["*", "3,10", "4"]),
    st.sampled_from(["*", "SUN", "MON-FRI"]),
)
some_window = st.builds(
    Window,
    fields.map(" ".join),
    st.sampled_from(["UTC", BERLIN, "Australia/Lord_Howe", "America/St_Johns", "Asia/Kolkata"]),
    st.integers(1, 1500),
)


@settings(max_examples=300, deadline=None)
@given(window=some_window, now=moments | changes)
def test_open_is_what_the_starts_from_long_before_say(window: Window, now: datetime) -> None:
    """Nothing depends on where the calendar is begun to be read; in the fold least of all."""
    is_open = False
    for start in window.starts(now - timedelta(days=3)):
        if start > now:
            break
        is_open = is_open or now < start + window.length
    assert Windows([window]).is_open(now) is is_open


def expected_starts(window: Window, since: datetime, hours: int) -> list[datetime]:
    """The starts of some hours, minute by minute: what the clock on the wall shows, and what it never showed."""
    zone, real_time = ZoneInfo(window.zone), any(field.startswith("*") for field in window.cron.split()[:2])

    around = since.replace(tzinfo=None) - timedelta(days=1)
    local_starts = set(takewhile(lambda one: one < around + timedelta(days=3), CronSim(window.cron, around)))
    starts = []
    for minute in range(1, hours * 60 + 1):
        moment = since + timedelta(minutes=minute)
        local = moment.astimezone(zone)
        before = (moment - timedelta(minutes=1)).astimezone(zone)
        shown = local.replace(tzinfo=None, fold=0)
        skipped = [
            shown - timedelta(minutes=by)
            for by in range(1, int((shown - before.replace(tzinfo=None, fold=0)).total_seconds()) // 60)
        ]
        if (shown in local_starts and (real_time or local.fold == 0)) or (
            not real_time and local_starts.intersection(skipped)
        ):
            starts.append(moment)
    return starts


@settings(max_examples=100, deadline=None)
@given(window=some_window, since=changes.map(lambda now: now.replace(second=0, microsecond=0)))
@example(Window("*/20 0 * * *", "Australia/Lord_Howe", 20), utc("2026-10-03T12:30"))
@example(Window("0,30 2 * * *", "Australia/Lord_Howe", 20), utc("2026-10-03T12:30"))
@example(Window("45 1 * * *", "Australia/Lord_Howe", 20), utc("2026-04-04T12:30"))
@example(Window("*/5 1 * * *", "Australia/Lord_Howe", 20), utc("2026-04-04T12:30"))
def test_starts_around_a_clock_change(window: Window, since: datetime) -> None:
    end = since + timedelta(hours=6)
    assert list(takewhile(lambda start: start <= end, window.starts(since))) == expected_starts(window, since, 6)


@settings(max_examples=300, deadline=None)
@given(windows=st.lists(some_window, min_size=1, max_size=3).map(Windows), now=moments | changes)
def test_the_three_questions_agree(windows: Windows, now: datetime) -> None:
    moment = timedelta(microseconds=1)
    closes, opens = windows.closes(now), windows.opens_next(now)
    if not windows.is_open(now):
        assert closes is None
    if closes:
        assert closes > now
        assert windows.is_open(closes - moment)
        assert not windows.is_open(closes)
    if opens:
        assert opens > (closes or now)
        assert windows.is_open(opens)
        assert not windows.is_open(opens - moment)


BAD = {
    "no cron": ({"cron": "tonight", "minutes": 60}, "policy.windows.0.cron", "five fields"),
    "no such hour": ({"cron": "0 25 * * *", "minutes": 60}, "policy.windows.0.cron", "bad hour"),
    "seconds": ({"cron": "0 0 2 * * *", "minutes": 60}, "policy.windows.0.cron", "five fields"),
    "never": ({"cron": "0 0 30 2 *", "minutes": 60}, "policy.windows.0.cron", "bad day-of-month"),
    "never, in more words": ({"cron": "0 0 31 4,6 *", "minutes": 60}, "policy.windows.0.cron", "bad day-of-month"),
    "no zone": ({"cron": "0 2 * * *", "zone": "Europe/Nowhere", "minutes": 60}, "policy.windows.0.zone", "IANA"),
    "a zone's folder": ({"cron": "0 2 * * *", "zone": "Europe", "minutes": 60}, "policy.windows.0.zone", "IANA"),
    "a path": ({"cron": "0 2 * * *", "zone": "../../etc/passwd", "minutes": 60}, "policy.windows.0.zone", "IANA"),
    "empty zone": ({"cron": "0 2 * * *", "zone": "", "minutes": 60}, "policy.windows.0.zone", "IANA"),
    "no minutes": ({"cron": "0 2 * * *"}, "policy.windows.0.minutes", "required"),
    "too short": ({"cron": "0 2 * * *", "minutes": 0}, "policy.windows.0.minutes", "1 to 10080"),
    "too long": ({"cron": "0 2 * * *", "minutes": LONGEST + 1}, "policy.windows.0.minutes", "1 to 10080"),
}


def parse_windows(*windows: dict[str, object]) -> Windows:
    device = {"name": "a", "model": "m", "root": "."}
    config = parse({"device": device, "policy": {"windows": list(windows)}}, Path("otaflow.toml"))
    return Windows.of(config.policy.windows)


@pytest.mark.parametrize(("values", "key", "why"), BAD.values(), ids=BAD)
def test_a_bad_window_is_refused_with_its_key(values: dict[str, object], key: str, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_windows(values)
    assert f"{key}: " in str(refused.value)
    assert why in str(refused.value).lower() or why in str(refused.value)
    assert refused.value.hint


def test_windows_of_a_configuration() -> None:
    windows = parse_windows({"cron": "0 2 * * *", "minutes": 60}, {"cron": "0 4 * * *", "zone": BERLIN, "minutes": 5})
    assert windows.windows == (Window("0 2 * * *", "UTC", 60), Window("0 4 * * *", BERLIN, 5))
