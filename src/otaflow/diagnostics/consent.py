"""The consent to send diagnostic data: one answer of its own, which no other answer includes.

It is in `nvm/policy/diagnostics`, as `consent`: `{given, time (RFC 3339), by}`. Nobody who never answered has agreed.
"""

from dataclasses import dataclass
from pathlib import Path

from otaflow.diagnostics.spool import Spool, store_of
from otaflow.journal import now


@dataclass(frozen=True)
class Consent:
    """The last answer: yes or no, when (RFC 3339, UTC) and who; `time` and `by` are empty where nobody answered."""

    given: bool = False
    time: str = ""
    by: str = ""


def read_consent(nvm: Path) -> Consent:
    """What was answered last; no where nothing was, or where it cannot be read."""
    try:
        stored = store_of(nvm).read().get("consent", {})
    except OSError:
        return Consent()
    return Consent(stored.get("given") is True, str(stored.get("time", "")), str(stored.get("by", "")))


def give_consent(nvm: Path, by: str) -> Consent:
    """From now on diagnostic data may be sent. Durable when it returns."""
    return _answer(nvm, by, given=True)


def withdraw_consent(nvm: Path, by: str) -> int:
    """From now on nothing is sent, and what waits is removed unsent; returns how many reports that were."""
    _answer(nvm, by, given=False)
    return Spool(nvm).clear()


def _answer(nvm: Path, by: str, *, given: bool) -> Consent:
    consent = Consent(given, now(), by)
    with store_of(nvm).changing() as stored:
        stored["consent"] = {"given": given, "time": consent.time, "by": by}
        stored.pop("seen", None)
    return consent
