"""Rolling-back: what must be undone before the former system starts, then the restart into it.

The former content of the spare slot comes back afterwards, in Cleaning-Up: the slot runs until the restart.
"""

from otaflow.flows.phase import phase
from otaflow.platform.device import device
from otaflow.tasks.boot import old_system_must_start, restart
from otaflow.tasks.slots import check_previous_slot
from otaflow.tasks.step import STEPS, compensate


@phase("roll back", reverts=False)
def roll_back() -> bool:
    """Take back the boot target and the configuration, and restart. False: the machine is going down.

    Raises NothingToRollback, before anything is changed, when the former system is not there; UndoFailed.
    """
    for slot in former_slots():
        check_previous_slot(slot)
    compensate(lambda intent: STEPS[intent.step].early)
    return not old_system_must_start() or restart()


def former_slots() -> list[str]:
    """The slots that would start again: what is there must be a system, or the device would not come up."""
    return [intent.memory["previous"] for intent in device().journal.open_intents() if intent.step == "flip_slot"]
