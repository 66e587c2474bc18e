"""Applications, their data and the system in one session; what is refused, what goes wrong, and what is said then."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_world import ADD_AUTHOR, SYSTEM, AppWorld, LightWorld, build_system, reach
from processes import has_ended
from update_world import differences

from otaflow.action import Action
from otaflow.actions import find_removal
from otaflow.agent.reports import report_changes, report_clusters
from otaflow.closing import defer
from otaflow.errors import (
    HealthCheckFailed,
    IncompatibleDelta,
    MissingDependencies,
    NothingToRevert,
    NothingToRollback,
    OldVersion,
    OperationNotPermitted,
    OtaflowError,
)
from otaflow.platform.device import using
from otaflow.policy.closing import Closing
from otaflow.policy.inbox import Inbox
from otaflow.recovery import recover


@pytest.fixture
def service(tmp_path: Path) -> Iterator[AppWorld]:
    """A device with the web service at 1.0.0, which answers."""
    world = AppWorld(tmp_path / "w")
    try:
        world.install_first()
        yield world
    finally:
        world.close()


# --- the web service --------------------------------------------------------------------------------------------------


def test_no_acknowledged_write_is_lost_going_forward(service: AppWorld) -> None:
    with service.writing() as kept:
        reach(kept, 20)
        service.install(service.action("1.1.0"))
        reach(kept, 20)
    answer = service.get()
    assert (answer["version"], answer["schema"]) == ("1.1.0", 2)
    texts = [note.partition(": ")[2] for note in answer["notes"]]
    assert texts[:2] == ["first", "second"]
    assert [note for note in kept if note not in texts] == []


@pytest.mark.parametrize(
    ("version", "why"),
    [("1.2.0", "no such column: author"), ("1.3.0", "notes 1.3.0 cannot start")],
    ids=["migration fails", "service does not come up"],
)
def test_going_back_the_data_is_that_of_the_moment_it_was_stopped(service: AppWorld, version: str, why: str) -> None:
    service.install(service.action("1.1.0"))
    before = service.picture()
    with service.writing() as kept:
        reach(kept, 20)
        service.let_settle(60)  # until then a program that cannot start has ended; this update waits for nothing else
        with pytest.raises(HealthCheckFailed, match=why):
            service.install(service.action(version))
        reach(kept, 20)
    answer = service.get()
    assert answer["version"] == "1.1.0"
    texts = [note.partition(": ")[2] for note in answer["notes"]]
    assert [note for note in kept if note not in texts] == []
    after = service.picture()
    for picture in (before, after):
        del picture["?rows"]["notes"]
    assert differences(before, after) == {}
    assert why in service.last()["why"]


def test_the_new_version_writes_and_what_it_wrote_goes_when_it_is_rolled_back(service: AppWorld) -> None:
    before = service.rows()
    with service.ucm() as ucm:
        ucm.process(service.action("1.1.0"))
        ucm.activate()
        ucm.verify()
        assert ucm.state == "Activated"
        assert service.post("of the new version") == 201
        ucm.rollback()
        ucm.finish()
    assert service.rows() == before
    assert service.get() == {"version": "1.0.0", "schema": 1, "notes": ["first", "second"]}


# --- all or none ------------------------------------------------------------------------------------------------------


def test_a_system_and_applications_go_together(light: LightWorld) -> None:
    system, update = build_system(light), light.update_light()
    other = light.action("1.0.0", light.build_light("1.0.0", units=False, name="other"), "install")
    light.install(system, update, Action("install", "other", "1.0.0", 1, package=other.package))
    device = light.device()
    assert device.running_system().version == "1.1.0"
    assert device.applications.versions() == {"notes": "1.1.0", "other": "1.0.0"}
    assert [(one["name"], one["action"], one["resolution"]) for one in device.history.read()[-3:]] == [
        (SYSTEM, "Update", "kActivated"),
        ("notes", "Update", "kActivated"),
        ("other", "Install", "kActivated"),
    ]
    assert [one["name"] for one in report_clusters(device)] == [SYSTEM, "notes", "other"]
    assert light.wait_for_starts(2) == ["1.0.0 on schema 1", "1.1.0 on schema 2"]


@pytest.mark.parametrize("sick", ["system", "application"])
def test_one_that_is_sick_takes_all_of_them_back(light: LightWorld, sick: str) -> None:
    before = light.picture()
    broken = {"health": [{"name": "well", "command": ["sh", "-c", "echo unwell; exit 1"], "tries": 1}]}
    system = build_system(light, **(broken if sick == "system" else {}))
    update = light.update_light(**(broken if sick == "application" else {}))
    with pytest.raises(HealthCheckFailed, match="unwell"):
        light.install(update, system)
    assert differences(before, light.picture()) == {}
    assert light.wait_for_starts(3) == ["1.0.0 on schema 1", "1.1.0 on schema 2", "1.0.0 on schema 1"]


def test_what_changes_is_reported(light: LightWorld) -> None:
    with light.ucm() as ucm:
        ucm.process(light.update_light())
        ucm.process(build_system(light))
        changes = {one["name"]: (one["version"], one["state"]) for one in report_changes(ucm.device)}
        assert changes == {"notes": ("1.1.0", "kUpdating"), SYSTEM: ("1.1.0", "kUpdating")}
        ucm.revert()
    with light.ucm() as ucm:
        ucm.process(light.action("1.0.0", Path(), "remove"))
        assert report_changes(ucm.device) == [{"name": "notes", "version": "1.0.0", "state": "kRemoved"}]
        ucm.revert()
    assert light.device().applications.versions() == {"notes": "1.0.0"}


def test_a_system_migrates_the_data_of_an_application(light: LightWorld) -> None:
    """Its writers are stopped before, and started after, the migration."""
    migration = {
        "database": {"kind": "sqlite", "path": "notes.db", "application": "notes"},
        "sql": ["up.sql"],
    }
    more = {"migrations": [migration], "services": {"restart": ["notes.service"]}}
    light.install(build_system(light, files={"up.sql": ADD_AUTHOR}, **more))
    assert light.rows()["version"] == (2,)
    assert light.wait_for_starts(2) == ["1.0.0 on schema 1", "1.0.0 on schema 2"]
    sick = {"health": [{"name": "well", "command": ["false"], "tries": 1}]}
    before = light.picture()
    again = {"up.sql": "DELETE FROM notes;"}
    with pytest.raises(HealthCheckFailed):
        light.install(build_system(light, "1.2.0", files=again, **more, **sick))
    assert differences(before, light.picture()) == {}


def test_configuration_belongs_to_the_same_undo(light: LightWorld) -> None:
    before = light.picture()
    program = '#!/bin/sh\nset -e\necho migrated > "$OTAFLOW_ETC/notes.conf"; echo more > "$OTAFLOW_ETC/more"; exit 3\n'
    source = light.folder / "program"
    (source / "files/bin").mkdir(parents=True)
    (source / "files/bin/migrate").write_text(program)
    (source / "files/bin/migrate").chmod(0o755)
    metadata = {
        "format": 1,
        "name": "notes",
        "kind": "application",
        "version": "1.1.0",
        "update_number": 2,
        "applies_to": {"versions": "1.0.0"},
        "services": {"restart": ["notes.service"]},
        "migrations": [{"database": {"kind": "sqlite", "path": "notes.db"}, "program": ["bin/migrate", "up"]}],
    }
    (source / "metadata").write_text(json.dumps(metadata))
    with pytest.raises(HealthCheckFailed, match="cannot verify"):
        light.install(light.action("1.1.0", light.finish(source)))
    assert differences(before, light.picture()) == {}


# --- what is refused --------------------------------------------------------------------------------------------------


def refuse(world: LightWorld, action: Action, error: type[OtaflowError], words: str) -> None:
    """The action is refused, and nothing is changed."""
    before = world.picture()
    with pytest.raises(error, match=words):
        world.install(action)
    assert differences(before, world.picture()) == {}


def test_an_update_of_another_version_is_refused(light: LightWorld) -> None:
    package = light.build_light("1.3.0", before="1.2.0")
    refuse(
        light, light.action("1.3.0", package), IncompatibleDelta, r"applies to exactly 1\.2\.0.*1\.0\.0 is installed"
    )


def test_what_was_installed_once_is_not_installed_again_at_a_lower_version(light: LightWorld) -> None:
    light.install(light.action("1.0.0", Path(), "remove"))
    refuse(light, light.action("0.9.0", light.build_light("0.9.0")), OldVersion, "0.9.0")


def test_removing_what_is_not_there_is_refused(light: LightWorld) -> None:
    refuse(light, Action("remove", "nothing", "1.0.0"), NothingToRevert, "nothing")


def test_two_packages_of_one_application_do_not_go_together(light: LightWorld) -> None:
    with light.ucm() as ucm:
        ucm.process(light.update_light())
        with pytest.raises(OperationNotPermitted, match="another package of notes"):
            ucm.process(light.action("1.2.0", light.build_light("1.2.0", before="1.1.0")))
        ucm.revert()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dependencies": [{"name": SYSTEM, "versions": ">=2.0.0"}]}, "depends on demo-system"),
        ({"dependencies": [{"name": "maps", "versions": ">=1.0.0"}]}, "depends on maps"),
        ({"conflicts": [{"name": SYSTEM, "versions": "1.0.0"}]}, "conflicts with demo-system"),
    ],
    ids=["another system", "another application", "a conflict"],
)
def test_dependencies_over_all_clusters_are_checked_at_the_activation(
    light: LightWorld, more: dict[str, Any], words: str
) -> None:
    refuse(light, light.update_light(**more), MissingDependencies, words)
    assert light.wait_for_starts(1) == ["1.0.0 on schema 1"]


def test_what_another_one_depends_on_is_not_removed(light: LightWorld) -> None:
    needs = {"dependencies": [{"name": "notes", "versions": ">=1.0.0"}], "units": False, "name": "maps"}
    package = light.build_light("1.0.0", **needs)
    light.install(Action("install", "maps", "1.0.0", 1, package=str(package)))
    refuse(light, light.action("1.0.0", Path(), "remove"), MissingDependencies, "maps.*notes")


def test_a_system_that_an_application_needs_is_not_gone_back_from(light: LightWorld) -> None:
    light.install(build_system(light))
    needs = {"dependencies": [{"name": SYSTEM, "versions": ">=1.1.0"}], "units": False, "name": "maps"}
    light.install(Action("install", "maps", "1.0.0", 1, package=str(light.build_light("1.0.0", **needs))))
    refuse(light, Action("previous-slot", SYSTEM, "1.0.0"), MissingDependencies, "maps depends on demo-system")


def test_without_the_former_files_there_is_nothing_to_roll_back(light: LightWorld) -> None:
    with light.ucm() as ucm:
        ucm.process(light.update_light())
        ucm.activate()
        ucm.verify()
        (kept,) = light.device().applications.leavings()
        kept.rename(light.root / "elsewhere")
        with pytest.raises(NothingToRollback, match="its former files are not there"):
            ucm.rollback()
        assert ucm.state == "Activated"
        assert light.device().applications.versions() == {"notes": "1.1.0"}
        (light.root / "elsewhere").rename(kept)
        ucm.rollback()
        ucm.finish()
    assert light.device().applications.versions() == {"notes": "1.0.0"}


def test_an_application_with_a_damaged_label_can_be_removed(light: LightWorld) -> None:
    (light.tree / ".otaflow-application.json").write_text("{")
    with pytest.raises(OtaflowError, match=r"its label .* is missing or damaged"):
        light.install(light.update_light())
    with light.ucm() as ucm:
        ucm.install(find_removal(ucm.device, "notes"))
    assert light.picture()["?programs"] == []
    assert not light.tree.exists()


def irreversible(world: LightWorld, **facts: Any) -> Action:
    database = {"kind": "sqlite", "path": "notes.db"}
    migrations = [{"database": database, "sql": ["migrations/up.sql"], "irreversible": True}]
    return world.action(
        "1.1.0", world.build_light("1.1.0", before="1.0.0", sql=ADD_AUTHOR, migrations=migrations), **facts
    )


def test_what_cannot_be_brought_back_needs_consent(light: LightWorld) -> None:
    refuse(light, irreversible(light), OperationNotPermitted, "cannot be brought back")
    light.install(irreversible(light, accepted=True))
    assert light.rows()["version"] == (2,)


def start_orphan(*words: str | Path) -> int:
    """Start a program that is not our child, as a user's program is; its process id."""
    start = "subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=-3, stderr=-3)"
    code = f"import subprocess, sys; print({start}.pid)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return int(done.stdout)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_migration_that_hangs_is_ended(light: LightWorld) -> None:
    forever = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) INSERT INTO notes (text) SELECT 'x' FROM n;"
    )
    database = {"kind": "sqlite", "path": "notes.db"}
    migrations = [{"database": database, "sql": ["migrations/up.sql"], "timeout_seconds": 1}]
    refuse(light, light.update_light(sql=forever, migrations=migrations), HealthCheckFailed, "1 s")


