"""Cleaning-Up: the decision was recorded before; what is no longer needed goes. Begun again, it goes on."""

from contextlib import suppress

from otaflow.errors import OtaflowError
from otaflow.flows.phase import phase
from otaflow.platform.device import Device
from otaflow.platform.labels import FILE_NAME
from otaflow.tasks.applications import forget_tree
from otaflow.tasks.cleanup import remove_cached, remove_temporary
from otaflow.tasks.configuration import forget_main
from otaflow.tasks.migration import forget_dumps
from otaflow.tasks.slots import forget_kept
from otaflow.tasks.step import compensate


@phase("clean up", reverts=False)
def commit(session: str, kept: list[str], mains: list[str], packages: list[str], trees: list[tuple[str, str]]) -> None:
    """Give up the ways back of a finished activation. `trees`: of applications, the name and under what it is kept."""
    for name in kept:
        forget_kept(name)
    for name in mains:
        forget_main(name)
    for name, former in trees:
        forget_tree(name, former)
    forget_dumps(session)
    for package in packages:
        remove_cached(package)
    remove_temporary(session)


@phase("clean up", reverts=False)
def revert(session: str) -> None:
    """Take back everything of the session. Raises UndoFailed."""
    compensate()
    remove_temporary(session)


def disown_rest(device: Device) -> None:
    """What could not be taken back must never start as a former system: without its label no way back leads there.

    Its place is the spare slot, whose own former content is still kept aside.
    """
    for intent in device.journal.open_intents():
        spare, kept = intent.memory.get("spare"), intent.memory.get("kept")
        if spare in device.slots.names and spare != device.boot.running() and kept in device.slots.kept_names():
            with suppress(OSError, OtaflowError):
                (device.slots.path(spare) / FILE_NAME).unlink(missing_ok=True)
