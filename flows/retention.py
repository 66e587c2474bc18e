"""Step 11 of the update processes: a week or two more reboots later, full backups and snapshots go."""

from otaflow.flows.phase import phase
from otaflow.tasks.cleanup import end_full_backup, end_snapshot, find_expired, remove_leavings, remove_old_files


@phase("retention", reverts=False)
def retention() -> list[str]:
    """Remove what retention ends; returns the ids of the entries that lost their full backup and snapshot."""
    expired = find_expired()
    for entry in expired:
        end_full_backup(entry)
        end_snapshot(entry)
    remove_leavings()
    remove_old_files()
    return expired