def test_a_service_that_flaps_has_failed(light: LightWorld) -> None:
    light.let_settle(60)  # it is over as soon as the service was seen to end
    before = light.picture()
    update = light.update_light(last='case "$1" in *) sleep 0.02; echo "no luck" >&2; exit 0;; esac')
    with pytest.raises(HealthCheckFailed, match=r"notes\.service"):
        light.install(update)
    assert differences(before, light.picture()) == {}


def test_what_ignores_sigterm_is_killed(light: LightWorld) -> None:
    stubborn = light.tree / "bin/stubborn"
    stubborn.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n")
    stubborn.chmod(0o755)
    config = light.config.read_text().replace("end_seconds = 20", "end_seconds = 0.2")
    light.config.write_text(config)
    pid = start_orphan(stubborn)
    try:
        light.install(light.update_light())
        assert has_ended(pid)
        assert light.device().applications.versions() == {"notes": "1.1.0"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_stranger_who_writes_to_the_data_is_named_and_left_alone(light: LightWorld) -> None:
    before = light.picture()
    code = (
        f"import sys; file = open({str(light.data / 'notes.db')!r}, 'r+b'); print('open', flush=True); sys.stdin.read()"
    )
    stranger = subprocess.Popen(
        [sys.executable, "-c", f"import os\nif os.fork(): os._exit(0)\n{code}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stranger.stdout is not None
    assert stranger.stdin is not None
    assert stranger.stdout.readline() == "open\n"
    try:
        with pytest.raises(HealthCheckFailed, match="no program of the application's"):
            light.install(light.update_light())
    finally:
        stranger.stdin.close()
        stranger.wait()
    assert differences(before, light.picture()) == {}


def test_a_dump_is_never_made_after_the_schema_moved(light: LightWorld, fault_points: Any) -> None:
    """The power goes when the migration is done and its record is not: the dump of before must be kept."""
    before = light.rows()
    fault_points("migrate.acted", "raise")
    with light.ucm() as ucm:
        ucm.process(light.update_light(), unattended=True)
        ucm.activate()
        ucm.journal.phase = "verify"
        from otaflow.flows.verify import change_data

        with pytest.raises(OtaflowError, match="a fault was asked for"):
            change_data(ucm._parts())
        assert light.rows()["version"] == (2,)
    with light.ucm() as ucm:
        ucm.verify()  # as after the restart: the migration begins again, with the data of before
        assert light.rows()["version"] == (2,)
        ucm.rollback()
        ucm.finish()
    assert light.rows() == before
    assert light.wait_for_starts(3) == ["1.0.0 on schema 1", "1.1.0 on schema 2", "1.0.0 on schema 1"]


def test_data_is_not_brought_back_under_a_new_program_that_still_runs(light: LightWorld) -> None:
    """It would migrate it forward again."""
    with light.ucm() as ucm:
        ucm.process(light.update_light())
        ucm.activate()
        ucm.verify()
        pid = start_orphan(light.tree / "bin/notes", light.data)
        before = light.starts().count("1.0.0 on schema 1")
        try:
            ucm.rollback()
            assert has_ended(pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ucm.finish()
    assert light.rows()["version"] == (1,)
    light.wait_for_start("1.0.0 on schema 1", after=before)


# --- asked to close ---------------------------------------------------------------------------------------------------


def configure_closing(world: LightWorld, seconds: float) -> None:
    text = world.config.read_text().replace("close_seconds = 0", f"close_seconds = {seconds}\ndefer_seconds = 600")
    world.config.write_text(text)


def test_an_application_that_acknowledges_is_not_waited_for(light: LightWorld) -> None:
    configure_closing(light, 3600)
    with activating(light, light.update_light()) as nvm:
        inbox = Inbox(nvm / "policy/inbox")
        message = wait_for_request(light)
        text = next(one for one in inbox.read() if one.id == message)
        assert (text.kind, text.package, text.facts["seconds"]) == ("close-requested", "notes", 3600)
        inbox.acknowledge("notes", message)
    assert light.device().applications.versions() == {"notes": "1.1.0"}


def test_closing_can_be_put_off_within_bounds(light: LightWorld) -> None:
    configure_closing(light, 3600)
    with activating(light, light.update_light()) as nvm:
        message = wait_for_request(light)
        closing, session = Closing(nvm), session_of(light)
        assert [closing.defer("notes", session, 600).seconds for _ in range(3)] == [4200, 4800, 5400]
        with pytest.raises(OperationNotPermitted, match="it was put off 3 times"):
            closing.defer("notes", session, 600)
        Inbox(nvm / "policy/inbox").acknowledge("notes", message)
    with pytest.raises(OperationNotPermitted, match="it was not asked to close"):
        defer(light.device(), "notes")


def test_a_priority_update_is_not_put_off(light: LightWorld) -> None:
    configure_closing(light, 3600)
    with activating(light, light.update_light(priority=True)) as nvm:
        message = wait_for_request(light)
        with pytest.raises(OperationNotPermitted, match="priority"):
            Closing(nvm).defer("notes", session_of(light), 600)
        Inbox(nvm / "policy/inbox").acknowledge("notes", message)


@contextlib.contextmanager
def activating(world: LightWorld, action: Action) -> Iterator[Path]:
    """The action is installed in a thread while the block runs."""
    failed: list[BaseException] = []

    def install() -> None:
        try:
            world.install(action)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=install, daemon=True)
    thread.start()
    yield world.root / "nvm"  # where this fails, the thread would go on for an hour: nobody has told it that it may
    thread.join(300)
    assert (failed, thread.is_alive()) == ([], False)


def wait_for_request(world: LightWorld) -> int:
    """The id of the message that asks the application to close."""
    closing, end = Closing(world.root / "nvm"), time.monotonic() + 300
    while (request := closing.find("notes", session_of(world))) is None:
        assert time.monotonic() < end, "it was never asked to close"
        time.sleep(0.01)
    return request.message


def session_of(world: LightWorld) -> str:
    return world.device().journal.session.id


def test_a_restart_while_it_waits_is_recovered(light: LightWorld) -> None:
    before = light.picture()
    with light.ucm() as ucm:
        ucm.process(light.update_light(), unattended=True)
        ucm.fire("<Activate")
    light.cut_power()
    with light.ucm() as ucm:
        recover(ucm)
    with using(light.device()) as device:
        device.services.start("notes.service")  # as the boot does
    assert differences(before, light.picture()) == {}
    assert sqlite3.connect(light.data / "notes.db").execute("SELECT count(*) FROM notes").fetchone() == (2,)
