"""`otaflow poll`: one poll of the update policy, for a timer without Prefect's schedules."""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from otaflow.cli.common import ConfigFile, Json, Source, load_device, print_json
from otaflow.due import find_due, wait_of_timer
from otaflow.platform.device import Device
from otaflow.work import prepare_prefect

IfDue = Annotated[bool, Parameter(name="--if-due", negative=(), help="Only if a poll is due; for a timer.")]


def poll(*, config: ConfigFile = None, source: Source = None, if_due: IfDue = False, json: Json = False) -> None:
    """Look for updates, tell the user, and install what may be installed; see `otaflow consent` for the answer.

    What a timer starts: unlike `otaflow update`, which installs what is new because somebody says so, it asks first
    (`policy.ask`), keeps to the maintenance windows, and leaves alone for a while what failed. While the Prefect server
    that PREFECT_API_URL names is away, it does the same without it.

    With --if-due it polls only when the last poll is older than `poll.interval_minutes`, or an update on offer may be
    installed now: its maintenance window has opened, say, or the device was restarted. Else it ends at once.
    """
    if if_due and not _is_due(load_device(config, source), json=json):
        return
    print_end(run_poll(load_device(config, source), config, source), json=json)


def _is_due(device: Device, *, json: bool) -> bool:
    """Whether a poll is due; it says so."""
    why = find_due(device, datetime.now(UTC), wait_of_timer(device.config.poll))
    if json and not why:
        print_json({"end": "Not due", "message": "no poll is due", "failed": False})
    elif not json:
        print(f"a poll is due: {why}" if why else "no poll is due", flush=True)
    return bool(why)


def print_end(state: Any, *, json: bool) -> None:
    """Say how the poll ended; one that failed ends the command with 1."""
    if json:
        print_json({"end": state.name, "message": state.message, "failed": state.is_failed()})
    else:
        print(f"{state.name}: {state.message}" if state.message != state.name else state.name)
    if not state.is_completed():
        sys.exit(1)


def run_poll(device: Device, config: Path | None, source: str | None, application: str = "") -> Any:
    """The state in which the poll ended: as a run, or without one where Prefect's API is away or goes away.

    With `application` only its updates are installed.
    """
    prepare_prefect(device)
    from otaflow.deployments.check import check, poll_alone
    from otaflow.flows.clients import is_api_trouble, is_away

    if is_away():
        return poll_alone(device, application)
    file = str(config.absolute()) if config else None
    run: Any = check(config=file, source=source, application=application, return_state=True)
    try:
        return asyncio.run(run)
    except Exception as error:
        if not is_api_trouble(error):
            raise
        return poll_alone(device, application)
