"""Verifying: the system restarts (step 10 of the update processes), data is migrated, all proves itself healthy.

The last step trusts the new slot: until then the boot loader counts its starts and falls back by itself.

The chart's boxes from *need migration* to *reload services* (spec/s16-package-update.md) are here.
"""

from typing import Any

from otaflow.flows.phase import phase
from otaflow.platform.device import device
from otaflow.tasks.boot import check_running_slot, confirm_slot, new_system_was_started, restart
from otaflow.tasks.health import check_connection, check_health
from otaflow.tasks.migration import back_up_migration_data, migrate, needs_migration
from otaflow.tasks.services import check_services, keep_stopped, reload_services, start_services

Checks = list[dict[str, Any]]
Parts = list[dict[str, Any]]


@phase("verify", reverts=False)
def verify(checks: Checks, system: bool, parts: Parts) -> bool:
    """Restart into the boot target, migrate, start and check what is new.

    `system`: a system was activated, so the device restarts. `parts`: see `otaflow.parts`. False: the machine is going
    down, and this goes on after it. Raises HealthCheckFailed, MigrationFailed, DatabaseFailed, ServiceFailed.
    """
    if system:
        if not new_system_was_started() and not restart():
            return False
        check_running_slot()
    change_data(parts)
    reload(parts)
    check_health(checks)
    if device().config.health.reach_server:
        check_connection()
    if system:
        confirm_slot()
    return True


def change_data(parts: Parts) -> None:
    """*Need migration* and what follows from yes. Nothing of what is migrated runs meanwhile."""
    if not needs_migration([one for part in parts for one in part["migrations"]]):
        return
    keep_stopped()
    closed = [part["name"] for part in parts if part["kind"] in ("application", "owner")]
    for part in parts:
        # Each is kept when those before it are done: begun again after a power cut, it must not take them back.
        if part["migrations"]:
            back_up_migration_data(name=part["id"], package=part["name"], migrations=part["migrations"])
            folder = part["folder"]
            if part["kind"] == "application":
                folder = str(device().applications.path(part["name"]))
            migrate(name=part["id"], package=part["name"], migrations=part["migrations"], folder=folder, closed=closed)


def reload(parts: Parts) -> None:
    """*Reload services*: the new programs start, others read anew what has changed, and all of them stay up.

    Applications come first: a system may restart their services, which are not known before.
    """
    for part in sorted(parts, key=lambda part: bool(part["kind"] == "system")):
        if part["restart"]:
            start_services(name=part["id"], services=part["restart"], application=part["kind"] != "system")
    for part in parts:
        if part["reload"]:
            reload_services(name=part["id"], services=part["reload"])
    services = [service for part in parts for service in [*part["restart"], *part["reload"]]]
    if services:
        check_services(services)
