"""A device's own moment: the devices of a fleet do not come all at once, and none needs a clock or a draw for that."""

import hashlib
from datetime import datetime, timedelta

from otaflow.policy.decide import Decision
from otaflow.policy.windows import Windows


def share_of(device: str) -> float:
    """The number of the device of that name, at least 0 and less than 1: the same for ever, another for each."""
    return int.from_bytes(hashlib.sha256(device.encode()).digest()[:4]) / 2**32


def find_moment(decision: Decision, windows: Windows, device: str, jitter: timedelta) -> datetime | None:
    """When to look again at an update that waits; None where that is not known.

    Where it waits for a window, that is up to `jitter` after it has opened, but in its first third.
    """
    moment = decision.until
    if moment is None or moment not in [reason.until for reason in decision.reasons if reason.name == "window"]:
        return moment
    closes = windows.closes(moment)
    room = min(jitter, (closes - moment) / 3) if closes else jitter
    return moment + room * share_of(device)
