"""All that the policy remembers of one device, in `policy/` of its nvm."""

from datetime import datetime
from pathlib import Path

from otaflow.policy.consent import Consents
from otaflow.policy.decide import Decision, Rules, decide
from otaflow.policy.failures import Failure, Failures, nameless
from otaflow.policy.inbox import Inbox
from otaflow.policy.offer import Offer
from otaflow.policy.windows import Windows


class Memory:
    """The stores below `nvm`; nothing is made before something is to be remembered."""

    def __init__(self, nvm: Path, inbox_size: int = 200) -> None:
        folder = nvm / "policy"
        self.consents = Consents(folder / "consent")
        self.failures = Failures(folder / "failures")
        self.inbox = Inbox(folder / "inbox", inbox_size)

    def decide(self, offer: Offer, *, windows: Windows, now: datetime, boots: int, rules: Rules) -> Decision:
        """`decide`, with what is remembered of the offer's content."""
        answer = self.consents.find(offer.content, now)
        return decide(offer, answer, windows, self.find_failure(offer, now), now=now, boots=boots, rules=rules)

    def find_failure(self, offer: Offer, now: datetime) -> Failure | None:
        """How this content failed, or what no poll had announced under its name and version."""
        return self.failures.find(offer.content, now) or self.failures.find(nameless(offer.name, offer.version), now)
