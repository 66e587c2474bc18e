"""The user's answers to offers, and which offers were announced.

* An answer is bound to an offer's content: another content is asked about anew.
* `now`, `at-next-restart` and `in-window` expire; `not-this-one` stays until it is withdrawn.
* Answering again replaces. An answer can be withdrawn until the activation begins, which uses it up.
* An offer that waits for its answer is announced once, until its answer is withdrawn, has expired or is used.
* A clock that was set back does not prolong an answer: its age counts anew from the moment in which that is seen.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

from otaflow.errors import ConfigError, OperationNotPermitted
from otaflow.policy.moments import as_moment, as_text
from otaflow.policy.offer import Offer
from otaflow.policy.store import Store
from otaflow.policy.windows import Windows
from otaflow.records import Record

log = logging.getLogger(__name__)

KEPT = 32
"""So many answers and announcements are remembered; the oldest go."""


class Choice(StrEnum):
    """What a user can say to an offer."""

    NOW = "now"
    AT_NEXT_RESTART = "at-next-restart"
    IN_WINDOW = "in-window"
    NOT_THIS_ONE = "not-this-one"


Through = Literal["prefect", "command", "interface"]


@dataclass(frozen=True)
class Answer:
    """One answer: to which content, what, by whom and through what, when, at which boot counter, and until when."""

    content: str
    name: str
    version: str
    choice: Choice
    by: str
    through: str
    time: datetime
    boots: int
    expires: datetime | None = None
    used: datetime | None = None

    def holds(self, now: datetime) -> bool:
        """Whether it still counts: not used up by an activation, and not expired."""
        return self.used is None and (self.expires is None or now < self.expires)

    def record(self) -> Record:
        """The answer as plain data; `from_record` is its inverse."""
        return vars(self) | {
            "time": as_text(self.time),
            "expires": self.expires and as_text(self.expires),
            "used": self.used and as_text(self.used),
        }

    @classmethod
    def from_record(cls, record: Record) -> "Answer":
        """Raises KeyError, TypeError, ValueError."""
        return cls(
            **{name: str(record[name]) for name in ("content", "name", "version", "by", "through")},
            choice=Choice(record["choice"]),
            time=as_moment(record["time"]),
            boots=int(record["boots"]),
            expires=as_moment(record["expires"]) if record.get("expires") else None,
            used=as_moment(record["used"]) if record.get("used") else None,
        )

    def seen_at(self, now: datetime) -> "Answer":
        """This answer, no younger than given now."""
        if now >= self.time:
            return self
        return replace(self, time=now, expires=self.expires and now + (self.expires - self.time))


@dataclass(frozen=True)
class Asked:
    """An announcement: of which content, when, and the flow run that waits for the answer (empty: none)."""

    content: str
    time: datetime
    run: str = ""

    def record(self) -> Record:
        """The announcement as plain data; `from_record` is its inverse."""
        return {"content": self.content, "time": as_text(self.time), "run": self.run}

    @classmethod
    def from_record(cls, record: Record) -> "Asked":
        """Raises KeyError, TypeError, ValueError."""
        return cls(str(record["content"]), as_moment(record["time"]), str(record.get("run", "")))


class Consents:
    """The answers and announcements, in one file of the device's nvm."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path)

    # --- answers --------------------------------------------------------------------------------------------------

    def answer(
        self,
        offer: Offer,
        choice: Choice,
        *,
        by: str,
        through: Through,
        now: datetime,
        boots: int,
        days: float,
        windows: Windows,
    ) -> Answer:
        """Record what the user says to `offer`; it counts for `days` days.

        `in-window` counts at least until the next window has closed, however far that is. Raises ConfigError for
        `in-window` on a device without windows.
        """
        expires: datetime | None = None if choice is Choice.NOT_THIS_ONE else now + timedelta(days=days)
        if choice is Choice.IN_WINDOW and expires:
            expires = max(expires, _end_of_next(windows, now))
        answer = Answer(offer.content, offer.name, offer.version, choice, one_line(by), through, now, boots, expires)
        with self._store.changing() as content:
            _put(content, "answers", answer.record())
        return answer

    def find(self, content: str, now: datetime) -> Answer | None:
        """The answer to `content`, also one that no longer holds."""
        answer = _get(self._store.read(), "answers", content, Answer.from_record)
        if answer and now < answer.time:
            with self._store.changing() as stored:
                answer = _get(stored, "answers", content, Answer.from_record)
                if answer:
                    answer = answer.seen_at(now)
                    _put(stored, "answers", answer.record())
        return answer

    def withdraw(self, content: str) -> Answer | None:
        """Take the answer to `content` back; returns it, if there was one. The offer is announced again.

        Raises OperationNotPermitted when its activation has begun.
        """
        with self._store.changing() as stored:
            answer = _get(stored, "answers", content, Answer.from_record)
            if answer and answer.used:
                raise OperationNotPermitted(
                    f"cannot take back the answer: {answer.name} {answer.version} is being activated",
                    hint="`otaflow rollback` goes back to the system before it",
                )
            _drop(stored, content)
        return answer

    def use(self, content: str, now: datetime) -> Answer | None:
        """Use the answer up, as the activation begins: from now on it cannot be withdrawn, nor does it count again.

        None where no answer holds: it was withdrawn or has expired since it was decided upon.
        """
        with self._store.changing() as stored:
            answer = _get(stored, "answers", content, Answer.from_record)
            if answer is None or not answer.holds(now):
                return None
            answer = replace(answer, used=now)
            _put(stored, "answers", answer.record())
        return answer

    def forget(self, content: str) -> None:
        """Drop answer and announcement: the update is in place, or its activation failed: the user is asked again."""
        with self._store.changing() as stored:
            _drop(stored, content)

    # --- announcements --------------------------------------------------------------------------------------------

    def announce(self, content: str, run: str, now: datetime) -> bool:
        """Record that `content` is being announced, by the flow run `run`; False where that was done before.

        Of two who want to announce the same offer, one gets True. An answer that no longer holds is dropped.
        """
        with self._store.changing() as stored:
            if _asked(stored, content, now):
                return False
            _drop(stored, content)
            _put(stored, "asked", Asked(content, now, run).record())
        return True

    def hand_over(self, content: str, run: str, now: datetime) -> None:
        """Record that another flow run waits for the answer now: the one before it is gone."""
        with self._store.changing() as stored:
            asked = _get(stored, "asked", content, Asked.from_record)
            _put(stored, "asked", Asked(content, asked.time if asked else now, run).record())

    def asked(self, content: str, now: datetime) -> Asked | None:
        """The announcement of `content`, if it has one that still stands."""
        return _asked(self._store.read(), content, now)

    def announcements(self) -> list[Asked]:
        """Every announcement that is remembered, also of what is no longer offered."""
        stored = self._store.read()
        found = (_get(stored, "asked", content, Asked.from_record) for content in stored.get("asked", {}))
        return [asked for asked in found if asked]


