"""Rolling-back: what must be undone before the former system starts, the restart into it, and what starts then.

New programs are stopped, data is brought back, files and slots are exchanged again; the restart is made where a system
had been activated; then the former programs start, and only then. The former content of the spare slot comes back
afterwards, in Cleaning-Up: the slot runs until the restart.
"""

from otaflow.flows.phase import phase
from otaflow.platform.device import device
from otaflow.tasks.applications import check_former_tree, close_again
from otaflow.tasks.boot import old_system_must_start, restart
from otaflow.tasks.migration import are_migrations_made
from otaflow.tasks.slots import check_previous_slot
from otaflow.tasks.step import STEPS, compensate


@phase("roll back", reverts=False)
def roll_back() -> bool:
    """Take back data, files, configuration and boot target, restart, start what ran. False: the machine is going down.

    Raises NothingToRollback, before anything is changed, when the former system is not there; UndoFailed.
    """
    for slot in former_slots():
        check_previous_slot(slot)
    for name, kept, generation in former_trees():
        check_former_tree(name, kept, generation)
    if stopped := stopped_applications():
        close_again(stopped)
    if are_migrations_made():
        compensate(lambda intent: intent.phase == "verify" and STEPS[intent.step].when == "early")
    compensate(lambda intent: STEPS[intent.step].when == "early")
    if old_system_must_start() and not restart():
        return False
    compensate(lambda intent: STEPS[intent.step].when == "restarted")
    return True


def stopped_applications() -> dict[str, list[str]]:
    """The applications that the session stopped, with their services.

    None when all is brought back, and former programs start again.
    """
    intents = list(device().journal.open_intents())
    if not any(STEPS[one.step].when == "early" for one in intents):
        return {}
    return {one.memory["name"]: one.memory["services"] for one in intents if one.step == "stop_application"}


def former_trees() -> list[tuple[str, str, str]]:
    """The applications whose former files would be theirs again, under what those are kept, and the new generation."""
    return [
        (intent.memory["name"], intent.memory["kept"], intent.memory["generation"])
        for intent in device().journal.open_intents()
        if intent.step == "replace_files" and intent.memory["former"]
    ]


def former_slots() -> list[str]:
    """The slots that would start again: what is there must be a system, or the device would not come up."""
    return [intent.memory["previous"] for intent in device().journal.open_intents() if intent.step == "flip_slot"]
