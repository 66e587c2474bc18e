"""The deployed flow `update`: poll the repository and install what is new, as `otaflow update` does."""

from pathlib import Path

from prefect import flow

from otaflow import through, work
from otaflow.asked import Asked
from otaflow.deployments.cut_off import close_cut_off_beside
from otaflow.errors import Restarting


@flow(name="update", persist_result=False)
def update(config: str | None = None, source: str | None = None, accept_irreversible: bool = False) -> list[str]:
    """Install what is new, one update after the other; returns the versions that are in place.

    `config` is the device's configuration file, `source` one of its sources; `accept_irreversible` agrees to migrations
    of data that cannot be brought back. An update that does not prove itself healthy is taken back, and the run fails.
    Where an agent runs, it does the work. A restart ends the run; `otaflow resume` goes on after it.
    """
    close_cut_off_beside()
    device = work.load_device(Path(config) if config else None, source)
    asked = Asked(accepts=accept_irreversible)
    if agent := through.find_agent(device):
        with agent:
            return list(through.install_new(agent, device, asked))
    installed: list[str] = []
    with work.working(device) as (ucm, _):
        try:
            work.go_on(ucm)
            for version in work.install_new(ucm, asked):
                installed.append(version)
        except Restarting:
            return installed
    return installed
