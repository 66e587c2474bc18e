"""Whether a poll of a device is due. It imports neither Prefect nor TUF: it is asked every few minutes."""

import os
from datetime import datetime, timedelta

from otaflow.config import Poll
from otaflow.platform.device import Device, using
from otaflow.policy import due
from otaflow.tasks import policy

PATIENCE = 1.5
"""So many intervals after the last poll the next one is overdue, where somebody else's schedule was to start it."""


def find_due(device: Device, now: datetime, wait: timedelta) -> str:
    """Why a poll is due at `now`, `wait` being the time between two; empty where none is."""
    with using(device):
        memory = policy.memory()
        offers = [
            due.Known(offer, memory.consents.find(offer.content, now), memory.find_failure(offer, now))
            for offer in policy.offers()
        ]
        return due.find_due(
            offers,
            policy.last_poll(device),
            now=now,
            boots=device.boots.count(),
            wait=wait,
            windows=policy.windows(),
            rules=device.config.policy,
        )


def wait_of_timer(settings: Poll) -> timedelta:
    """The time between two polls of a timer; where a Prefect server has a schedule, the timer only stands in for it."""
    if "PREFECT_API_URL" in os.environ:
        return wait_of_stand_in(settings)
    return timedelta(minutes=settings.interval_minutes)


def wait_of_stand_in(settings: Poll) -> timedelta:
    """After so long a poll that somebody else was to start is overdue."""
    return timedelta(minutes=PATIENCE * settings.interval_minutes + settings.jitter_minutes)
