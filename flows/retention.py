"""Step 11 of the update processes: a week or two more reboots later, full backups and snapshots go."""

from otaflow.errors import UndoFailed
from otaflow.flows.phase import phase
from otaflow.platform.device import device
from otaflow.tasks.cleanup import end_full_backup, end_snapshot, find_expired, remove_leavings, remove_old_files
from otaflow.tasks.step import compensate
from otaflow.ucm.states import State


@phase("retention", reverts=False)
def retention() -> list[str]:
    """Remove what retention ends; returns the ids of the entries that lost their full backup and snapshot.

    What an ended session could not take back is tried again. Raises UndoFailed, when all the rest is done.
    """
    expired = find_expired()
    for entry in expired:
        end_full_backup(entry)
        end_snapshot(entry)
    failed = take_back_rest()
    if failed is None:
        remove_leavings()
    remove_old_files()
    if failed:
        raise failed
    return expired


def take_back_rest() -> UndoFailed | None:
    """What a rollback left and gave up; what is kept for it stays until it is taken back, or another session began."""
    if device().journal.state is State.IDLE:
        try:
            compensate()
        except UndoFailed as error:
            return error
    return None
