"""The agent in Prefect: states are shown without making a caller wait, and Prefect's own buttons are UCM events.

A person presses Resume or Cancel on the session's page; Prefect changes the run's state. Here that change is noticed,
passed through the transition table as the event that it means, and the right state is put back. Nothing bypasses the
table: what it forbids is put back too, with a line in the run's log that says why.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from otaflow.errors import UcmError
from otaflow.flows.phase import Phase
from otaflow.ucm.states import State

log = logging.getLogger("otaflow.agent")

LOOK_SECONDS = 1.0
FLUSH_SECONDS = 10.0
"""How long the end waits for a look that is going on."""
AGAIN_SECONDS = 5.0
"""How long what Prefect could not be told waits until it is tried again."""

RESUME = {State.READY: "activate", State.ACTIVATED: "finish", State.ROLLED_BACK: "finish"}
CANCEL = {
    State.PROCESSING: "cancel",
    State.READY: "revert",
    State.ACTIVATED: "rollback",
    State.VERIFYING: "rollback",
    State.ROLLING_BACK_FAILED: "rollback",
}
"""What each button means in each state (design: UI buttons are UCM events); elsewhere it means nothing."""


class Shown(Protocol):
    """What is needed of `otaflow.flows.session.PrefectRuns`."""

    def publish(self, state: State, message: str) -> None: ...
    def run(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> Any: ...
    def behind(self) -> bool: ...
    def pressed(self) -> tuple[str, State] | None: ...
    def put_back(self, why: str) -> None: ...
    def close(self) -> None: ...


class Visible:
    """A `Runs` that listens for the buttons in a thread of its own."""

    def __init__(self, runs: Shown, ask: Callable[[str, State], None], state: Callable[[], State]) -> None:
        """`ask` calls the agent's method of that name if it is still in that state; raises the refusing UcmError."""
        self.runs = runs
        self._ask, self._state = ask, state
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go, name="otaflow-visible", daemon=True)
        self._thread.start()

    def publish(self, state: State, message: str) -> None:
        """Show the session's states soon; the journal says which are due."""
        self.runs.publish(state, message)

    def run(self, phase: Phase[..., Any], parameters: dict[str, Any]) -> Any:
        """Run a phase as a flow run of the session's."""
        return self.runs.run(phase, parameters)

    def close(self) -> None:
        """Show what is due, and end."""
        self._ended.set()
        self._thread.join(FLUSH_SECONDS)  # it may be asking a server that stands still
        self.runs.close()

    def _go(self) -> None:
        tried = 0.0
        while not self._ended.wait(LOOK_SECONDS):
            if self.runs.behind():
                if time.monotonic() - tried > AGAIN_SECONDS:
                    tried = time.monotonic()
                    self.runs.publish(self._state(), "")
            elif self._state() is not State.IDLE:
                self._look()

    def _look(self) -> None:
        """Take a button that was pressed as the event it means."""
        try:
            button = self.runs.pressed()
        except Exception as error:
            log.debug("cannot look at the session's run now: %s", error)
            return
        if button is None or self._ended.is_set():
            return
        name, state = button
        call = {"Resume": RESUME, "Cancel": CANCEL}.get(name, {}).get(state)
        why = ""
        if call is None:
            why = f"{name} means nothing while the update manager is {state}"
        else:
            try:
                self._ask(call, state)
            except UcmError as error:
                why = f"{name} was refused: {error}"
            except Exception as error:  # a disk that takes nothing more, say: the next button is heard all the same
                log.exception("%s came to nothing", name)
                why = f"{name} came to nothing: {error}"
        self.runs.put_back(why)
