"""When that is tried again which the device is stuck in: after 1, 2, 4 … 60 minutes, and after a day not any more.

What is left then is left to the agent's next start, and to people: an alarm in the history has told them before. How
often it was tried is in the journal, so that a machine which each try restarts does not do that for ever, either.
"""

import logging

from otaflow.ends import raise_alarm
from otaflow.service import Ucm
from otaflow.ucm.states import State

log = logging.getLogger("otaflow.agent")

FIRST_SECONDS = 60.0
LONGEST_SECONDS = 3600.0
TRIES = 30
ALARM = 3
"""After so many tries people are told."""


class Again:
    """The tries to get the device out of the state that it is stuck in."""

    def __init__(self, ucm: Ucm) -> None:
        self._ucm = ucm
        self._place: tuple[str, State] | None = None
        self._since = 0.0

    def is_due(self, now: float) -> bool:
        """Whether the next try is due at `now` (seconds of a clock that only goes forward)."""
        place = (self._ucm.journal.session.id, self._ucm.state)
        if place != self._place:
            self._place, self._since = place, now
        tries = self._count()
        return tries < TRIES and now - self._since >= min(LONGEST_SECONDS, FIRST_SECONDS * 2**tries)

    def begin(self, now: float) -> None:
        """Count a try, before it is made."""
        self._since = now
        self._ucm.journal.note(again={"state": str(self._ucm.state), "tries": self._count() + 1})

    def end(self, error: Exception) -> None:
        """A try has failed: after some of them, that is an alarm."""
        tries = self._count()
        if tries == ALARM:
            raise_alarm(
                self._ucm.device,
                f"the update manager is {self._ucm.state}, and what leads out of it has failed {tries} times",
                error,
                of="stuck",
            )
        elif tries >= TRIES:
            log.error("it is not tried again before the agent's next start: %s", error)

    def _count(self) -> int:
        noted = self._ucm.journal.session.notes.get("again", {})
        return int(noted["tries"]) if noted.get("state") == self._ucm.state else 0
