"""The deployed flow `application`: install, update or remove one, as `otaflow app` does."""

from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from otaflow import through, work
from otaflow.asked import Asked
from otaflow.deployments import runs
from otaflow.deployments.cut_off import close_cut_off_beside


@flow(name="application", persist_result=False)
def application(
    what: Literal["install", "update", "remove"],
    name: Annotated[str, Field(description="The application's name.")],
    version: Annotated[str, Field(description="Up to this version; empty: the highest.")] = "",
    accept_irreversible: Annotated[
        bool, Field(description="Agree to migrations of data that cannot be brought back.")
    ] = False,
    config: str | None = None,
) -> list[str]:
    """Install an application from the repository, update it, or remove it; returns what was installed.

    Its data stays when it is removed. What fails is taken back, and the run fails. Where an agent runs, it does the
    work.
    """
    close_cut_off_beside()
    device = work.load_device(Path(config) if config else None)
    asked = Asked(name=name, version=version, anew=what == "install", accepts=accept_irreversible)
    before = runs.describe(device)
    installed: list[str] = []
    if agent := through.find_agent(device):
        with agent:
            if what == "remove":
                through.remove(agent, device, name)
            else:
                installed = list(through.install_new(agent, device, asked))
    else:
        with work.working(device) as (ucm, _):
            if error := work.go_on(ucm):
                raise error
            if what == "remove":
                work.remove(ucm, name)
            else:
                installed = list(work.install_new(ucm, asked))
    runs.report(device, before, "Application")
    return installed
