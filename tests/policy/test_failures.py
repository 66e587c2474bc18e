"""The memory of failures and its waits."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otaflow import history
from otaflow.policy.failures import _NOT_STARTED, COSTLY, KEPT, Failure, Failures, Kind, kind_of

SOURCES = Path(__file__).parents[2]
CONTENT = "c1" * 32
HOURS, DAYS = 8.0, 14.0
WAITS = {
    "first": (1, Kind.PROCESSING, 8),
    "second": (2, Kind.PROCESSING, 16),
    "third": (3, Kind.ACTIVATION, 32),
    "sixth": (6, Kind.PROCESSING, 256),
    "seventh: two weeks": (7, Kind.PROCESSING, 336),
    "thousandth": (1000, Kind.PROCESSING, 336),
    "first with a restart": (1, Kind.VERIFICATION, 24),
    "second with a restart": (2, Kind.RESTART, 48),
    "fifth with a restart: two weeks": (5, Kind.RESTART, 336),
    "taken back": (1, Kind.TAKEN_BACK, 24),
}


def fail(failures: Failures, now: datetime, kind: Kind = Kind.PROCESSING, **more: Any) -> Failure:
    return failures.add(CONTENT, "base", "1.1.0", kind, "it broke", now, **more)


@pytest.mark.parametrize(("count", "kind", "hours"), WAITS.values(), ids=WAITS)
def test_the_wait(now: datetime, count: int, kind: Kind, hours: float) -> None:
    failure = Failure(CONTENT, "base", "1.1.0", count, now, kind, costly=kind in COSTLY)
    end = now + timedelta(hours=hours)
    assert failure.until(now, HOURS, DAYS) == end
    assert failure.until(end - timedelta(seconds=1), HOURS, DAYS) == end
    assert failure.until(end, HOURS, DAYS) is None


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(1, 10**6),
    costly=st.booleans(),
    hours=st.floats(0, 8760),
    days=st.floats(0, 3650),
    since=st.timedeltas(timedelta(days=-4000), timedelta(days=4000)),
)
@example(count=15, costly=False, hours=3.0, days=3106.923131812147, since=timedelta(0))  # rounded by a microsecond
def test_a_wait_is_never_further_than_its_length(
    count: int, costly: bool, hours: float, days: float, since: timedelta
) -> None:
    failed = datetime.fromisoformat("2026-03-02T12:00:00+00:00")
    failure = Failure(CONTENT, "base", "1.1.0", count, failed, Kind.PROCESSING, costly=costly)
    more = Failure(CONTENT, "base", "1.1.0", count + 1, failed, Kind.PROCESSING, costly=costly)
    assert failure.wait(hours, days) <= more.wait(hours, days) <= timedelta(days=days)
    now = failed + since
    until = failure.until(now, hours, days)
    assert until is None or now < until <= now + failure.wait(hours, days)


def test_failures_are_counted_and_kept(failures: Failures, now: datetime) -> None:
    assert failures.find(CONTENT, now) is None
    fail(failures, now)
    later = now + timedelta(hours=9)
    fail(failures, later, Kind.VERIFICATION)
    found = failures.find(CONTENT, later)
    assert found == Failure(CONTENT, "base", "1.1.0", 2, later, Kind.VERIFICATION, "it broke", costly=True)
    assert failures.find("d2" * 32, later) is None, "a new content is not waited with"
    last = fail(failures, later, Kind.PROCESSING)
    assert last.costly, "it did cost a restart once"


def test_the_same_failure_told_twice_counts_once(failures: Failures, now: datetime) -> None:
    assert fail(failures, now, key="s.0").count == 1
    assert fail(failures, now + timedelta(minutes=1), key="s.0") == fail(failures, now, key="s.0")
    assert fail(failures, now, key="s.1").count == 2


def test_a_clock_set_back_does_not_lengthen_the_wait(failures: Failures, now: datetime) -> None:
    fail(failures, now)
    back = now - timedelta(days=365)
    found = failures.find(CONTENT, back)
    assert found
    assert found.until(back, HOURS, DAYS) == back + timedelta(hours=8)
    later = back + timedelta(hours=8)
    found = failures.find(CONTENT, later)
    assert found
    assert found.until(later, HOURS, DAYS) is None, "the wait began once, not anew at every look"


@pytest.mark.parametrize(
    ("clear", "left"),
    [((CONTENT,), 2), (("", "base", "1.1.0"), 1), ((CONTENT, "base", "1.1.0"), 1), (("ff" * 32,), 3)],
    ids=["content", "name and version", "both", "unknown"],
)
def test_clear(failures: Failures, now: datetime, clear: tuple[str, ...], left: int) -> None:
    fail(failures, now)
    failures.add("d2" * 32, "base", "1.1.0", Kind.PROCESSING, "", now)
    failures.add("e3" * 32, "base", "1.2.0", Kind.PROCESSING, "", now)
    failures.clear(*clear)
    assert sum(failures.find(content * 32, now) is not None for content in ("c1", "d2", "e3")) == left


def test_the_oldest_are_forgotten(failures: Failures, now: datetime) -> None:
    for number in range(KEPT + 3):
        failures.add(f"{number:064x}", "base", "1", Kind.PROCESSING, "", now + timedelta(minutes=number))
    later = now + timedelta(days=1)
    assert [n for n in range(KEPT + 3) if failures.find(f"{n:064x}", later)] == list(range(3, KEPT + 3))


def record(resolution: str, error: str = "", why: str = "", action: str = "Update", **more: Any) -> dict[str, Any]:
    """A record as `history.History` has it."""
    fields = {"name": "base", "version": "1.1.0", "action": action, "resolution": resolution, "key": "s.0"}
    return fields | {"error": error, "why": why, "time": "2026-03-02T11:00:00.000Z"} | more


KINDS = {
    "activated": (record(history.ACTIVATED), None),
    "not healthy": (
        record(history.VERIFICATION_FAILED, "HealthCheckFailed", "the health check 'web' failed 3 times: exit 1"),
        Kind.VERIFICATION,
    ),
    "another slot runs": (
        record(history.VERIFICATION_FAILED, "HealthCheckFailed", "slot b did not start: slot a runs"),
        Kind.RESTART,
    ),
    "it went down each time": (
        record(
            history.VERIFICATION_FAILED,
            "HealthCheckFailed",
            "the new system was begun to be verified 10 times, and never to the end",
        ),
        Kind.RESTART,
    ),
    "rolled back by hand": (record(history.ROLLED_BACK), Kind.TAKEN_BACK),
    "cancelled or cut": (record(history.FAILED, "ProcessSwPackageCancelled"), Kind.STOPPED),
    "dependency": (record(history.FAILED, "MissingDependencies"), Kind.ACTIVATION),
    "not fetched": (record(history.FAILED, "RepositoryRefused"), Kind.FETCHING),
    "program": (record(history.FAILED, "ProcessedSoftwarePackageInconsistent"), Kind.PROCESSING),
    "unknown error": (record(history.FAILED, "SomethingNew"), Kind.PROCESSING),
    "gone back later": (record(history.ACTIVATED, action="Rollback", from_version="1.1.0"), Kind.TAKEN_BACK),
    "a way back that failed": (record(history.FAILED, "GeneralReject", action="Rollback"), None),
    "snapshot of the main partition": (record(history.ACTIVATED, action="RestoreMain"), None),
    "cleaning": (record(history.FAILED, "OSError", action="CleanUp"), None),
    "uninstalled": (record(history.ACTIVATED, action="Uninstall"), None),
}


@pytest.mark.parametrize(("ended", "kind"), KINDS.values(), ids=KINDS)
def test_what_a_record_of_the_history_tells(
    failures: Failures, now: datetime, ended: dict[str, Any], kind: Kind | None
) -> None:
    assert kind_of(ended) == kind
    failure = failures.learn(ended, now, CONTENT)
    assert failures.learn(ended, now, CONTENT) == failure, "a record may be learnt from twice"
    assert failures.find(CONTENT, now) == failure
    assert (failure and failure.kind) == kind
    if failure:
        assert failure.time == now - timedelta(hours=1), "it failed when the history says so"
        assert failure.version == "1.1.0"


def test_success_clears_what_failed(failures: Failures, now: datetime) -> None:
    fail(failures, now)
    failures.learn(record(history.ACTIVATED), now, CONTENT)
    assert failures.find(CONTENT, now) is None


def test_a_record_can_name_its_content(failures: Failures, now: datetime) -> None:
    assert failures.learn(record(history.FAILED), now) is None, "of which content is not known"
    assert failures.learn(record(history.FAILED, content=CONTENT), now)


@pytest.mark.parametrize("words", _NOT_STARTED)
def test_the_steps_still_say_what_a_restart_that_failed_is_known_by(words: str) -> None:
    files = [*(SOURCES / "tasks").glob("*.py"), *(SOURCES / "src" / "otaflow").glob("*.py")]
    assert any(words in file.read_text() for file in files)
