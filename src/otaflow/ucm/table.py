"""The UCM's transition table as data: the rows of spec/ucm-design.md and the rules for what it leaves open.

Events: `<Name` is a client's call, `$Name` a success, `!Name` an error, as in the specification. The table holds every
pair that can happen; a pair that is not in it is a bug (KeyError), not a state.

Rules where the specification is silent:

* Ready x Cancel: OperationNotPermitted, stay Ready.
* "Ready/Idle" after a processing error: Ready when another package of the session is processed, else Idle.
* The errors of ProcessSwPackage that the interface adds (AuthenticationFailed, IncompatibleDelta, OldVersion) go where
  the others go, and so does GeneralReject, for what has no name of its own.
* RollingBackFailed: an automatic rollback failed more often than is tried; only Rollback is permitted.
* Cleaning-Up after Finish always ends in Idle; what could not be removed is an alarm, not a state.
"""

from dataclasses import dataclass
from typing import Final

from otaflow.ucm.states import State

CLIENT_EVENTS: Final = (
    "<Activate",
    "<Cancel",
    "<Finish",
    "<ProcessSwPackage",
    "<RevertProcessedSwPackages",
    "<Rollback",
)
PROCESSING_ERRORS: Final = (
    "InsufficientMemory",
    "InvalidManifest",
    "InvalidTransferId",
    "ProcessedSwPackageInconsistent",
    "ProcessSwPackageCancelled",
    "AuthenticationFailed",
    "IncompatibleDelta",
    "OldVersion",
    "PackageInconsistent",
    "GeneralReject",
)
ACTIVATION_ERRORS: Final = ("ErrorDuringActivation", "ErrorNoValidProcessing", "MissingDependencies")


@dataclass(frozen=True)
class Row:
    """Where an event leads and whom it answers: `answer` is a method (success), `error` the name that is refused with.

    `next` holds two states where it depends on whether another package of the session is processed: (if so, if not).
    """

    next: tuple[State, ...]
    answer: str | None = None
    error: str | None = None

    def resolve(self, *, processed: bool) -> State:
        """The next state, `processed` saying whether another package of this session is processed."""
        return self.next[0] if processed or len(self.next) == 1 else self.next[1]


def _rows() -> dict[tuple[State, str], Row]:
    s = State
    table = {(state, event): Row((state,), error="OperationNotPermitted") for state in State for event in CLIENT_EVENTS}
    table |= {
        # what a client may ask for
        (s.IDLE, "<ProcessSwPackage"): Row((s.PROCESSING,)),
        (s.PROCESSING, "<Cancel"): Row((s.PROCESSING,)),
        (s.PROCESSING, "<ProcessSwPackage"): Row((s.PROCESSING,), error="ServiceBusy"),
        (s.READY, "<Activate"): Row((s.ACTIVATING,)),
        (s.READY, "<ProcessSwPackage"): Row((s.PROCESSING,)),
        (s.READY, "<RevertProcessedSwPackages"): Row((s.CLEANING_UP,)),
        (s.VERIFYING, "<Rollback"): Row((s.ROLLING_BACK,)),
        (s.ACTIVATED, "<Finish"): Row((s.CLEANING_UP,)),
        (s.ACTIVATED, "<Rollback"): Row((s.ROLLING_BACK,)),
        (s.ROLLED_BACK, "<Finish"): Row((s.CLEANING_UP,)),
        (s.ROLLING_BACK_FAILED, "<Rollback"): Row((s.ROLLING_BACK,)),
        # what comes of the work
        (s.PROCESSING, "$Success ProcessSwPackage"): Row((s.READY,), answer="ProcessSwPackage"),
        (s.PROCESSING, "$Success Cancel"): Row((s.PROCESSING,), answer="Cancel"),
        (s.PROCESSING, "!CancelFailed (for Cancel)"): Row((s.PROCESSING,), answer="Cancel", error="CancelFailed"),
        (s.PROCESSING, "!InvalidTransferId (for Cancel)"): Row(
            (s.PROCESSING,), answer="Cancel", error="InvalidTransferId"
        ),
        (s.ACTIVATING, "$Success"): Row((s.VERIFYING,), answer="Activate"),
        (s.VERIFYING, "$Success"): Row((s.ACTIVATED,)),
        (s.VERIFYING, "!Fail"): Row((s.ROLLING_BACK,)),
        (s.ROLLING_BACK, "$Success"): Row((s.ROLLED_BACK,), answer="Rollback"),
        (s.ROLLING_BACK, "!RollingBackFailed"): Row((s.ROLLING_BACK_FAILED,), error="NotAbleToRollback"),
        (s.CLEANING_UP, "$Success Finish"): Row((s.IDLE,), answer="Finish"),
        (s.CLEANING_UP, "$Success RevertProcessedSwPackages"): Row((s.IDLE,), answer="RevertProcessedSwPackages"),
    }
    for name in PROCESSING_ERRORS:
        event = f"!{name} (for ProcessSwPackage)" if name == "InvalidTransferId" else f"!{name}"
        table[s.PROCESSING, event] = Row((s.READY, s.IDLE), answer="ProcessSwPackage", error=name)
    for name in ACTIVATION_ERRORS:
        table[s.ACTIVATING, f"!{name}"] = Row((s.READY,), answer="Activate", error=name)
    for name in ("NotAbleToRollback", "NothingToRollback"):
        for origin in (s.ACTIVATED, s.VERIFYING):
            table[s.ROLLING_BACK, f"!{name} (from {origin})"] = Row((origin,), answer="Rollback", error=name)
    for name in ("NotAbleToRevertPackages", "NothingToRevert"):
        table[s.CLEANING_UP, f"!{name} (for RevertProcessedSwPackages)"] = Row(
            (s.READY,), answer="RevertProcessedSwPackages", error=name
        )
    return table


TABLE: Final = _rows()
