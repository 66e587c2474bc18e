"""Activating: dependencies are checked, and the boot target is changed (step 9 of the update processes)."""

from otaflow.flows.phase import phase
from otaflow.flows.process import Processed
from otaflow.tasks.boot import check_dependencies, flip_slot
from otaflow.tasks.configuration import restore_configuration, restore_main


@phase("activate")
def activate_update(processed: Processed, folders: list[str]) -> None:
    """Make the updated slot the one that boots next; `folders` hold all packages of the session."""
    check_dependencies(folders)
    flip_slot(processed["target"], processed["generation"])


@phase("activate")
def activate_slot(processed: Processed) -> None:
    """Make the previous slot the one that boots next."""
    flip_slot(processed["target"], processed["generation"])


@phase("activate")
def activate_backup(processed: Processed) -> None:
    """Bring the configuration of the backup back, and boot the slot that was filled from it."""
    restore_configuration(processed["configuration"], processed["backup"])
    flip_slot(processed["target"], processed["generation"])


@phase("activate")
def activate_snapshot(processed: Processed) -> None:
    """Put the snapshot in the main partition's place; the slot stays."""
    restore_main(processed["main"])
