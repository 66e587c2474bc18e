"""A person operates a device with the mouse, in Prefect's own UI: the buttons are pressed, and the device obeys."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, browsing
from prefect_page import answer, choose, fill_form, log_in, open_deployment, open_run
from up_rig import Up, operated

from otaflow.client import Client

pytestmark = [
    pytest.mark.btrfs,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs Debian's chromium"),
]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with operated(tmp_path / "site", ["1.1.0"], minutes=480) as up:
        yield up


def words(up: Up) -> str:
    """What the running system says, from its slot."""
    return (up.device.slots.path(up.device.boot.running()) / "share" / "words").read_text()


def test_the_buttons(up: Up, tmp_path: Path) -> None:
    socket = up.device.config.path(up.device.config.api.socket)
    waiting = up.wait_for_run("check", "Suspended")
    with browsing(tmp_path / "browser") as page, Client(socket) as agent:  # a failure leaves browser/failed.png
        log_in(page, up.url, up.login)
        # the poll at the start found an update: Resume, and the form
        open_run(page, waiting)
        answer(page, "a test's browser")
        up.wait_for_run("check", "Installed")
        assert up.device.running_system().version == "1.1.0"
        page.wait_for_text("Installed")

        # the rollback deployment's form
        open_deployment(page, "roll back")
        fill_form(page)
        page.press("Submit")
        up.wait_for_run("roll back", "Completed")
        assert (up.device.running_system().version, words(up)) == ("1.0.0", "hello\n")

        # the session's page: Cancel in Ready gives up what was processed
        id = agent.transfer(up.site.folder / "packages" / "demo-system-1.1.0.nsu")
        agent.process_sw_package(id)
        open_run(page, up.wait_for_run("update session", "Ready"))
        choose(page, "Cancel", "Cancel Flow Run")
        up.wait(lambda: agent.current_status()["status"] == "Idle", "it is given up")
        assert (up.device.running_system().version, words(up)) == ("1.0.0", "hello\n")
        up.wait(lambda: up.runs("update session")[-1]["state_type"] == "CANCELLED", "Prefect shows it")

        # Resume in Ready activates, in Activated finishes
        agent.process_sw_package(id)
        open_run(page, up.wait_for_run("update session", "Ready"))
        choose(page, "Resume", "Resume")
        up.wait(lambda: agent.current_status()["status"] == "Activated", "it is activated")
        assert up.device.running_system().version == "1.1.0"
        up.wait_for_run("update session", "Activated")
        page.wait_for_text("Activated")
        choose(page, "Resume", "Resume")
        up.wait(lambda: agent.current_status()["status"] == "Idle", "it is finished")
        assert agent.get_history()[-1]["resolution"] == "kActivated"
