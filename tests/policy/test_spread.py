"""The devices of a fleet do not come all at once when their windows open."""

from datetime import UTC, datetime, timedelta

import pytest

from otaflow.policy.decide import Decision, Reason, Verdict
from otaflow.policy.offer import Offer
from otaflow.policy.spread import find_moment, share_of
from otaflow.policy.windows import Window, Windows

OPENS = datetime(2026, 3, 3, 2, 30, tzinfo=UTC)
FLEET = [f"device-{number}" for number in range(300)]
ALWAYS = Windows([Window("* * * * *", "UTC", 60)])


def waits(**until: datetime | None) -> Decision:
    reasons = tuple(Reason(name, "", moment) for name, moment in until.items())
    return Decision(Offer("base", "1.1.0", "c1" * 32), Verdict.WAIT, reasons)


@pytest.mark.parametrize(
    ("minutes", "jitter", "most"), [(60, 30, 20), (60, 10, 10), (600, 30, 30), (1, 30, 1 / 3), (60, 0, 0)], ids=str
)
def test_all_begin_in_the_windows_first_third(minutes: int, jitter: float, most: float) -> None:
    windows = Windows([Window("30 2 * * *", "UTC", minutes)])
    moments = [find_moment(waits(window=OPENS), windows, name, timedelta(minutes=jitter)) for name in FLEET]
    late = [(moment - OPENS) / timedelta(minutes=1) for moment in moments if moment]
    assert len(late) == len(FLEET)
    assert min(late) >= 0
    assert max(late) <= most
    assert max(late) - min(late) >= 0.9 * most
    assert all(windows.is_open(moment) for moment in moments if moment)


def test_the_same_moment_each_time() -> None:
    windows, jitter = Windows([Window("30 2 * * *", "UTC", 60)]), timedelta(minutes=30)
    assert len({find_moment(waits(window=OPENS), windows, "device-1", jitter) for _ in range(3)}) == 1
    assert len({share_of(name) for name in FLEET}) == len(FLEET)


@pytest.mark.parametrize(
    ("decision", "windows", "moment"),
    [
        (waits(restart=None), Windows(), None),
        (waits(failed=OPENS), Windows(), OPENS),
        (waits(failed=OPENS, window=OPENS - timedelta(hours=1)), ALWAYS, OPENS),
    ],
    ids=["nobody knows", "a failure", "a failure that outlasts the window"],
)
def test_only_the_opening_is_spread(decision: Decision, windows: Windows, moment: datetime | None) -> None:
    assert find_moment(decision, windows, "device-1", timedelta(minutes=30)) == moment


def test_windows_that_never_close() -> None:
    moment = find_moment(waits(window=OPENS), ALWAYS, "device-1", timedelta(minutes=30))
    assert moment is not None
    assert OPENS < moment <= OPENS + timedelta(minutes=30)
