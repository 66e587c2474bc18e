"""An application asks for its updates where Prefect is there: the search is a run of the device's deployment."""

import threading
import time
from pathlib import Path

import pytest
from poll_rig import Site
from prefect.client.orchestration import get_client
from tiny_apps import MORE, build_app, install_app

from otaflow.agent.requests import look_for_updates
from otaflow.agent.runner import Deployed, Runner
from otaflow.deployments.check import check
from otaflow.flows.searching import begin_search

SECONDS = 120.0


@pytest.fixture
def kind() -> str:
    """Directories: which storage it is makes no difference here."""
    return "directories"


@pytest.fixture
def asking(served: Site, tmp_path: Path) -> Site:
    """An application at 1.0.0 and an update of it, on a device that installs by itself."""
    url = served.world.device().config.source().url
    served.world.configure(MORE)
    install_app(served.world, build_app(tmp_path, "notes", "1.0.0"), "notes", "1.0.0")
    served.publish(build_app(tmp_path, "notes", "1.1.0", "1.0.0"))
    served.configure(str(url), policy=f"ask = false\n{MORE}")
    return served


def test_where_nobody_executes_the_deployment(asking: Site) -> None:
    """The agent polls by itself; it does not leave a run behind that nobody takes."""
    device = asking.world.device()
    assert begin_search(device, "notes") is None
    look_for_updates(device, "notes", threading.Event())
    assert device.applications.versions() == {"notes": "1.1.0"}


def test_the_search_is_a_run(asking: Site) -> None:
    device = asking.world.device()
    deployed = Deployed(check, device.config.device.name, {"config": str(asking.world.config)})
    runner = Runner([deployed], look_seconds=0.1)
    runner.start()
    try:
        end = time.monotonic() + SECONDS
        while not (runner.known and _is_ready(device.config.device.name)):
            assert time.monotonic() < end
            time.sleep(0.05)
        look_for_updates(device, "notes", threading.Event())
    finally:
        runner.stop()
    assert device.applications.versions() == {"notes": "1.1.0"}
    with get_client(sync_client=True) as client:
        [id] = runner.known
        [run] = [one for one in client.read_flow_runs() if one.deployment_id == id]
    assert run.parameters["application"] == "notes"
    assert run.state is not None
    assert (run.state.name, run.state.message) == ("Installed", "installed notes 1.1.0")
    assert "requested-by:notes" in run.tags


def _is_ready(name: str) -> bool:
    with get_client(sync_client=True) as client:
        return str(client.read_deployment_by_name(f"check/{name}").status).endswith("READY")
