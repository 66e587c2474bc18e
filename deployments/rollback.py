"""The deployed flow `roll back`: one of the three ways back, as `otaflow rollback` does."""

from pathlib import Path
from typing import Literal

from prefect import flow

from otaflow import actions, through, work
from otaflow.deployments.cut_off import close_cut_off_beside
from otaflow.errors import Restarting

Way = Literal["previous slot", "snapshot", "backup"]
WAYS: dict[Way, actions.Way] = {"previous slot": "previous-slot", "snapshot": "snapshot", "backup": "backup"}


@flow(name="roll back", persist_result=False)
def rollback(way: Way = "previous slot", backup: str | None = None, config: str | None = None) -> str:
    """Go back to the previous slot, to a snapshot of the main partition, or to a backup; returns what runs then.

    `backup` names the entry (`otaflow backups` lists them): needed for `backup`, the newest for `snapshot` without it.
    What is gone back to must prove itself healthy too, else the present system stays and the run fails. Where an
    agent runs, it does the work.
    """
    if way == "backup" and not backup:
        raise ValueError("cannot restore a backup: `backup` does not say which one")
    if way == "previous slot" and backup:
        raise ValueError("cannot go back to the previous slot and to a backup: leave `backup` empty")
    close_cut_off_beside()
    device = work.load_device(Path(config) if config else None)
    to = WAYS[way]
    if agent := through.find_agent(device):
        with agent:
            through.go_back(agent, device, to, backup)
        return device.running_system().version
    with work.working(device) as (ucm, _):
        try:
            work.go_back(ucm, to, backup)
        except Restarting:
            return "restarting"
        return device.running_system().version
