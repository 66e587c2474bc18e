"""What a command or a deployed flow does with a device: open it, put it in order, and have the UCM work on it.

The command line and `deployments/` both end here, so that a button in Prefect's UI and a typed command do the same.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otaflow import config as configuration
from otaflow import history, progress
from otaflow.action import Action
from otaflow.actions import Way, find_installation, find_removal, find_uninstallation, find_way_back
from otaflow.asked import EVERYTHING, Asked, find_packages
from otaflow.embedded import use_embedded
from otaflow.errors import (
    ConfigError,
    HealthCheckFailed,
    Offline,
    OperationNotPermitted,
    OtaflowError,
)
from otaflow.platform.device import Device, using

if TYPE_CHECKING:
    from otaflow.flows.session import PrefectRuns
    from otaflow.repo.choice import Target
    from otaflow.service import Ucm


log = logging.getLogger("otaflow")

LOG_BYTES = 4 * 1024 * 1024
"""A processing log of this size takes no more output of programs."""


def load_device(config: Path | None, source: str | None = None) -> Device:
    """The device of the configuration; `source` takes the place of `update.use`. Raises ConfigError."""
    values = configuration.load(config)
    if source:
        values.source(source)
        values = values.model_copy(update={"update": values.update.model_copy(update={"use": source})})
    device = Device(values)
    if not device.nvm.is_dir() or (values.boot.kind == "index-file" and not device.boot_file.exists()):
        raise ConfigError(
            f"cannot use the device in {device.root}: it is not there",
            hint="`otaflow device init` makes a device from its configuration",
        )
    return device


@contextmanager
def working(device: Device, *, prefect: bool = True) -> Iterator[tuple["Ucm", "PrefectRuns | None"]]:
    """The device locked, in order, and visible in Prefect. Raises Locked.

    What an earlier command left unfinished is finished or taken back first.
    """
    from otaflow.recovery import recover
    from otaflow.service import Ucm
    from otaflow.trial import count_boot, must_recover, put_target_right

    with using(device), device.lock, progress.listening(ProcessingLog(device)):
        count_boot(device)
        put_target_right(device)
        if prefect and must_recover(device):
            recover(Ucm(device), verifies=False)
        runs = _connect_or_go_without(device) if prefect else None
        try:
            yield Ucm(device, runs), runs
        finally:
            if runs:
                runs.close()


def go_on(ucm: "Ucm") -> HealthCheckFailed | None:
    """Carry on what a restart interrupted, before anything new begins; returns why it was rolled back, if it was."""
    if ucm.state != "Idle":
        if not ucm.journal.session.unattended:
            raise OperationNotPermitted(
                f"cannot begin: a client's session is {ucm.state}",
                hint="start `otaflow agent` and end the session: `otaflow ucm finish`, `rollback` or `revert-…`",
            )
        try:
            ucm.go_on()
        except HealthCheckFailed as error:
            return error
    return None


def find_new(ucm: "Ucm") -> list["Target"]:
    """What the device's source has that the device has not. Nothing is installed."""
    from otaflow.flows.check import check

    targets: list[Target] = ucm.run(check, {"source": ucm.device.config.update.use})
    return targets


def install_new(ucm: "Ucm", asked: Asked = EVERYTHING) -> Iterator[str]:
    """Install what is asked for, one package after the other; yields each version as it is in place.

    An application's version has its name before it.
    """
    from otaflow.tasks.repository import named

    def run(phase: Any, parameters: dict[str, Any], name: str, version: str = "") -> Any:
        with recorded(ucm.device, name, version):
            return ucm.run(phase, parameters)

    for target, package in find_packages(ucm.device, asked, run):
        ucm.install(action_of(ucm.device, target, package, accepted=asked.accepts))
        yield named(target)


def uninstall(ucm: "Ucm", file: Path) -> str:
    """Take back what the package `file` installed, which runs now; returns the version that runs then."""
    from otaflow.flows.check import accept_file

    source = ucm.device.config.update.use
    with recorded(ucm.device, file.name):
        target, package = ucm.run(accept_file, {"source": source, "package": str(file.absolute())})
    action = find_uninstallation(ucm.device, target.name, target.version, package, source)
    ucm.install(action)
    return action.version


def remove(ucm: "Ucm", name: str) -> None:
    """Remove the application `name`; its data stays. Raises NothingToRevert where there is none."""
    ucm.install(find_removal(ucm.device, name))


def go_back(ucm: "Ucm", to: Way, backup: str | None = None) -> None:
    """Go back to the previous slot, to a snapshot of the main partition, or to a backup. Raises NothingToRollback."""
    if ucm.state in ("Verifying", "Activated") and to == "previous-slot":
        ucm.rollback()
        ucm.finish()
        return
    ucm.install(find_way_back(ucm.device, to, backup))


def end_backups(ucm: "Ucm") -> list[str]:
    """Remove the full backups and snapshots whose time is over; returns the ids of their entries."""
    from otaflow.flows.retention import retention

    removed: list[str] = ucm.run(retention, {})
    return removed


def _connect_or_go_without(device: Device) -> "PrefectRuns | None":
    """Prefect's side, or None where its embedded server does not come up in time: what happens is told later."""
    try:
        return connect_prefect(device)
    except RuntimeError as error:
        log.warning("goes on without Prefect: %s", error)
        return None


def connect_prefect(device: Device) -> "PrefectRuns":
    """Prefect's side of the device, brought up to date."""
    prepare_prefect(device)
    from otaflow.flows.session import PrefectRuns

    runs = PrefectRuns(device)
    runs.catch_up()
    return runs


def prepare_prefect(device: Device) -> None:
    """The device's own server where `otaflow up` runs it; and settings that hold unless the user set them.

    They are: no telemetry from a device, no log lines between our own.

    A failure is told once, by us; with its trace it is in the run's logs on the server.
    """
    use_embedded(device)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # A server that died is asked for half a minute, not for a whole one, at each of the calls that a phase makes.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "4")
    if "PREFECT_LOGGING_LEVEL" not in os.environ:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


@contextmanager
def recorded(device: Device, name: str, version: str = "", *, of: type[OtaflowError] = OtaflowError) -> Iterator[None]:
    """Put what is refused before a session begins into the history. To be offline is no event of a device's life."""
    try:
        yield
    except Offline:
        raise
    except of as error:
        device.history.add(
            name=name,
            version=version or "unknown",
            action="Update",
            resolution=history.FAILED,
            error=type(error).__name__,
            why=str(error),
        )
        raise


class ProcessingLog:
    """Writes what happens into `nvm/logs/<session>.log`, program output included (UCM design, data flow)."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def __call__(self, event: progress.Event) -> None:
        if event.kind == "bytes":
            return
        session = self.device.journal.session.id or "device"
        hidden = ("processed", "action", "step")
        facts = " ".join(f"{key}={value}" for key, value in event.facts.items() if key not in hidden)
        from otaflow.journal import now

        with (self.device.logs / f"{session}.log").open("a") as file:
            if event.kind == "output" and file.tell() > LOG_BYTES:  # what a program says has an end, states have none
                return
            file.write(f"{now()} {event.kind:7} {event.name} {facts}".rstrip() + "\n")


def action_of(device: Device, target: "Target", package: str, *, accepted: bool = False) -> Action:
    """What the UCM is asked to do with the package file of `target`.

    `accepted`: the user agreed to a migration of data that cannot be brought back.
    """
    source = device.config.update.use
    return find_installation(
        device, target.kind, target.name, target.version, target.update_number, package, source, accepted=accepted
    )
