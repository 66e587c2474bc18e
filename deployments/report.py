"""The deployed flow `report`: the device's state, its slots and its history as artifacts of the run."""

from pathlib import Path

from prefect import flow

from otaflow import work
from otaflow.deployments import runs


@flow(name="report", persist_result=False)
async def report(config: str | None = None) -> str:
    """Leave a report on the run; returns it. Nothing is changed."""
    device = work.load_device(Path(config) if config else None)
    runs.report(device, runs.describe(device), "Report")
    return runs.write_report(device, "Report")
