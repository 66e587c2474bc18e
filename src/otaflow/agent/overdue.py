"""Polls of the agent's own: while Prefect is away nobody starts them, and the device goes on looking for updates.

Only a device that was polled before polls by itself, and only while the API does not answer: a deployment that somebody
paused stays paused. Such a poll is no run; the session of an update that it begins is told to Prefect later.
"""

import logging
import threading
from datetime import UTC, datetime, timedelta

from otaflow.deployments.check import poll_alone
from otaflow.flows.clients import is_away
from otaflow.platform.device import Device, using
from otaflow.tasks.policy import last_poll

log = logging.getLogger("otaflow.agent")

LOOK_SECONDS = 60.0
PATIENCE = 1.5
"""So many intervals after the last poll the next one is overdue."""


class Overdue:
    """Looks now and then whether a poll is overdue, in a thread of its own."""

    def __init__(self, device: Device, look_seconds: float = LOOK_SECONDS) -> None:
        self.device = device
        self.look_seconds = look_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otaflow-overdue", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = 60.0) -> None:
        """End; a poll that is going on has `seconds`. What it began is the agent's to carry on."""
        self._ended.set()
        self._thread.join(seconds)

    def look(self, now: datetime) -> bool:
        """Poll if it is overdue; whether it was. Never raises: the poll has reported what failed."""
        device = Device(self.device.config)  # a look from beside: the agent works on its own one
        with using(device):
            if not is_overdue(device, now) or not is_away():
                return False
            log.warning("Prefect is away and a poll is overdue: this device polls by itself")
            state = poll_alone(device)
            log.info("the poll ended: %s: %s", state.name, state.message)
        return True

    def _run(self) -> None:
        while not self._ended.wait(self.look_seconds):
            try:
                self.look(datetime.now(UTC))
            except Exception:
                log.exception("cannot look whether a poll is overdue")


def is_overdue(device: Device, now: datetime) -> bool:
    """Whether the last poll is too long ago, or in a future that a wrong clock made. Not before the first one."""
    last = last_poll(device)
    if last is None:
        return False
    settings = device.config.poll
    wait = timedelta(minutes=PATIENCE * settings.interval_minutes + settings.jitter_minutes)
    return now - last > wait or last - now > wait
