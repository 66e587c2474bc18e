"""The one decision: may this update be installed now? Rules without I/O, looked at in this order.

1. An update that failed is left alone for a while (`failures`). Priority does not change that: a broken update must not
   be tried at every poll, however urgent it is. Only the answer `now`, given after the failure, does.
2. Without `policy.ask`, what is new is installed at once, or in the next window where there are windows; the user's
   answer, where there is one, still counts. With it, an update without an answer that holds is asked about.
3. `not-this-one` refuses; `now` installs; `at-next-restart` waits until the boot counter is another than at the answer;
   `in-window` waits until a window is open.
4. A priority update waits for nothing in 2 and 3, nor does a refusal there hold it: priority stands in place of the
   user's answer and of the window, and what it overrode is said. Nothing here touches signature, space, version or
   dependency: those are checked where the update is fetched, processed and activated.
5. An update that changes data for good (`irreversible`) needs the user's own answer: neither `policy.ask = false` nor a
   window nor priority stands in its place, and priority does not hasten what the answer puts off.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from otaflow.policy.consent import Answer, Choice
from otaflow.policy.failures import Failure, Kind
from otaflow.policy.moments import in_words
from otaflow.policy.offer import Offer
from otaflow.policy.windows import Windows


class Verdict(StrEnum):
    """What is to be done with an offer."""

    INSTALL = "install"
    ASK = "ask"
    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Reason:
    """Why: a name for programs, a text for people, and until when it holds, where that is known."""

    name: str
    text: str
    until: datetime | None = None


@dataclass(frozen=True)
class Decision:
    """The verdict on an offer, with all reasons for it, and what was set aside for it, in words for the log.

    `choices` is what the user may answer on this device.
    """

    offer: Offer
    verdict: Verdict
    reasons: tuple[Reason, ...]
    overrides: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = tuple(Choice)

    @property
    def until(self) -> datetime | None:
        """Before this moment another look changes nothing, unless the user does; None where that is not known."""
        return max((reason.until for reason in self.reasons if reason.until), default=None)


class Rules(Protocol):
    """What of the configuration's `[policy]` is decided by."""

    @property
    def ask(self) -> bool: ...
    @property
    def backoff_hours(self) -> float: ...
    @property
    def backoff_max_days(self) -> float: ...


def decide(
    offer: Offer,
    answer: Answer | None,
    windows: Windows,
    failure: Failure | None,
    *,
    now: datetime,
    boots: int,
    rules: Rules,
) -> Decision:
    """Whether `offer` is installed now; `answer` and `failure` are what is remembered of its content.

    `boots` is the boot counter. Of several reasons against it the strongest gives the verdict: refuse, wait, ask.
    """
    against: list[tuple[Verdict, Reason]] = []
    overrides: list[str] = []
    pause = _pause(failure, now, rules)
    if (
        pause
        and failure
        and answer
        and answer.choice is Choice.NOW
        and answer.holds(now)
        and answer.time > failure.time
    ):
        overrides.append(f"{answer.by} said `now` after the failure: {pause.text}")
    elif pause:
        against.append((Verdict.WAIT, pause))
    verdict, reason = _by_consent(offer, answer, windows, now, boots, rules)
    if verdict is not Verdict.INSTALL and offer.irreversible:
        against += _why_for_good(offer, verdict, reason)
    elif verdict is not Verdict.INSTALL and offer.priority:
        overrides.append(f"priority update: {reason.text}")
        reason = Reason("priority", "it is a priority update: it waits for no answer and no window")
    elif verdict is not Verdict.INSTALL:
        against.append((verdict, reason))
    choices = tuple(choice for choice in Choice if windows or choice is not Choice.IN_WINDOW)
    if not against:
        return Decision(offer, Verdict.INSTALL, (reason,), tuple(overrides), choices)
    strongest = min((verdict for verdict, _ in against), key=_STRENGTH.index)
    return Decision(offer, strongest, tuple(reason for _, reason in against), tuple(overrides), choices)


