"""Activating: dependencies are checked, applications closed and exchanged, the boot target changed (step 9)."""

from typing import Any

from otaflow.flows.phase import phase
from otaflow.flows.process import Processed
from otaflow.platform.device import device
from otaflow.tasks.applications import ask_to_close, remove_application, replace_files, stop_application
from otaflow.tasks.boot import check_dependencies, flip_slot
from otaflow.tasks.configuration import restore_configuration, restore_main
from otaflow.tasks.services import stop_services

Parts = list[dict[str, Any]]
"""What a session does to applications and services, of each package: see `otaflow.parts`."""


@phase("activate")
def activate_update(processed: Processed | None, folders: list[str], parts: Parts) -> None:
    """Make all of the session what runs next: the updated slot (None: the system stays), and the applications.

    `folders` hold all packages of the session. What is stopped here is held, also over a restart: nothing of it runs
    before its data is migrated.
    """
    removed = [part["name"] for part in parts if part["kind"] == "remove"]
    check_dependencies(folders, removed, processed["target"] if processed else device().boot.running())
    applications = [part for part in parts if part["kind"] != "system"]
    for part in applications:
        ask_to_close(name=part["name"], version=part["version"], priority=part["priority"])
    for part in parts:
        if part["kind"] == "system" and part["restart"]:
            stop_services(name=part["id"], services=part["restart"])
    for part in applications:
        stop_application(name=part["name"], services=part["restart"])
        if part["kind"] == "remove":
            remove_application(name=part["name"], kept=part["kept"])
        elif part["kind"] == "application":
            replace_files(name=part["name"], kept=part["kept"], generation=part["generation"])
    if processed:
        flip_slot(processed["target"], processed["generation"])


@phase("activate")
def activate_slot(processed: Processed) -> None:
    """Make the previous slot the one that boots next; what depends on the present system keeps it from that."""
    check_dependencies([], [], processed["target"])
    flip_slot(processed["target"], processed["generation"])


@phase("activate")
def activate_backup(processed: Processed) -> None:
    """Bring the configuration of the backup back, and boot the slot that was filled from it."""
    check_dependencies([], [], processed["target"])
    restore_configuration(processed["configuration"], processed["backup"])
    flip_slot(processed["target"], processed["generation"])


@phase("activate")
def activate_snapshot(processed: Processed) -> None:
    """Put the snapshot in the main partition's place; the slot stays."""
    restore_main(processed["main"])
