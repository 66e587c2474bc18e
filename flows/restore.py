"""Processing, for the three ways back (spec/update-processes.md): what is brought back is prepared in the spare slot.

Each is backed up before, so that a way back can itself be gone back.
"""

from otaflow.flows.phase import phase
from otaflow.flows.process import Processed
from otaflow.tasks.backups import back_up_incremental, snapshot_main_partition
from otaflow.tasks.slots import check_previous_slot, fill_slot, find_active_slot


@phase("process")
def restore_previous_slot(spare: str) -> Processed:
    """The system before the last update is still in the other slot: nothing is copied."""
    active = find_active_slot()
    label = check_previous_slot(spare)
    backup = back_up_incremental(active)
    return {"target": spare, "generation": label.generation, "backup": backup}


@phase("process")
def restore_backup(backup: str, spare: str) -> Processed:
    """Fill the spare slot from an incremental backup; `/etc/sys` of the same entry follows at the activation."""
    active = find_active_slot()
    present = back_up_incremental(active)
    fill_slot(backup, spare)
    label = check_previous_slot(spare)
    return {"target": spare, "generation": label.generation, "backup": present, "configuration": backup}


@phase("process")
def restore_snapshot(backup: str) -> Processed:
    """Keep the main partition as it is now, before an older one takes its place at the activation."""
    active = find_active_slot()
    present = back_up_incremental(active)
    snapshot_main_partition(present)
    return {"target": active, "backup": present, "main": backup}
