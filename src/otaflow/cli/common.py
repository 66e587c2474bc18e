"""What the device's commands share: the parameters, the work made visible on the terminal, the output."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from otaflow import work
from otaflow.platform.device import Device
from otaflow.work import load_device as load_device

if TYPE_CHECKING:
    from otaflow.flows.session import PrefectRuns
    from otaflow.service import Ucm

ConfigFile = Annotated[
    Path | None, Parameter(name=["--config", "-c"], help="The device's configuration file.", show_default=False)
]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON, for programs.")]
Accept = Annotated[
    bool,
    Parameter(
        name="--accept-irreversible", negative=(), help="Agree to migrations of data that cannot be brought back."
    ),
]
Source = Annotated[str | None, Parameter(name="--source", help="A source of the configuration, instead of its `use`.")]


@contextmanager
def working(device: Device, *, prefect: bool = True, view: bool = True) -> Iterator[tuple["Ucm", "PrefectRuns | None"]]:
    """As `otaflow.work.working`, with each step shown on stderr unless `view` is false. Raises Locked."""
    with showing(view), work.working(device, prefect=prefect) as at_work:
        yield at_work


def print_json(value: Any) -> None:
    """`value` as JSON on stdout."""
    print(json.dumps(value, indent=2, default=str))


@contextmanager
def showing(view: bool) -> Iterator[None]:
    """The work shown on stderr inside the block, unless `view` is false."""
    from otaflow.cli.view import View

    with View() if view else nullcontext():
        yield