# --- inside -----------------------------------------------------------------------------------------------------------

T = TypeVar("T")


def _asked(stored: Record, content: str, now: datetime) -> Asked | None:
    answer = _get(stored, "answers", content, Answer.from_record)
    if answer and not answer.holds(now):
        return None
    return _get(stored, "asked", content, Asked.from_record)


def _get(stored: Record, part: str, content: str, read: Callable[[Record], T]) -> T | None:
    """The entry of `content`; one that is not understood counts as none."""
    record: Any = stored.get(part, {}).get(content)
    if record is None:
        return None
    try:
        return read(record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        log.warning("leaving out what is remembered of %s in %s: %r", content, part, error)
        return None


def _put(stored: Record, part: str, record: Record) -> None:
    entries = {key: value for key, value in stored.get(part, {}).items() if key != record["content"]}
    newest = sorted(entries.items(), key=lambda entry: str(entry[1].get("time")))[-(KEPT - 1) :]
    stored[part] = dict(newest) | {record["content"]: record}


def _drop(stored: Record, content: str) -> None:
    for entries in stored.values():
        entries.pop(content, None)


def _end_of_next(windows: Windows, now: datetime) -> datetime:
    """When the window that is open, or opens next, has closed; `now` where windows never close."""
    if not windows:
        raise ConfigError(
            "cannot install in the window: this device has no maintenance window",
            hint="add one to policy.windows in the configuration, or answer `now` or `at-next-restart`",
        )
    opening = now if windows.is_open(now) else windows.opens_next(now)
    return (opening and windows.closes(opening)) or now


def one_line(text: str) -> str:
    """`text` as a name that can be shown: one line, no control characters, not longer than a line."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:100]
