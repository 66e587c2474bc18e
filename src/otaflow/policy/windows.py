"""Maintenance windows: when an update may begin that was answered with "in my window".

A window is a cron expression (five fields, Debian's reading of them), an IANA time zone and a length. It is open from
each start, inclusive, for so many real minutes, exclusive. Where the clocks go forward over a start, the window opens
when they have gone; where they go back over one, it opens once, the first time. With a `*` for minutes or hours it
opens by real time.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

LONGEST = 7 * 24 * 60
"""A window's length at most, in minutes."""
LARGEST_CHANGE = timedelta(hours=3)
"""Clocks are not put forward or back by more at once, for summer time."""
HORIZON = timedelta(days=8)
"""Windows that follow each other without a gap for so long do not close, as far as anybody wants to know."""


def check_cron(expression: str) -> str:
    """`expression` itself. Raises ValueError where it is none, or never comes."""
    if len(expression.split()) != 5:
        raise ValueError(
            f"{expression!r} has not five fields: write minute hour day month weekday, as in '30 2 * * SAT'"
        )
    try:
        next(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as error:
        why = str(error).lower() or "that day never comes"
        raise ValueError(
            f"{expression!r} is no cron expression ({why}): write minute hour day month weekday, as in '30 2 * * SAT'"
        ) from error
    return expression


def check_zone(name: str) -> str:
    """`name` itself. Raises ValueError where there is no such time zone."""
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:  # not found, a folder, no name at all
        raise ValueError(f"{name!r} is no time zone: write its IANA name, as in 'Europe/Berlin' or 'UTC'") from error
    return name


def check_minutes(minutes: int) -> int:
    """`minutes` itself. Raises ValueError where a window cannot be so long."""
    if not 1 <= minutes <= LONGEST:
        raise ValueError(f"{minutes} minutes is no length of a window: write 1 to {LONGEST} (a week)")
    return minutes


@dataclass(frozen=True)
class Window:
    """One window, which opens at each `cron` in `zone` for `minutes`. Raises ValueError."""

    cron: str
    zone: str
    minutes: int

    def __post_init__(self) -> None:
        check_cron(self.cron)
        check_zone(self.zone)
        check_minutes(self.minutes)

    @property
    def length(self) -> timedelta:
        return timedelta(minutes=self.minutes)

    @cached_property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.zone)

    def starts(self, after: datetime) -> Iterator[datetime]:
        """Every start later than `after`, in UTC, the first one first."""
        last = after
        for start in heapq.merge(self._starts(after, fold=0), self._starts(after, fold=1)):
            if start > last:
                yield start
                last = start

    def openings(self, after: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Start and end of every opening that begins later than `after`."""
        return ((start, start + self.length) for start in self.starts(after))

    def _starts(self, after: datetime, fold: int) -> Iterator[datetime]:
        """The starts from some hours before `after` on, of two equal local times the first one, or (`fold`) the second.

        cronsim gets the local time without its zone: with one, it miscounts after a clock change of half an hour.
        """
        by_real_time = any(field.startswith("*") for field in self.cron.split()[:2])
        begin = after.astimezone(self._zone).replace(tzinfo=None, fold=0) - LARGEST_CHANGE
        for local in CronSim(self.cron, begin):
            start = local.replace(tzinfo=self._zone, fold=fold if by_real_time else 0)
            if by_real_time and _is_skipped(start):
                continue
            while _is_skipped(start):
                start += timedelta(minutes=1)
            yield start.astimezone(UTC)


def _is_skipped(local: datetime) -> bool:
    """Whether the clock never shows this local time, since it goes forward over it."""
    return local.astimezone(UTC).astimezone(local.tzinfo).replace(tzinfo=None) != local.replace(tzinfo=None)


class Entry(Protocol):
    """One window of the configuration."""

    @property
    def cron(self) -> str: ...
    @property
    def zone(self) -> str: ...
    @property
    def minutes(self) -> int: ...


class Windows:
    """All windows of a device; open where one of them is."""

    def __init__(self, windows: Iterable[Window] = ()) -> None:
        self.windows = tuple(windows)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Windows":
        """The windows of the configuration's `policy.windows`."""
        return cls(Window(entry.cron, entry.zone, entry.minutes) for entry in entries)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.windows)

    def is_open(self, now: datetime) -> bool:
        """Whether an update may begin now. Without windows: never."""
        return any(next(window.starts(now - window.length)) <= now for window in self.windows)

    def closes(self, now: datetime) -> datetime | None:
        """When the windows that are open now have closed; None where none is open, or they go on for days."""
        openings = heapq.merge(*(window.openings(now - window.length) for window in self.windows))
        end = now
        for start, its_end in openings:
            if start > end:
                return end if end > now else None
            end = max(end, its_end)
            if end - now >= HORIZON:
                break
        return None

    def opens_next(self, now: datetime) -> datetime | None:
        """When they open next: after they have closed, if they are open now. None where that is never."""
        since = now
        if self.is_open(now):
            closing = self.closes(now)
            if closing is None:
                return None
            since = closing
        return min((next(window.starts(since)) for window in self.windows), default=None)
