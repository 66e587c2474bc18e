"""The UCM's states (spec/ucm-design.md, state management), each with the sentence a person reads."""

from enum import StrEnum


class State(StrEnum):
    """The status words of CurrentStatus, spelled as the interface spells them."""

    IDLE = "Idle"
    PROCESSING = "Processing"
    READY = "Ready"
    ACTIVATING = "Activating"
    VERIFYING = "Verifying"
    ACTIVATED = "Activated"
    ROLLING_BACK = "Rolling-back"
    ROLLED_BACK = "Rolled-back"
    CLEANING_UP = "Cleaning-Up"
    ROLLING_BACK_FAILED = "RollingBackFailed"


MEANING: dict[State, str] = {
    State.IDLE: "nothing is going on",
    State.PROCESSING: "a package is being prepared, beside what runs",
    State.READY: "what is new is prepared; it can be activated or given up",
    State.ACTIVATING: "dependencies are checked, applications closed and the boot target changed",
    State.VERIFYING: "what is new is on trial",
    State.ACTIVATED: "what is new is healthy; it can be kept or rolled back",
    State.ROLLING_BACK: "what was before is being brought back",
    State.ROLLED_BACK: "what was before runs again",
    State.CLEANING_UP: "what is no longer needed is removed",
    State.ROLLING_BACK_FAILED: "what was before could not be brought back; only another rollback is permitted",
}

RESTING = frozenset({State.IDLE, State.READY, State.ACTIVATED, State.ROLLED_BACK})
"""The states in which nothing works and a restart changes nothing (design: recovery at boot)."""
