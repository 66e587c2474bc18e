"""Polls of the agent's own: while Prefect is away nobody starts them, and the device goes on looking for updates.

One is due when the last one is too long ago, or when an update on offer may be installed now, since its window has
opened, say.

Only a device that was polled before polls by itself, and only while the API does not answer: a deployment that somebody
paused stays paused. Such a poll is no run; the session of an update that it begins is told to Prefect later.
"""

import logging
import threading
from datetime import UTC, datetime

from otaflow.deployments.check import poll_alone
from otaflow.due import find_due, wait_of_stand_in
from otaflow.flows.clients import is_away
from otaflow.platform.device import Device, using
from otaflow.tasks.policy import last_poll

log = logging.getLogger("otaflow.agent")

LOOK_SECONDS = 60.0


class Overdue:
    """Looks now and then whether a poll is due, in a thread of its own."""

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
        """Poll if one is due that Prefect should have started; whether it was.

        Never raises: the poll has reported what failed.
        """
        device = Device(self.device.config)  # a look from beside: the agent works on its own one
        with using(device):
            why = last_poll(device) and find_due(device, now, wait_of_stand_in(device.config.poll))
            if not why or not is_away():
                return False
            log.warning("Prefect is away, and %s: this device polls by itself", why)
            state = poll_alone(device)
            log.info("the poll ended: %s: %s", state.name, state.message)
        return True

    def _run(self) -> None:
        while not self._ended.wait(self.look_seconds):
            try:
                self.look(datetime.now(UTC))
            except Exception:
                log.exception("cannot look whether a poll is overdue")