_STRENGTH = (Verdict.REFUSE, Verdict.WAIT, Verdict.ASK)

_FAILED = {
    Kind.STOPPED: "it was stopped",
    Kind.FETCHING: "it could not be fetched",
    Kind.PROCESSING: "it could not be prepared",
    Kind.ACTIVATION: "it could not be activated",
    Kind.RESTART: "the new system did not start",
    Kind.VERIFICATION: "it was not healthy",
    Kind.TAKEN_BACK: "it was taken back",
}


def _pause(failure: Failure | None, now: datetime, rules: Rules) -> Reason | None:
    """The wait after a failure, if it is not over."""
    until = failure and failure.until(now, rules.backoff_hours, rules.backoff_max_days)
    if not failure or not until:
        return None
    times = "" if failure.count == 1 else f" {failure.count} times, the last time"
    why = f": {failure.why}" if failure.why else ""
    return Reason("failed", f"it failed{times} on {in_words(failure.time)}; {_FAILED[failure.kind]}{why}", until)


def _why_for_good(offer: Offer, verdict: Verdict, reason: Reason) -> list[tuple[Verdict, Reason]]:
    """The reasons against an update that changes data for good: nothing but the user's answer removes them."""
    if verdict is Verdict.ASK:
        text = (
            f"{_begin_low(offer.loss())} Only the user's own answer lets it go ahead; "
            "no window, no priority and no `policy.ask = false` stands in its place"
        )
        return [(verdict, reason), (verdict, Reason("irreversible", text))]
    if offer.priority:
        text = f"{reason.text}; priority does not change that, as the update changes data for good"
        reason = replace(reason, text=text)
    return [(verdict, reason)]


def _begin_low(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _by_consent(
    offer: Offer, answer: Answer | None, windows: Windows, now: datetime, boots: int, rules: Rules
) -> tuple[Verdict, Reason]:
    """What the user's answer and the windows say, priority and failures aside."""
    if answer is None or not answer.holds(now):
        return _unanswered(offer, answer, windows, now, rules)
    said = f"{answer.by} said `{answer.choice}` on {in_words(answer.time)}"
    match answer.choice:
        case Choice.NOT_THIS_ONE:
            return Verdict.REFUSE, Reason("refused", said)
        case Choice.NOW:
            return Verdict.INSTALL, Reason("answered", said)
        case Choice.AT_NEXT_RESTART if answer.boots == boots:
            return Verdict.WAIT, Reason("restart", f"{said}, and the device was not restarted since")
        case Choice.AT_NEXT_RESTART:
            return Verdict.INSTALL, Reason("answered", f"{said}, and the device was restarted since")
    if not windows:
        return Verdict.ASK, Reason("no-window", f"{said}, but this device has no maintenance window any more")
    return _in_window(windows, now, f"{said}, and ")


def _unanswered(
    offer: Offer, answer: Answer | None, windows: Windows, now: datetime, rules: Rules
) -> tuple[Verdict, Reason]:
    if rules.ask or offer.irreversible:
        return Verdict.ASK, _why_asked(answer)
    if windows:
        return _in_window(windows, now, "")
    return Verdict.INSTALL, Reason("automatic", "this device installs what is new without asking (policy.ask)")


def _why_asked(answer: Answer | None) -> Reason:
    if answer and answer.used:
        text = f"the answer of {in_words(answer.time)} was used up by the activation of {in_words(answer.used)}"
        return Reason("used", f"{text}; the user is asked again")
    if answer and answer.expires:
        return Reason("expired", f"the answer of {in_words(answer.time)} has expired; the user is asked again")
    return Reason("unanswered", "the user has not answered yet")


def _in_window(windows: Windows, now: datetime, said: str) -> tuple[Verdict, Reason]:
    if windows.is_open(now):
        return Verdict.INSTALL, Reason("window", f"{said}a maintenance window is open")
    return Verdict.WAIT, Reason("window", f"{said}no maintenance window is open", windows.opens_next(now))
