"""The deployed flow `report`: the device's state, its slots and its history as artifacts of the run."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import Failed

from otaflow import work
from otaflow.deployments import runs
from otaflow.deployments.cut_off import close_cut_off_beside
from otaflow.policy import notices


@flow(name="report", persist_result=False)
async def report(config: str | None = None, alarm: str = "", tell: bool = False) -> Any:
    """Leave a report on the run; returns it. Nothing is changed.

    With `alarm`, what is the matter, the run ends as a failed one of that message; `tell` sends that to people, too.
    The automations of `otaflow up` do so.
    """
    close_cut_off_beside()
    device = work.load_device(Path(config) if config else None)
    runs.report(device, runs.describe(device), "Alarm" if alarm else "Report")
    if not alarm:
        return runs.write_report(device, "Report")
    if tell:
        notices.send([alarm], device.config.notices.urls, timeout=device.config.notices.timeout_seconds)
    return Failed(name="Alarm", message=alarm)
