"""The decision, case by case, and what is said about it."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otaflow.config import Policy
from otaflow.policy.consent import Answer, Choice
from otaflow.policy.decide import Decision, Verdict, decide
from otaflow.policy.explain import explain
from otaflow.policy.failures import Failure, Kind
from otaflow.policy.memory import Memory
from otaflow.policy.offer import Offer
from otaflow.policy.windows import Window, Windows

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
OFFER = Offer("base", "1.1.0", "c1" * 32)
OPEN = Windows([Window("0 12 * * *", "UTC", 60)])
CLOSED = Windows([Window("0 14 * * *", "UTC", 60)])
NONE = Windows()
AT_TWO = NOW + timedelta(hours=2)
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Rules:
    ask: bool = True
    backoff_hours: float = 8
    backoff_max_days: float = 14


def said(
    choice: Choice, *, ago: timedelta = HOUR, boots: int = 3, days: float | None = 7, used: bool = False
) -> Answer:
    time = NOW - ago
    expires = time + timedelta(days=days) if days else None
    answer = Answer("c1" * 32, "base", "1.1.0", choice, "ann", "command", time, boots, expires)
    return replace(answer, used=NOW) if used else answer


def failed(ago: timedelta = timedelta(hours=2), kind: Kind = Kind.PROCESSING, *, costly: bool = False) -> Failure:
    return Failure("c1" * 32, "base", "1.1.0", 1, NOW - ago, kind, "exit 1", costly=costly)


CASES: dict[str, tuple[dict[str, Any], Verdict, list[str], datetime | None]] = {
    # given, verdict, names of the reasons, until
    "no answer": ({}, Verdict.ASK, ["unanswered"], None),
    "no answer, window open": ({"windows": OPEN}, Verdict.ASK, ["unanswered"], None),
    "now": ({"answer": said(Choice.NOW)}, Verdict.INSTALL, ["answered"], None),
    "now, window closed": ({"answer": said(Choice.NOW), "windows": CLOSED}, Verdict.INSTALL, ["answered"], None),
    "now, expired": ({"answer": said(Choice.NOW, ago=timedelta(days=7))}, Verdict.ASK, ["expired"], None),
    "now, used up": ({"answer": said(Choice.NOW, used=True)}, Verdict.ASK, ["used"], None),
    "restart, not yet": ({"answer": said(Choice.AT_NEXT_RESTART)}, Verdict.WAIT, ["restart"], None),
    "restart, done": ({"answer": said(Choice.AT_NEXT_RESTART, boots=2)}, Verdict.INSTALL, ["answered"], None),
    "restart, the counter was lost": (
        {"answer": said(Choice.AT_NEXT_RESTART, boots=9)},
        Verdict.INSTALL,
        ["answered"],
        None,
    ),
    "window open": ({"answer": said(Choice.IN_WINDOW), "windows": OPEN}, Verdict.INSTALL, ["window"], None),
    "window closed": ({"answer": said(Choice.IN_WINDOW), "windows": CLOSED}, Verdict.WAIT, ["window"], AT_TWO),
    "window gone": ({"answer": said(Choice.IN_WINDOW)}, Verdict.ASK, ["no-window"], None),
    "refused": ({"answer": said(Choice.NOT_THIS_ONE, days=None)}, Verdict.REFUSE, ["refused"], None),
    "refused long ago": (
        {"answer": said(Choice.NOT_THIS_ONE, ago=timedelta(days=999), days=None)},
        Verdict.REFUSE,
        ["refused"],
        None,
    ),
    "failed": (
        {"failure": failed(), "answer": said(Choice.NOW, ago=3 * HOUR)},
        Verdict.WAIT,
        ["failed"],
        NOW + 6 * HOUR,
    ),
    "failed, not answered": ({"failure": failed()}, Verdict.WAIT, ["failed", "unanswered"], NOW + 6 * HOUR),
    "failed, refused": (
        {"failure": failed(), "answer": said(Choice.NOT_THIS_ONE, days=None)},
        Verdict.REFUSE,
        ["failed", "refused"],
        NOW + 6 * HOUR,
    ),
    "failed, window closed": (
        {"failure": failed(), "answer": said(Choice.IN_WINDOW), "windows": CLOSED},
        Verdict.WAIT,
        ["failed", "window"],
        NOW + 6 * HOUR,
    ),
    "failed, window later than the wait": (
        {"failure": failed(7 * HOUR), "answer": said(Choice.IN_WINDOW), "windows": CLOSED},
        Verdict.WAIT,
        ["failed", "window"],
        AT_TWO,
    ),
    "failed with a restart": (
        {"failure": failed(23 * HOUR, Kind.VERIFICATION, costly=True), "answer": said(Choice.NOW, ago=24 * HOUR)},
        Verdict.WAIT,
        ["failed"],
        NOW + HOUR,
    ),
    "failed long ago": ({"failure": failed(8 * HOUR), "answer": said(Choice.NOW)}, Verdict.INSTALL, ["answered"], None),
    "failed, `in-window` after it": (
        {"failure": failed(), "answer": said(Choice.IN_WINDOW), "windows": OPEN},
        Verdict.WAIT,
        ["failed"],
        NOW + 6 * HOUR,
    ),
    "not asking": ({"rules": Rules(ask=False)}, Verdict.INSTALL, ["automatic"], None),
    "not asking, window closed": ({"rules": Rules(ask=False), "windows": CLOSED}, Verdict.WAIT, ["window"], AT_TWO),
    "not asking, window open": ({"rules": Rules(ask=False), "windows": OPEN}, Verdict.INSTALL, ["window"], None),
    "not asking, refused": (
        {"rules": Rules(ask=False), "answer": said(Choice.NOT_THIS_ONE, days=None)},
        Verdict.REFUSE,
        ["refused"],
        None,
    ),
    "not asking, failed": ({"rules": Rules(ask=False), "failure": failed()}, Verdict.WAIT, ["failed"], NOW + 6 * HOUR),
    "no backoff": (
        {"rules": Rules(ask=False, backoff_hours=0), "failure": failed()},
        Verdict.INSTALL,
        ["automatic"],
        None,
    ),
}


def judge(**given: Any) -> Decision:
    offer, answer, windows = given.get("offer", OFFER), given.get("answer"), given.get("windows", NONE)
    return decide(offer, answer, windows, given.get("failure"), now=NOW, boots=3, rules=given.get("rules", Rules()))


@pytest.mark.parametrize(("given", "verdict", "reasons", "until"), CASES.values(), ids=CASES)
def test_decide(given: dict[str, Any], verdict: Verdict, reasons: list[str], until: datetime | None) -> None:
    decision = judge(**given)
    assert (decision.verdict, [reason.name for reason in decision.reasons]) == (verdict, reasons)
    assert decision.until == until
    assert decision.overrides == ()


@pytest.mark.parametrize("given", [case[0] for case in CASES.values()], ids=CASES)
def test_priority_overrides_all_but_failure(given: dict[str, Any]) -> None:
    plain, urgent = judge(**given), judge(**given, offer=replace(OFFER, priority=True))
    names = [reason.name for reason in plain.reasons]
    if plain.verdict is Verdict.INSTALL:
        assert replace(urgent, offer=OFFER) == plain
    elif "failed" in names:
        assert urgent.verdict is Verdict.WAIT
        assert [reason.name for reason in urgent.reasons] == ["failed"]
    else:
        assert urgent.verdict is Verdict.INSTALL
        assert [reason.name for reason in urgent.reasons] == ["priority"]
        assert urgent.overrides == (f"priority update: {plain.reasons[0].text}",)


FOR_GOOD = replace(OFFER, irreversible=True, irreversible_data="the database notes.db of notes")
ANSWERED = [
    case[0]
    for case in CASES.values()
    if case[1] is Verdict.INSTALL and case[2] != ["automatic"] and case[0].get("answer") is not None
]


@pytest.mark.parametrize("priority", [False, True], ids=["plain", "priority"])
@pytest.mark.parametrize(("given", "verdict", "reasons", "until"), CASES.values(), ids=CASES)
def test_what_changes_data_for_good_needs_an_answer(
    given: dict[str, Any], verdict: Verdict, reasons: list[str], until: datetime | None, priority: bool
) -> None:
    """Neither priority, nor a window, nor a device that does not ask stands in its place."""
    decision = judge(**given, offer=replace(FOR_GOOD, priority=priority))
    names = [reason.name for reason in decision.reasons]
    assert decision.overrides == ()
    if given in ANSWERED:
        assert (decision.verdict, names) == (verdict, reasons)
    elif given.get("answer") is None:
        assert names[-2:] == ["unanswered", "irreversible"]
        assert decision.verdict is (Verdict.WAIT if "failed" in names else Verdict.ASK)
    elif verdict is Verdict.ASK:
        assert (decision.verdict, names) == (Verdict.ASK, [*reasons, "irreversible"])
    else:
        assert (decision.verdict, names, decision.until) == (verdict, reasons, until)
        said = "priority does not change that" in decision.reasons[-1].text
        assert said is (priority and names[-1] != "failed")


def test_the_answer_to_what_changes_data_for_good_may_wait_for_its_window() -> None:
    rules = Rules(ask=False)
    assert judge(offer=FOR_GOOD, answer=said(Choice.IN_WINDOW), windows=OPEN, rules=rules).verdict is Verdict.INSTALL
    assert judge(offer=FOR_GOOD, windows=OPEN, rules=rules).verdict is Verdict.ASK


@pytest.mark.parametrize("windows", [OPEN, CLOSED, NONE], ids=["open", "closed", "none"])
def test_only_what_can_be_answered_is_offered(windows: Windows) -> None:
    decision = judge(windows=windows)
    assert (Choice.IN_WINDOW in decision.choices) is bool(windows)
    assert ("in-window" in "".join(explain(decision))) is bool(windows)
    assert {*decision.choices, Choice.IN_WINDOW} == {*Choice}


def test_now_after_the_failure_tries_once_more() -> None:
    decision = judge(failure=failed(2 * HOUR), answer=said(Choice.NOW, ago=HOUR))
    assert decision.verdict is Verdict.INSTALL
    assert "said `now` after the failure" in decision.overrides[0]
    again = judge(failure=failed(timedelta(minutes=1)), answer=said(Choice.NOW, ago=HOUR))
    assert again.verdict is Verdict.WAIT


answers = st.builds(
    said,
    st.sampled_from(Choice),
    ago=st.timedeltas(-HOUR, timedelta(days=10)),
    boots=st.integers(2, 4),
    days=st.sampled_from([None, 1, 7]),
    used=st.booleans(),
)
failings = st.builds(failed, st.timedeltas(-HOUR, timedelta(days=20)), st.sampled_from(Kind), costly=st.booleans())


@settings(deadline=None)
@given(
    answer=st.none() | answers,
    windows=st.sampled_from([NONE, OPEN, CLOSED]),
    failure=st.none() | failings,
    ask=st.booleans(),
    priority=st.booleans(),
    for_good=st.booleans(),
)
def test_whatever_is_given(
    answer: Answer | None, windows: Windows, failure: Failure | None, ask: bool, priority: bool, for_good: bool
) -> None:
    offer = replace(OFFER, priority=priority, irreversible=for_good)
    decision = judge(offer=offer, answer=answer, windows=windows, failure=failure, rules=Rules(ask=ask))
    assert decision.reasons
    assert decision.until is None or decision.until > NOW
    if decision.verdict is Verdict.INSTALL and (for_good or (ask and not priority)):
        assert answer is not None
        assert answer.holds(NOW)
        assert answer.choice is not Choice.NOT_THIS_ONE
    if priority and not for_good:
        assert decision.verdict in (Verdict.INSTALL, Verdict.WAIT)
    assert all(line.isprintable() for line in explain(decision))


def test_the_configuration_is_rules_for_it() -> None:
    assert judge(rules=Policy()).verdict is Verdict.ASK


def test_memory_decides_with_what_it_remembers(tmp_path: Any) -> None:
    memory = Memory(tmp_path)

    def verdict() -> Verdict:
        return memory.decide(OFFER, windows=NONE, now=NOW, boots=3, rules=Rules()).verdict

    assert verdict() is Verdict.ASK
    memory.consents.answer(OFFER, Choice.NOW, by="ann", through="prefect", now=NOW, boots=3, days=7, windows=NONE)
    assert verdict() is Verdict.INSTALL
    memory.failures.add(OFFER.content, "base", "1.1.0", Kind.PROCESSING, "exit 1", NOW)
    assert verdict() is Verdict.WAIT


EXPLAINED = {
    "asks": (
        {},
        ["base 1.1.0 waits for your answer", "  not now: the user has not answered yet", "  to do: answer with"],
    ),
    "installs": (
        {"answer": said(Choice.NOW)},
        ["base 1.1.0 will be installed now", "  because: ann said `now` on 2026-03-02 11:00 UTC"],
    ),
    "waits": (
        {"rules": Rules(ask=False), "windows": CLOSED},
        [
            "base 1.1.0 waits until 2026-03-02 14:00 UTC",
            "  not now: no maintenance window is open (until 2026-03-02 14:00 UTC)",
        ],
    ),
    "failed": (
        {"failure": failed(), "answer": said(Choice.NOT_THIS_ONE, days=None)},
        [
            "base 1.1.0 is refused",
            "  not now: it failed on 2026-03-02 10:00 UTC; it could not be prepared: exit 1 (until",
            "  not now: ann said `not-this-one` on 2026-03-02 11:00 UTC",
            "  to do: `otaflow consent withdraw`",
        ],
    ),
    "priority": (
        {"offer": replace(OFFER, priority=True)},
        [
            "base 1.1.0 (priority) will be installed now",
            "  because: it is a priority update",
            "  overridden: priority update: the user has not answered yet",
        ],
    ),
    "for good": (
        {"offer": replace(FOR_GOOD, name="notes", kind="application", priority=True), "rules": Rules(ask=False)},
        [
            "notes 1.1.0 (priority, irreversible) waits for your answer",
            "  not now: the user has not answered yet",
            "  not now: it changes the database notes.db of notes for good: what was there before cannot be",
            "  to do: answer with `otaflow consent now --name notes`, `at-next-restart` or `not-this-one`",
        ],
    ),
    "for good, refused": (
        {"offer": replace(FOR_GOOD, priority=True), "answer": said(Choice.NOT_THIS_ONE, days=None)},
        [
            "base 1.1.0 (priority, irreversible) is refused",
            "  not now: ann said `not-this-one` on 2026-03-02 11:00 UTC; priority does not change that, as the update",
            "  to do: `otaflow consent withdraw` takes",
        ],
    ),
}


@pytest.mark.parametrize(("given", "lines"), EXPLAINED.values(), ids=EXPLAINED)
def test_explain(given: dict[str, Any], lines: list[str], in_utc: None) -> None:
    explained = explain(judge(**given))
    assert len(explained) == len(lines)
    for line, begin in zip(explained, lines, strict=True):
        assert line.startswith(begin)
