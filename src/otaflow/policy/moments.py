"""Moments as the stores keep them (RFC 3339, UTC) and as a person reads them (the device's own time zone)."""

from datetime import UTC, datetime


def as_text(moment: datetime) -> str:
    """`moment` in RFC 3339, UTC. Raises ValueError for one without time zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_moment(text: str) -> datetime:
    """The inverse of `as_text`. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment.astimezone(UTC)


def in_words(moment: datetime) -> str:
    """`moment` for a person, to the minute, in the device's time zone."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M %Z}"
