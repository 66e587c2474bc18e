"""Rolling-back: what must be undone before the former system starts, then the restart into it.

The former content of the spare slot comes back afterwards, in Cleaning-Up: the slot runs until the restart.
"""

from otaflow.flows.phase import phase
from otaflow.tasks.boot import old_system_must_start, restart
from otaflow.tasks.step import STEPS, compensate


@phase("roll back", reverts=False)
def roll_back() -> bool:
    """Take back the boot target and the configuration, and restart. False: the machine is going down.

    Raises UndoFailed.
    """
    compensate(lambda intent: STEPS[intent.step].early)
    return not old_system_must_start() or restart()
