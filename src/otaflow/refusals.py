"""What stopped the processing, in the interface's words and in the transition table's."""

import errno

from otaflow import errors
from otaflow.errors import UcmError
from otaflow.ucm.states import State
from otaflow.ucm.table import TABLE

_TABLE_NAMES = {
    "ProcessedSoftwarePackageInconsistent": "ProcessedSwPackageInconsistent",
    "InvalidTransferId": "InvalidTransferId (for ProcessSwPackage)",
}
"""The errors that the specification's table spells otherwise than the interface."""
_NO_ROOM = ("No space left", "Wrote only")
"""What programs say on a full disk; the second one is tar's."""


def processing_event(refusal: UcmError) -> str:
    """The table's event for what stopped the processing; one that it has no line for is a GeneralReject."""
    event = f"!{_TABLE_NAMES.get(refusal.name, refusal.name)}"
    return event if (State.PROCESSING, event) in TABLE else "!GeneralReject"


def as_ucm_error(error: BaseException) -> UcmError:
    """The interface's error for whatever stopped the processing."""
    if isinstance(error, UcmError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.InsufficientMemory(f"cannot process the package: {error}", hint="`otaflow clean-up` makes room")
    if isinstance(error, errors.CommandFailed) and any(words in error.output for words in _NO_ROOM):
        return errors.InsufficientMemory(f"cannot process the package: {error}", hint="`otaflow clean-up` makes room")
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return errors.ProcessSwPackageCancelled("the processing was stopped")
    return errors.GeneralReject(f"cannot process the package: {error}")
