"""The deployed flow `send diagnostics`: report to the maker now, as `otaflow diagnostics send` does."""

from pathlib import Path

from prefect import flow

from otaflow import diagnostics, work
from otaflow.deployments.cut_off import close_cut_off_beside


@flow(name="send diagnostics", persist_result=False)
def send_diagnostics(config: str | None = None, source: str | None = None) -> str:
    """Make a report and send what waits, if the user agreed to that; returns what became of it.

    `config` is the device's configuration file, `source` one of its sources.
    """
    close_cut_off_beside()
    device = work.load_device(Path(config) if config else None, source)
    return diagnostics.send(device, device.config.update.use, always=True)
