"""Verifying: the system restarts (step 10 of the update processes) and proves itself healthy."""

from typing import Any

from otaflow.flows.phase import phase
from otaflow.tasks.boot import check_running_slot, new_system_was_started, restart
from otaflow.tasks.health import check_health

Checks = list[dict[str, Any]]


@phase("verify", reverts=False)
def verify(checks: Checks) -> bool:
    """Restart into the boot target and check the system. False: the machine is going down, and this goes on after it.

    Raises HealthCheckFailed.
    """
    if not new_system_was_started() and not restart():
        return False
    check_running_slot()
    check_health(checks)
    return True
