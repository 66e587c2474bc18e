"""The system's configuration, `/etc/sys`, and the main partition: brought back from a backup entry."""

from otaflow.errors import NothingToRollback
from otaflow.platform.device import device
from otaflow.platform.exchange import exchange
from otaflow.platform.mirror import mirror
from otaflow.tasks.step import remember, step

KEPT_MAIN = ".main-"


@step("restore configuration", retries=2, when="early")
def restore_configuration(backup: str, present: str) -> None:
    """Make `/etc/sys` what it was in the entry `backup`; `present` is the entry that holds what it is now."""
    remember(present=present)
    bring_configuration(backup)


@restore_configuration.undo
def return_configuration(present: str) -> None:
    """Give `/etc/sys` back what it held before."""
    bring_configuration(present)


def bring_configuration(backup: str) -> None:
    """Make `/etc/sys` exactly what the entry `backup` holds of it; again and again is the same as once."""
    mirror(device().backups.path(backup, "etc-sys"), device().configuration)


@step("restore main partition", retries=2, when="early")
def restore_main(backup: str) -> None:
    """Put a copy of the entry's snapshot in the main partition's place, in one exchange; the former one is kept."""
    here = device()
    snapshot = here.backups.path(backup, "main")
    if not snapshot.is_dir():
        raise NothingToRollback(
            f"cannot restore the main partition: the snapshot of {backup} is gone",
            hint="snapshots go a week or two restarts after their update; `otaflow backups` shows what is left",
        )
    memory = remember(kept=kept_main_name())
    aside = here.main.with_name(memory["kept"])
    if (here.main / memory["kept"]).exists():
        return
    here.trees.remove(aside)
    here.trees.clone(snapshot, aside)
    # The mark tells the two trees apart wherever the power goes: exchanging twice would undo it.
    (aside / memory["kept"]).touch()
    here.trees.sync(aside)
    exchange(aside, here.main)


@restore_main.undo
def return_main(kept: str) -> None:
    """Put the former main partition back in its place and remove the copy."""
    here = device()
    aside = here.main.with_name(kept)
    if (here.main / kept).exists():
        exchange(aside, here.main)
    here.trees.remove(aside)


@step("forget former main partition", retries=2)
def forget_main(kept: str) -> None:
    """Give up the main partition that was kept aside: the restore is committed."""
    here = device()
    here.trees.remove(here.main.with_name(kept))
    (here.main / kept).unlink(missing_ok=True)


def kept_main_name(action: int | None = None) -> str:
    """The name of the main partition that is kept aside, and of the mark in the one that took its place."""
    session = device().journal.session
    return f"{KEPT_MAIN}{session.id}-{session.current if action is None else action}"
