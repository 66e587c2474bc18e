"""Proving a system healthy: the checks of its package and of the device's own configuration."""

from pathlib import Path
from typing import Any

from otaflow import progress
from otaflow.errors import CommandFailed, HealthCheckFailed, Refused, TryLater
from otaflow.platform.device import device
from otaflow.platform.lock import DeviceLock
from otaflow.platform.run import run
from otaflow.tasks.step import step, stop_if_asked

KEPT_LINES = 40
"""Of what a failed check says, so many lines go into the processing log."""
PATIENCE = 60.0
"""Seconds that a poll has to be done with the repository."""


@step("check health")
def check_health(checks: list[dict[str, Any]]) -> None:
    """Run each check (name, command, timeout_seconds, tries, wait_seconds) until it exits 0 or its tries are over.

    A command that is no absolute path is looked for in the running slot first (in the tree of the check's
    `application`, where it has one). Raises HealthCheckFailed with the
    command's last words. It changes nothing; the tries are the checks' own, so the task has none.
    """
    for check in [*checks, *_own_checks()]:
        _check(check)


@step("check connection to update server")
def check_connection() -> None:
    """Reach the update server from the new system: TLS, login, and its signed metadata, as a poll does.

    Tried as often as the source's `connect_tries` say, with its wait between; so the task has no tries. Raises
    HealthCheckFailed: a system that is cut off from updates could not be repaired by one.
    """
    source = device().config.source()
    why = ""
    for attempt in range(source.connect_tries):
        if attempt and device().stop_work.wait(source.connect_wait_seconds):
            stop_if_asked()
        try:
            _reach_server()
        except (TryLater, Refused) as error:
            why = str(error)
            progress.tell("output", "health check", line=f"the update server: {why}")
        else:
            return
    raise HealthCheckFailed(f"the new system does not reach its update server, {source.connect_tries} times: {why}")


def _reach_server() -> None:
    from otaflow.repo.client import open_repository  # only where it is configured: a boot must do without TUF

    here = device()
    lock = DeviceLock(here.nvm / "asking.lock")  # a poll may be at it
    lock.acquire(PATIENCE)
    try:
        with open_repository(here.config, here.config.update.use) as repository:
            repository.connect()
            repository.check_certificate()
            repository.authenticate()
            repository.refresh()
    finally:
        lock.release()


def _own_checks() -> list[dict[str, Any]]:
    health = device().config.health
    return [
        {
            "name": " ".join(command),
            "command": command,
            "timeout_seconds": health.timeout_seconds,
            "tries": health.tries,
            "wait_seconds": health.wait_seconds,
        }
        for command in health.commands
    ]


def _check(check: dict[str, Any]) -> None:
    why = ""
    for attempt in range(check["tries"]):
        if attempt and device().stop_work.wait(check["wait_seconds"]):
            stop_if_asked()
        try:
            _run(check["command"], check["timeout_seconds"], check.get("application", ""))
        except CommandFailed as error:
            said = error.output.strip().splitlines()[-KEPT_LINES:] or [str(error)]
            why = said[-1]
            for line in said:
                progress.tell("output", "health check", line=f"{check['name']}: {line}")
        else:
            progress.tell("output", "health check", line=f"{check['name']}: passed")
            return
    raise HealthCheckFailed(f"the health check {check['name']!r} failed {check['tries']} times: {why}")


def _run(command: list[str], timeout: float, application: str) -> None:
    here = device()
    slot = here.slots.path(here.boot.running())
    tree = here.applications.path(application) if application else slot
    own = tree / command[0]
    program = str(own) if not Path(command[0]).is_absolute() and own.is_file() else command[0]
    environment = {"OTAFLOW_SLOT": str(slot), "OTAFLOW_ETC": str(here.configuration)}
    if application:
        environment |= {"OTAFLOW_APPLICATION": str(tree), "OTAFLOW_DATA": str(here.applications.data(application))}
    cancelled = here.stop_work.is_set
    run([program, *command[1:]], timeout=timeout, cwd=tree, env=environment, cancelled=cancelled)
