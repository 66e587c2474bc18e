"""Named fault points for tests: `OTAFLOW_FAULT=NAME:HOW` makes the process fail, die or stand still at one moment.

Points are `STEP.before`, `STEP.acted` (changed, not yet recorded), `STEP.done`; `undo.STEP.before`, `undo.STEP.acted`,
`undo.STEP.done`; and `EVENT FROM.before`, `EVENT FROM.after` for each transition. HOW is `raise` (once), `fail`
(every time), `kill` (SIGKILL to ourselves) or `cut`: the point's name is written to the file or FIFO that
OTAFLOW_FAULT_CUT names, and the process stands still for ever; who runs the machine takes its power then. `trace` has
every point told. When nothing is asked for, a point costs one comparison.
"""

import os
import signal
from collections.abc import Callable

from otaflow.errors import OtaflowError

WAYS = ("raise", "fail", "kill", "cut")

_asked = False
_name = _how = ""
_fired = False
_tell: Callable[[str], None] | None = None


class FaultInjected(OtaflowError):
    """The failure that a test asked for."""


def point(name: str) -> None:
    """Fail here, where the environment asks for it."""
    if _asked:
        _reach(name)


def arm(name: str, how: str = "raise") -> None:
    """Ask for a fault from inside the process; an empty `name` asks for none. Raises OtaflowError: no such `how`."""
    global _name, _how, _fired
    if name and how not in WAYS:
        raise OtaflowError(f"cannot arm the fault point {name!r}: {how!r} is none of {', '.join(WAYS)}")
    _name, _how, _fired = name, how, False
    _look()


def trace(tell: Callable[[str], None] | None) -> None:
    """Have every point that is reached told, before any fault at it; None ends that."""
    global _tell
    _tell = tell
    _look()


def _look() -> None:
    global _asked
    _asked = bool(_name) or _tell is not None


def _reach(name: str) -> None:
    global _fired
    if _tell:
        _tell(name)
    if name != _name or (_fired and _how != "fail"):
        return
    _fired = True
    if _how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if _how == "cut":
        _stand_still(name)
    raise FaultInjected(f"a fault was asked for at {name}")


def _stand_still(name: str) -> None:
    """Say where we are, and stop with all threads; whoever has us go on stops us again."""
    if path := os.environ.get("OTAFLOW_FAULT_CUT"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, name.encode() + b"\n")
        os.close(fd)
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)


arm(*os.environ.get("OTAFLOW_FAULT", "").rpartition(":")[::2])
