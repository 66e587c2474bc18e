"""Devices on a central Prefect server with PostgreSQL: a work queue and a process worker for each; the server goes."""

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from central import Central, Served, postgres
from postgres import find_programs

from otaflow.cli.demo_site import Site
from otaflow.deployments.cut_off import find_executed


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Central]:
    """The server, with the work pool of prefect.yaml."""
    if find_programs() is None:
        message = "PostgreSQL is not installed"
        if os.environ.get("OTAFLOW_REQUIRE") == "1":
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("central")
    with postgres(folder) as url:
        central = Central(folder, url)
        try:
            central.start()
            central.call("work-pool", "create", "otaflow", "--type", "process")
            yield central
        finally:
            central.stop()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The repository of all devices, with 1.1.0."""
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        site.make_repository(["1.1.0"])
        site.wait_for("repository", site.start_repository())
        yield site
    finally:
        site.remove()


@pytest.fixture(scope="module")
def one(central: Central, repository: Site) -> Iterator[Served]:
    yield from serve(Served(central, "device-1", repository))


@pytest.fixture(scope="module")
def two(central: Central, repository: Site) -> Iterator[Served]:
    yield from serve(Served(central, "device-2", repository))


def serve(device: Served) -> Iterator[Served]:
    try:
        device.make()
        device.start_agent()
        yield device
    finally:
        device.stop()


def test_every_deployment_of_a_device(one: Served) -> None:
    """`prefect deploy --all` has made them, each for one run at a time."""
    found = {
        deployment["entrypoint"].rpartition(":")[0]: deployment
        for deployment in one.central.ask("deployments/filter", {"deployments": {"name": {"any_": [one.name]}}})
    }
    flows = ("check", "update", "install", "application", "rollback", "clean_up", "diagnostics", "report")
    assert set(found) == {f"deployments/{flow}.py" for flow in flows}
    for deployment in found.values():
        assert deployment["work_queue_name"] == one.name
        assert deployment["parameters"]["config"] == "/etc/otaflow.toml"
        assert deployment["global_concurrency_limit"]["limit"] == 1
    scheduled = {flow for flow, deployment in found.items() if deployment["schedules"]}
    assert scheduled == {"deployments/check.py", "deployments/clean_up.py"}


def test_a_poll_is_answered_and_the_update_rolled_back(one: Served) -> None:
    """It waits without a process and without a slot; resumed, it installs in another process, through the agent."""
    one.start_worker()
    poll = one.start_run("check")
    one.wait_for(poll, "Suspended")
    one.central.wait(lambda: not one.processes(poll), "its process is gone")
    # the slot is free: the next poll does not wait for the one that waits, and closes one that the power cut off
    lost = one.start_run("check", {"type": "RUNNING", "name": "Running"})
    next_poll = one.start_run("check")
    one.wait_for(next_poll, "Waiting for the user")
    one.wait_for(lost, "Crashed")
    one.central.ask(f"flow_runs/{poll}/resume", {"run_input": {"when": "now", "by": "the test"}})
    one.wait_for(poll, "Installed")
    assert one.version == "1.1.0"
    assert one.states(poll).count("Running") == 2
    one.central.wait(lambda: one.sessions() == ["COMPLETED"], "the session's run is there")
    back = one.start_run("roll back", way="previous slot")
    one.wait_for(back, "Completed")
    assert one.version == "1.0.0"
    again = one.start_run("check")
    one.wait_for(again, "Not now")


def test_a_schedules_poll_begins_at_a_moment_of_its_own(one: Served) -> None:
    """Its process ends until then. Of two that are due after a time without a worker, the last one polls."""
    one.worker.stop()
    deployment = one.deployment("check")
    parameters = {"config": str(one.site.config), "jitter_minutes": 0.05}
    one.central.ask(f"deployments/{deployment['id']}", {"parameters": parameters}, "PATCH")
    path = f"deployments/{deployment['id']}/schedules"
    for seconds in (60, 61):  # a scheduler that comes later than that makes runs for five minutes later only
        anchor = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        one.central.ask(path, [{"schedule": {"interval": 300, "anchor_date": anchor}, "active": True}])

    def runs(*states: str) -> list[dict[str, Any]]:
        query = {"deployment_id": {"any_": [deployment["id"]]}, "state": {"type": {"any_": states}}}
        found = one.central.ask("flow_runs/filter", {"flow_runs": query}) or []
        return [run for run in found if run["auto_scheduled"]]

    def due() -> list[dict[str, Any]]:
        now = datetime.now(UTC)
        return [run for run in runs("SCHEDULED") if datetime.fromisoformat(run["expected_start_time"]) < now]

    one.central.wait(lambda: len(due()) == 2, "two polls are due")
    one.start_worker()
    [first, *_] = one.central.wait(lambda: runs("CANCELLED"), "one of them ends")
    assert "the next one was due" in first["state"]["message"]
    [last, *_] = one.central.wait(
        lambda: [run for run in runs("COMPLETED", "PAUSED") if run["run_count"] == 2], "the other one polls"
    )
    assert last["expected_start_time"] > first["expected_start_time"]
    assert one.states(last["id"]).count("Scheduled") == 2
    for schedule in one.central.ask(path):
        one.central.ask(f"{path}/{schedule['id']}", {"active": False}, "PATCH")


def test_the_same_button_twice(one: Served) -> None:
    """It is pressed once; what is a thing of its own waits. No schedule makes a third run of it meanwhile."""
    one.worker.stop()
    once = [one.start_run("send diagnostics") for _ in range(2)]
    waits = [one.start_run("report") for _ in range(2)]
    one.start_worker()
    assert sorted(one.wait_for(run, "Completed", "Cancelled")["name"] for run in once) == ["Cancelled", "Completed"]
    assert [one.wait_for(run, "Completed")["name"] for run in waits] == ["Completed", "Completed"]


def test_runs_that_were_cut_off(one: Served) -> None:
    """The power goes while the worker executes them: they are closed, and hold no slot any more."""
    one.start_worker()
    assert one.agent.process is not None
    one.agent.process.send_signal(signal.SIGSTOP)  # they wait for its answer
    lost = [one.start_run("roll back", way="previous slot"), one.start_run("install a file", file="none.nsu")]
    for run in lost:
        one.wait_for(run, "Running")
    executing = [process for run in lost for process in one.processes(run)]
    assert find_executed([UUID(run) for run in lost]) == {UUID(run) for run in lost}
    one.worker.stop(signal.SIGKILL)
    for process in executing:
        os.kill(process, signal.SIGKILL)
    one.agent.process.send_signal(signal.SIGCONT)
    one.start_worker()
    one.wait_for(one.start_run("report"), "Completed")
    assert [one.state(run)["name"] for run in lost] == ["Crashed", "Crashed"]
    # a rollback is no second press of that one's button
    one.wait_for(one.start_run("roll back", way="backup", backup="none"), "Failed")


def test_the_agent_closes_what_was_cut_off_when_it_starts(one: Served) -> None:
    one.worker.stop()
    lost = one.start_run("roll back", {"type": "RUNNING", "name": "Running"})
    due = one.start_run("report", {"type": "PENDING", "name": "Pending"})  # a worker may have just taken it
    one.agent.stop()
    one.start_agent()
    one.wait_for(lost, "Crashed")
    assert one.state(due)["name"] == "Pending"
    one.start_worker()
    one.wait_for(one.start_run("report"), "Completed")
    assert one.state(due)["name"] == "Crashed"


def test_a_devices_runs_are_its_own(one: Served, two: Served) -> None:
    """The worker of one device leaves the runs of another one alone."""
    others = two.start_run("report")
    own = one.start_run("report")
    one.start_worker()
    one.wait_for(own, "Completed")
    assert two.state(others)["type"] == "SCHEDULED"
    two.start_worker()
    two.wait_for(others, "Completed")
    two.central.wait(lambda: others in two.worker.log.read_text(), "the worker's log names the run")
    assert others not in one.worker.log.read_text()


def test_the_server_is_away(two: Served) -> None:
    """The device updates itself, asks and obeys; when the server is back it shows what was done, and works again."""
    two.start_worker()
    two.central.stop()
    assert two.command("poll").startswith("Waiting for the user")
    two.command("consent", "now")
    assert two.command("poll").startswith("Installed")
    assert two.version == "1.1.0"
    assert two.command("poll").strip() == "Up to date"
    two.central.start()
    two.central.wait(lambda: two.sessions() == ["COMPLETED"], "the session's run is there")
    report = two.start_run("report")
    two.wait_for(report, "Completed")
