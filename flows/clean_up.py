"""Cleaning-Up: the decision was recorded before; what is no longer needed goes. Begun again, it goes on."""

from otaflow.flows.phase import phase
from otaflow.tasks.cleanup import remove_cached, remove_temporary
from otaflow.tasks.configuration import forget_main
from otaflow.tasks.slots import forget_kept
from otaflow.tasks.step import compensate


@phase("clean up", reverts=False)
def commit(session: str, kept: list[str], mains: list[str], packages: list[str]) -> None:
    """Give up the ways back of a finished activation."""
    for name in kept:
        forget_kept(name)
    for name in mains:
        forget_main(name)
    for package in packages:
        remove_cached(package)
    remove_temporary(session)


@phase("clean up", reverts=False)
def revert(session: str) -> None:
    """Take back everything of the session. Raises UndoFailed."""
    compensate()
    remove_temporary(session)
