"""The chart from *need migration* to its ends, through the real flow: what the phases' runs show, each yes and no."""

import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from poll_rig import Site
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from tiny_apps import MORE, build_app, install_app

MIGRATION = [{"database": {"kind": "files", "path": "words"}, "program": ["bin/program"]}]
GOOD = '#!/bin/sh\necho migrated >> "$OTAFLOW_DATA/words/log"\n'
BAD = GOOD + 'echo "no way" >&2\nexit 3\n'
RUNS = "[Service]\nExecStart=/bin/sh -c 'sleep 1000'\nExecReload=/bin/true\n"

NEED, NEEDLESS = ("need migration", "yes"), ("need migration", "no")
KEPT = ("backup migration data", "Completed")
MADE, FAILED = ("post update migration (db)", "Completed"), ("post update migration (db)", "Failed")
STARTED = ("start services", "Completed")
RELOADED, UP, HEALTHY = ("reload services", "Completed"), ("check services", "Completed"), ("check health", "Completed")
CHANGED, UNCHANGED = ("migration changes made", "yes"), ("migration changes made", "no")
REVERTED = ("revert migration data", "Completed")
STOPPED = ("undo: start services", "Completed")
CLOSED, AGAIN = ("close applications", "Completed"), ("start application again", "Completed")
UPDATES = [("undo: replace files", "Completed"), ("undo: stop application", "Completed")]
SERVICE = {"services": {"restart": ["notes.service"], "reload": ["notes.service"]}}


@pytest.fixture
def kind() -> str:
    return "directories"


@pytest.fixture
def installing(site: Site, tmp_path: Path) -> Any:
    """A device with an application at 1.0.0, which asks nobody."""
    more = MORE.replace("[services]", "[services]\nsettle_seconds = 0")
    site.world.configure(more)
    install_app(site.world, build_app(tmp_path, "notes", "1.0.0"), "notes", "1.0.0")
    with site.served() as url:
        site.configure(url, policy=f"ask = false\n{more}")
        yield site
    device = site.world.device()
    device.services.hold("notes.service")
    device.services.stop("notes.service")


def tasks_of(site: Site, flow: str) -> list[tuple[str, str]]:
    """The tasks of the last run of the phase `flow`, in order."""
    records = site.world.device().journal.file.read()
    with get_client(sync_client=True) as client:
        runs = [client.read_flow_run(UUID(record["phase_run"])) for record in records if "phase_run" in record]
        names = {run.id: client.read_flow(run.flow_id).name for run in runs}
        mine = [run.id for run in runs if names[run.id] == flow]
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=mine[-1:])))
    found.sort(key=lambda one: one.start_time or one.created)
    return [(one.name, one.state.name if one.state else "") for one in found]


def shows(site: Site, flow: str, *tasks: tuple[str, str]) -> None:
    """The last run of the phase has these tasks; Prefect records them a bit later."""
    deadline = time.monotonic() + 180
    while (seen := tasks_of(site, flow)) != list(tasks):
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)


def test_with_a_migration_and_services(installing: Site, tmp_path: Path) -> None:
    installing.publish(
        build_app(tmp_path, "notes", "1.1.0", "1.0.0", program=GOOD, unit=RUNS, migrations=MIGRATION, **SERVICE)
    )
    assert installing.poll() == "Installed"
    shows(installing, "verify", NEED, KEPT, MADE, STARTED, RELOADED, UP, HEALTHY)


def test_without_a_migration(installing: Site, tmp_path: Path) -> None:
    installing.publish(build_app(tmp_path, "notes", "1.1.0", "1.0.0"))
    assert installing.poll() == "Installed"
    shows(installing, "verify", NEEDLESS, HEALTHY)


def test_a_migration_that_fails_is_reverted_and_then_the_updates(installing: Site, tmp_path: Path) -> None:
    installing.publish(
        build_app(tmp_path, "notes", "1.1.0", "1.0.0", program=BAD, unit=RUNS, migrations=MIGRATION, **SERVICE)
    )
    assert installing.poll() == "Rolled back"
    shows(installing, "verify", NEED, KEPT, FAILED)
    shows(installing, "roll back", CLOSED, CHANGED, REVERTED, *UPDATES, AGAIN)


def test_a_reload_that_fails_reverts_the_migration_that_was_made(installing: Site, tmp_path: Path) -> None:
    installing.publish(
        build_app(
            tmp_path,
            "notes",
            "1.1.0",
            "1.0.0",
            program=GOOD,
            unit=RUNS.replace("/bin/true", "/bin/false"),
            migrations=MIGRATION,
            **SERVICE,
        )
    )
    assert installing.poll() == "Rolled back"
    shows(installing, "verify", NEED, KEPT, MADE, STARTED, ("reload services", "Failed"))
    reloaded = ("undo: reload services", "Completed")
    shows(installing, "roll back", CLOSED, CHANGED, STOPPED, REVERTED, UPDATES[0], reloaded, UPDATES[1], AGAIN)


def test_a_reload_that_fails_without_a_migration_reverts_the_updates(installing: Site, tmp_path: Path) -> None:
    installing.publish(
        build_app(
            tmp_path,
            "notes",
            "1.1.0",
            "1.0.0",
            unit=RUNS.replace("/bin/true", "/bin/false"),
            **SERVICE,
        )
    )
    assert installing.poll() == "Rolled back"
    shows(installing, "verify", NEEDLESS, STARTED, ("reload services", "Failed"))
    reloaded = ("undo: reload services", "Completed")
    shows(installing, "roll back", CLOSED, UNCHANGED, STOPPED, UPDATES[0], reloaded, UPDATES[1], AGAIN)
