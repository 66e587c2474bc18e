"""Steps 3 and 4 of the update processes: which slot runs, and the other one becomes a copy of it.

The spare slot's former content is kept aside until the update is committed.
"""

from otaflow.errors import NothingToRollback, OtaflowError
from otaflow.platform.device import device
from otaflow.platform.labels import Label, read_label
from otaflow.tasks.step import remember, step


@step("find active slot", retries=2)
def find_active_slot() -> str:
    """The slot that the running system was started from. Changes nothing."""
    return device().boot.running()


@step("copy active slot", retries=2)
def copy_active_slot(base: str, spare: str) -> None:
    """Make the spare slot a copy of the running one.

    `base` is the spare slot itself when a former package of the session is in it: the next one goes on from there.
    """
    memory = remember(spare=spare, kept=kept_name())
    device().slots.copy(base, spare, memory["kept"])


@copy_active_slot.undo
def put_back_spare_slot(spare: str, kept: str) -> None:
    """Give the spare slot its former content back."""
    put_back(spare, kept)


@step("fill slot from backup", retries=2)
def fill_slot(backup: str, spare: str) -> None:
    """Make the spare slot a copy of the backup entry `backup`."""
    memory = remember(spare=spare, kept=kept_name())
    device().slots.fill(device().backups.path(backup, "sys"), spare, memory["kept"])


@fill_slot.undo
def put_back_filled_slot(spare: str, kept: str) -> None:
    """Give the spare slot its former content back."""
    put_back(spare, kept)


@step("check previous slot", retries=1)
def check_previous_slot(spare: str) -> Label:
    """The label of the system in the other slot. NothingToRollback when there is none. Changes nothing."""
    try:
        return read_label(device().slots.path(spare))
    except OtaflowError as error:
        raise NothingToRollback(
            f"cannot roll back: slot {spare} holds no system that could be started",
            hint="`otaflow rollback --backup ID` goes back to any backup; `otaflow backups` lists them",
        ) from error


@step("forget former slot content", retries=2)
def forget_kept(kept: str) -> None:
    """Give up the content that was kept aside: the update is committed, there is no undo."""
    device().slots.forget(kept)


def put_back(spare: str, kept: str) -> None:
    """Put the former content of the spare slot back. OtaflowError where that slot runs: it is not touched.

    It may: the other one could not be loaded, or a person chose in the boot loader's menu.
    """
    here = device()
    if kept in here.slots.kept_names() and here.boot.running() == spare:
        raise OtaflowError(
            f"cannot put the former content of slot {spare} back: that slot runs",
            hint="it is put back when the other slot runs: restart the machine",
        )
    here.slots.put_back(spare, kept)


def kept_name(action: int | None = None) -> str:
    """The name under which this session's action keeps the spare slot's former content."""
    session = device().journal.session
    return f"{session.id}-{session.current if action is None else action}"
