"""When a poll is due, for whoever looks often and polls seldom: a timer, and the agent while Prefect is away.

* The last poll is older than the wait between two, or in a future that a wrong clock made, or there was none.
* An update on offer may be installed now: its window has opened, the restart it waited for was made, it was answered,
  its wait after a failure is over. Where that held at the last poll already, which then could not install it (offline,
  say), another one is due only after RETRY.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from otaflow.policy.consent import Answer
from otaflow.policy.decide import Decision, Rules, Verdict, decide
from otaflow.policy.failures import Failure
from otaflow.policy.moments import in_words
from otaflow.policy.offer import Offer
from otaflow.policy.windows import Windows

RETRY = timedelta(minutes=30)


@dataclass(frozen=True)
class Last:
    """The last poll: when, and at which boot counter."""

    time: datetime
    boots: int


@dataclass(frozen=True)
class Known:
    """An update on offer, with the answer to it and its failure, where there are any."""

    offer: Offer
    answer: Answer | None = None
    failure: Failure | None = None

    def decide(self, windows: Windows, now: datetime, boots: int, rules: Rules) -> Decision:
        """Whether it may be installed at `now`."""
        return decide(self.offer, self.answer, windows, self.failure, now=now, boots=boots, rules=rules)

    def as_of(self, then: datetime) -> "Known":
        """What was known of it at `then`."""
        answer = self.answer if self.answer and self.answer.time <= then else None
        return Known(self.offer, answer, self.failure if self.failure and self.failure.time <= then else None)


def find_due(
    offers: Iterable[Known],
    last: Last | None,
    *,
    now: datetime,
    boots: int,
    wait: timedelta,
    windows: Windows,
    rules: Rules,
) -> str:
    """Why a poll is due at `now`, for a log; empty where none is. `boots` is the boot counter now."""
    if last is None:
        return "this device was never polled"
    if not -wait < now - last.time < wait:
        return f"the last poll was on {in_words(last.time)}"
    for known in offers:
        decision = known.decide(windows, now, boots, rules)
        if decision.verdict is not Verdict.INSTALL:
            continue
        then = known.as_of(last.time).decide(windows, last.time, last.boots, rules)
        if then.verdict is not Verdict.INSTALL or now - last.time >= RETRY:
            return f"{known.offer.title()} may be installed now: {decision.reasons[0].text}"
    return ""
