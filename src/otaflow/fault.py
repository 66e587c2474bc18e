"""Named fault points: `OTAFLOW_FAULT=NAME:HOW` makes the process fail or die at one named moment, for the tests.

Points are `STEP.before`, `STEP.acted` (changed, not yet recorded), `STEP.done`; `undo.STEP.before`, `undo.STEP.acted`,
`undo.STEP.done`; and `EVENT FROM.before`, `EVENT FROM.after` for each transition. HOW is `raise` (once), `fail`
(every time) or `kill` (SIGKILL to ourselves). When the variable is not set, a point costs one comparison.
"""

import os
import signal

from otaflow.errors import OtaflowError

_name, _, _how = os.environ.get("OTAFLOW_FAULT", "").rpartition(":")
_fired = False


class FaultInjected(OtaflowError):
    """The failure that a test asked for."""


def point(name: str) -> None:
    """Fail here, where the environment asks for it."""
    if _name:
        _reach(name)


def arm(name: str, how: str = "raise") -> None:
    """Ask for a fault from inside the process; an empty `name` asks for none."""
    global _name, _how, _fired
    _name, _how, _fired = name, how, False


def _reach(name: str) -> None:
    global _fired
    if name != _name or (_fired and _how == "raise"):
        return
    _fired = True
    if _how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise FaultInjected(f"a fault was asked for at {name}")
