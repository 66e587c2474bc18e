"""A device that is operated through Prefect: `otaflow up` on btrfs, its schedule, the user's form, the way back."""

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from up_rig import Up, operated

pytestmark = pytest.mark.btrfs


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with operated(tmp_path / "site", ["1.1.0"], minutes=0.2) as up:
        yield up


def pid_in(record: Path) -> int | None:
    """The process that the record names; None while it is not there, or only half of it."""
    try:
        return int(json.loads(record.read_text())["pid"])
    except (OSError, ValueError):
        return None


def test_a_device_that_is_operated_through_prefect(up: Up) -> None:
    # the poll at the start finds an update, and waits for the user without a process
    waiting = up.wait_for_run("check", "Suspended")
    # a schedule that fires is seen firing; what waits is not announced twice
    scheduled = up.wait(
        lambda: [r for r in up.runs("check") if r["auto_scheduled"] and r["state_type"] == "COMPLETED"], "it polls"
    )
    assert {run["state_name"] for run in scheduled} == {"Waiting for the user"}
    inbox = (up.device.nvm / "policy" / "inbox").read_text()
    assert inbox.count('"kind":"available"') == 1
    # nobody without the login gets in
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{up.port}/api/flow_runs/count", data=b"{}", timeout=30)
    # the power goes; in a new process the run is resumed with the form's input
    up.stop(signal.SIGKILL)
    up.start()
    answer = {"run_input": {"when": "now", "by": "the test"}}
    up.wait(lambda: up.ask(f"flow_runs/{waiting['id']}/resume", answer), "it is resumed")
    ended = up.wait(
        lambda: [r for r in up.runs("check", id={"any_": [waiting["id"]]}) if r["state_type"] == "COMPLETED"], "it ends"
    )
    assert ended[0]["state_name"] == "Installed"
    assert up.device.running_system().version == "1.1.0"
    mine = {"artifacts": {"flow_run_id": {"any_": [waiting["id"]]}}}
    kinds = {one["key"] for one in up.wait(lambda: up.ask("artifacts/filter", mine), "it answers")}
    assert {"slots-demo", "report-demo"} <= kinds
    # the way back, by hand
    back = up.start_run("roll back", way="previous slot")
    up.wait(lambda: (up.ask(f"flow_runs/{back}") or {}).get("state_type") == "COMPLETED", "it goes back")
    assert up.device.running_system().version == "1.0.0"
    assert (up.device.slots.path(up.device.boot.running()) / "share" / "words").read_text() == "hello\n"
    # what a person went back from does not come again with the next poll
    up.wait(lambda: [r for r in up.runs("check") if r["state_name"] == "Not now"], "the next poll leaves it alone")
    # Prefect's server dies: it is started again, with all it knew
    record = up.device.nvm / "prefect" / "server.json"
    first = up.wait(lambda: pid_in(record), "its process is known")
    os.kill(first, signal.SIGKILL)
    up.wait(lambda: pid_in(record) not in (None, first) and up.ask("health"), "the server is back")
    # a report
    report = up.start_run("report")
    up.wait(lambda: (up.ask(f"flow_runs/{report}") or {}).get("state_type") == "COMPLETED", "it reports")
