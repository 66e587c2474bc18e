"""The deployed flow `install a file`: a package or a local repository package that lies on the device."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import Field

from otaflow import through, work
from otaflow.asked import Asked
from otaflow.deployments import runs
from otaflow.deployments.cut_off import close_cut_off_beside
from otaflow.errors import Restarting


@flow(name="install a file", persist_result=False)
def install(
    file: Annotated[
        str, Field(description="A package (.nsu, .nua) or a local repository package (.nsr) on the device.")
    ],
    accept_irreversible: Annotated[
        bool, Field(description="Agree to migrations of data that cannot be brought back.")
    ] = False,
    config: str | None = None,
) -> list[str]:
    """Install `file`, if a repository that the device trusts signs it; returns the versions that are in place.

    Of an application, what must be installed before it is fetched from the repository. An update that does not prove
    itself healthy is taken back, and the run fails.
    """
    close_cut_off_beside()
    device = work.load_device(Path(config) if config else None)
    before = runs.describe(device)
    asked = Asked(file=Path(file), accepts=accept_irreversible)
    installed: list[str] = []
    if agent := through.find_agent(device):
        with agent:
            installed = list(through.install_new(agent, device, asked))
    else:
        with work.working(device) as (ucm, _):
            try:
                work.go_on(ucm)
                installed.extend(work.install_new(ucm, asked))
            except Restarting:
                return installed
    runs.report(device, before)
    return installed
