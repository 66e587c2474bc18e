"""The memory of updates that failed: how long each content is left alone.

* After a failure the update is left alone for `backoff_hours`, doubled with each further one, for at most
  `backoff_max_days`.
* After a failure that cost the device a restart (the new system did not start, was not healthy, or was taken back by a
  person) it begins at three times that: a device in use must not go down at every poll.
* The memory is bound to the content: a repaired package is another content and is tried at once. Success clears it.
* A clock that was set back does not lengthen the wait: seen from before the failure, the wait begins anew, in full.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from otaflow import history
from otaflow.policy.moments import as_moment, as_text
from otaflow.policy.store import Store
from otaflow.records import Record

log = logging.getLogger(__name__)

KEPT = 32
"""So many contents are remembered; those that failed longest ago go."""
AFTER_RESTART = 3
"""How many times longer the wait is after a failure that cost a restart."""


class Kind(StrEnum):
    """What failed."""

    STOPPED = "stopped"
    FETCHING = "fetching"
    PROCESSING = "processing"
    ACTIVATION = "activation"
    RESTART = "restart"
    VERIFICATION = "verification"
    TAKEN_BACK = "taken-back"


COSTLY = frozenset({Kind.RESTART, Kind.VERIFICATION, Kind.TAKEN_BACK})
"""The failures that cost a restart."""


@dataclass(frozen=True)
class Failure:
    """What is remembered of one content: how often it failed, and of the last time when, what and why.

    `costly`: one of the failures cost a restart. `key` is the history's, of the record that was learnt from last.
    """

    content: str
    name: str
    version: str
    count: int
    time: datetime
    kind: Kind
    why: str = ""
    costly: bool = False
    key: str = ""

    def record(self) -> Record:
        """The failure as plain data; `from_record` is its inverse."""
        return vars(self) | {"time": as_text(self.time)}

    @classmethod
    def from_record(cls, record: Record) -> "Failure":
        """Raises KeyError, TypeError, ValueError."""
        return cls(
            **{name: str(record[name]) for name in ("content", "name", "version", "why", "key")},
            count=max(1, int(record["count"])),
            time=as_moment(record["time"]),
            kind=Kind(record["kind"]),
            costly=bool(record["costly"]),
        )

    def wait(self, hours: float, days: float) -> timedelta:
        """How long the update is left alone: `hours` at first, `days` at most."""
        first = hours * 3600 * (AFTER_RESTART if self.costly else 1)
        # More doublings than 64 are no longer wait, only a larger number.
        seconds = first * 2.0 ** min(self.count - 1, 64)
        return min(timedelta(days=days), timedelta(seconds=min(days * 86400, seconds)))

    def until(self, now: datetime, hours: float, days: float) -> datetime | None:
        """When the update may be tried again; None when that is now. Never further from `now` than the wait itself."""
        end = min(self.time, now) + self.wait(hours, days)
        return end if now < end else None


class Failures:
    """What is remembered, in one file of the device's nvm."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path)

    def find(self, content: str, now: datetime) -> Failure | None:
        """What is remembered of `content`; where the clock was set back, as if it had failed `now`."""
        failure = _get(self._store.read(), content)
        if failure and now < failure.time:
            with self._store.changing() as stored:
                failure = _get(stored, content)
                if failure:
                    failure = replace(failure, time=min(now, failure.time))
                    stored[content] = failure.record()
        return failure

    def add(
        self, content: str, name: str, version: str, kind: Kind, why: str, now: datetime, *, key: str = ""
    ) -> Failure:
        """Remember that `content` failed. The same `key` as the last time is a repetition, and does not count."""
        with self._store.changing() as stored:
            before = _get(stored, content)
            if before and key and before.key == key:
                return before
            failure = Failure(
                content,
                name,
                version,
                count=before.count + 1 if before else 1,
                time=now,
                kind=kind,
                why=why[:2000],
                costly=kind in COSTLY or bool(before and before.costly),
                key=key,
            )
            stored[content] = failure.record()
            for oldest in sorted(stored, key=lambda one: str(stored[one].get("time")))[:-KEPT]:
                del stored[oldest]
        return failure

    def clear(self, content: str, name: str = "", version: str = "") -> None:
        """Forget `content`, and what else was published as this name and version."""
        with self._store.changing() as stored:
            for key, record in list(stored.items()):
                if key == content or (name and (record.get("name"), record.get("version")) == (name, version)):
                    del stored[key]

    def learn(
        self, record: Mapping[str, Any], now: datetime, content: str = "", *, as_recorded: bool = True
    ) -> Failure | None:
        """Learn from an ended record of the history; returns the failure, if it tells of one.

        `content` is that of the update that the record is about, where the record does not say it itself. For a way
        back, it is that of the update which was gone back from. A record may be learnt from twice. Where it is not to
        count `as_recorded` (by a clock that may have been wrong), it counts as of `now`.
        """
        content = content or str(record.get("content", ""))
        kind = kind_of(record)
        name, version = str(record.get("name", "")), str(record.get("version", ""))
        if record.get("action") in WAYS_BACK:
            version = str(record.get("from_version", version))
        if kind is None or not content:
            if content and record.get("action") == "Update" and record.get("resolution") == history.ACTIVATED:
                self.clear(content, name, version)
            return None
        time = min(now, as_moment(record["time"])) if as_recorded and record.get("time") else now
        return self.add(content, name, version, kind, str(record.get("why", "")), time, key=str(record.get("key", "")))


def nameless(name: str, version: str) -> str:
    """What stands for the content of an update that no poll has announced."""
    return f"{name} {version}"


WAYS_BACK = ("Rollback", "Restore")
_AT_ACTIVATION = ("ErrorDuringActivation", "ErrorNoValidProcessing", "MissingDependencies")
_WHILE_FETCHING = (
    "RepositoryRefused",
    "CertificateRefused",
    "LoginRefused",
    "TryLater",
    "Offline",
    "AuthenticationFailed",
)
_NOT_STARTED = ("did not start", "not the content that was to start", "never to the end")
"""What the steps say of a system that was not verified because it did not come up (`tasks/boot.py`, `service.py`)."""


def kind_of(record: Mapping[str, Any]) -> Kind | None:
    """Which failure of an update a record of the history tells of; None for none, and for what is no update.

    An update that a person goes back from is a failure too: it would come back with the next poll.
    """
    resolution, error = record.get("resolution"), str(record.get("error", ""))
    if record.get("action") in WAYS_BACK:
        return Kind.TAKEN_BACK if resolution == history.ACTIVATED else None
    if record.get("action") != "Update":
        return None
    match resolution:
        case history.VERIFICATION_FAILED:
            started = not any(words in str(record.get("why", "")) for words in _NOT_STARTED)
            return Kind.VERIFICATION if started else Kind.RESTART
        case history.ROLLED_BACK:
            return Kind.TAKEN_BACK
        case history.FAILED if error == "ProcessSwPackageCancelled":
            return Kind.STOPPED
        case history.FAILED if error in _AT_ACTIVATION:
            return Kind.ACTIVATION
        case history.FAILED if error in _WHILE_FETCHING:
            return Kind.FETCHING
        case history.FAILED:
            return Kind.PROCESSING
    return None


def _get(stored: Record, content: str) -> Failure | None:
    """The entry of `content`; one that is not understood counts as none."""
    if content not in stored:
        return None
    try:
        return Failure.from_record(stored[content])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        log.warning("leaving out what is remembered of %s: %r", content, error)
        return None
