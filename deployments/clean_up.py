"""The deployed flow `clean up`: end the backups whose time is over, as `otaflow clean-up` does."""

from pathlib import Path

from prefect import flow

from otaflow import through, work
from otaflow.deployments.cut_off import close_cut_off_beside


@flow(name="clean up backups", persist_result=False)
def clean_up(config: str | None = None) -> list[str]:
    """Remove the full backups and main snapshots whose time is over; returns the ids of their entries.

    Where an agent runs, it does the work.
    """
    close_cut_off_beside()
    device = work.load_device(Path(config) if config else None)
    if agent := through.find_agent(device):
        with agent:
            return agent.clean_up()
    with work.working(device) as (ucm, _):
        return work.end_backups(ucm)
