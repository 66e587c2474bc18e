"""What the device's commands share: the parameters, the opened device, the connection to Prefect, the output."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from otaflow import config as configuration
from otaflow import progress
from otaflow.errors import ConfigError
from otaflow.platform.device import Device, using

if TYPE_CHECKING:
    from otaflow.flows.session import PrefectRuns
    from otaflow.service import Ucm

ConfigFile = Annotated[
    Path | None, Parameter(name=["--config", "-c"], help="The device's configuration file.", show_default=False)
]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON, for programs.")]
Source = Annotated[str | None, Parameter(name="--source", help="A source of the configuration, instead of its `use`.")]


def load_device(config: Path | None, source: str | None = None) -> Device:
    """The device of the configuration; `source` takes the place of `update.use`. Raises ConfigError."""
    values = configuration.load(config)
    if source:
        values.source(source)
        values = values.model_copy(update={"update": values.update.model_copy(update={"use": source})})
    device = Device(values)
    if not device.nvm.is_dir():
        raise ConfigError(
            f"cannot use the device in {device.root}: it is not there",
            hint="`otaflow device init` makes a device from its configuration",
        )
    return device


@contextmanager
def working(device: Device, *, prefect: bool = True, view: bool = True) -> Iterator[tuple["Ucm", "PrefectRuns | None"]]:
    """The device locked, in order, and visible: what a command works with. Raises Locked.

    What an earlier command left unfinished is finished or taken back first.
    """
    from otaflow.service import Ucm

    with using(device), device.lock, _showing(view), progress.listening(ProcessingLog(device)):
        device.boots.note_boot()
        if prefect and Ucm(device).needs_recovery():
            Ucm(device).recover(verifies=False)
        runs = connect_prefect(device) if prefect else None
        try:
            yield Ucm(device, runs), runs
        finally:
            if runs:
                runs.close()


def connect_prefect(device: Device) -> "PrefectRuns":
    """Prefect's side of the device, brought up to date."""
    prepare_prefect()
    from otaflow.flows.session import PrefectRuns

    runs = PrefectRuns(device)
    runs.catch_up()
    return runs


def prepare_prefect() -> None:
    """Settings that hold unless the user set them: no telemetry from a device, no log lines between our own.

    A failure is told once, by us; with its trace it is in the run's logs on the server.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if "PREFECT_LOGGING_LEVEL" not in os.environ:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


class ProcessingLog:
    """Writes what happens into `nvm/logs/<session>.log`, program output included (UCM design, data flow)."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def __call__(self, event: progress.Event) -> None:
        if event.kind == "bytes":
            return
        session = self.device.journal.session.id or "device"
        facts = " ".join(f"{key}={value}" for key, value in event.facts.items() if key not in ("processed", "step"))
        from otaflow.journal import now

        with (self.device.logs / f"{session}.log").open("a") as file:
            file.write(f"{now()} {event.kind:7} {event.name} {facts}".rstrip() + "\n")


def print_json(value: Any) -> None:
    """`value` as JSON on stdout."""
    print(json.dumps(value, indent=2, default=str))


@contextmanager
def _showing(view: bool) -> Iterator[None]:
    from otaflow.cli.view import View

    with View() if view else nullcontext():
        yield
