"""What ran before runs again after a rollback, and nothing of the new version; also where much goes wrong at once."""

import contextlib
import subprocess
import sys
import threading
import time

import pytest
from app_world import ADD_AUTHOR, FAIL_HALF_WAY, LightWorld, build_system
from processes import has_ended

from otaflow.action import Action
from otaflow.closing import defer
from otaflow.errors import HealthCheckFailed, InvalidManifest, OperationNotPermitted, OtaflowError
from otaflow.policy.closing import Closing, Request
from otaflow.recovery import recover

DATABASE = {"kind": "sqlite", "path": "notes.db", "application": "notes"}
SICK = {"health": [{"name": "well", "command": ["sh", "-c", "exit 1"], "tries": 1}]}


def is_up(world: LightWorld, service: str = "notes.service") -> bool:
    return world.device().services.state(service).active


def test_an_application_that_closed_itself_as_asked_is_started_again(light: LightWorld) -> None:
    light.config.write_text(light.config.read_text().replace("close_seconds = 0", "close_seconds = 600"))
    thread = threading.Thread(target=close_when_asked, args=(light,))
    thread.start()
    with pytest.raises(HealthCheckFailed):
        light.install(light.update_light(sql=FAIL_HALF_WAY))
    thread.join()
    assert light.device().applications.versions() == {"notes": "1.0.0"}
    assert is_up(light)


def close_when_asked(world: LightWorld) -> None:
    end = time.monotonic() + 300
    while Closing(world.root / "nvm").find("notes", world.device().journal.session.id) is None:
        assert time.monotonic() < end, "notes was never asked to close"
        time.sleep(0.02)
    world.device().services.stop("notes.service")


def test_a_system_part_starts_what_ran_before_the_activation(light: LightWorld) -> None:
    """The new program did not come up at the boot: that it did not run is no reason."""
    with light.ucm() as ucm:
        ucm.process(build_system(light, services={"restart": ["notes.service"]}, **SICK), unattended=True)
        ucm.activate()
        assert not is_up(light)  # held before the restart: nothing of the new system runs on data that is not kept
        with pytest.raises(HealthCheckFailed):
            ucm.go_on()
    assert is_up(light)


def test_each_system_of_a_session_migrates(light: LightWorld) -> None:
    def migrating(version: str, table: str) -> Action:
        migrations = [{"database": DATABASE, "sql": ["up.sql"]}]
        return build_system(light, version, files={"up.sql": f"CREATE TABLE {table} (x);"}, migrations=migrations)

    light.install(migrating("1.1.0", "one"), migrating("1.2.0", "two"))
    assert {"one", "two"} <= light.rows().keys()
    assert light.device().running_system().version == "1.2.0"


def test_the_owner_of_migrated_data_does_not_run_meanwhile(light: LightWorld) -> None:
    """Also where the package does not name its service."""
    migrations = [{"database": DATABASE, "sql": ["up.sql"]}]
    light.install(build_system(light, files={"up.sql": ADD_AUTHOR}, migrations=migrations))
    assert light.wait_for_starts(2) == ["1.0.0 on schema 1", "1.0.0 on schema 2"]
    assert is_up(light)


def test_a_version_that_damages_its_label_is_rolled_back(light: LightWorld) -> None:
    before = light.picture()
    spoil = 'rm "$OTAFLOW_APPLICATION/.otaflow-application.json"; exit 1'
    with pytest.raises(HealthCheckFailed):
        light.install(light.update_light(health=[{"name": "well", "command": ["sh", "-c", spoil], "tries": 1}]))
    assert light.picture() == before


def test_one_service_that_does_not_start_again_keeps_no_other_one_down(light: LightWorld) -> None:
    other = light.build_light("1.0.0", name="radio", unit="radio.service")
    light.install(Action("install", "radio", "1.0.0", 1, package=str(other)))
    radio = light.build_light("1.1.0", before="1.0.0", name="radio", unit="radio.service", **SICK)
    (light.root / "applications/radio/bin/notes").write_text("#!/bin/sh\nexit 1\n")
    with light.ucm() as ucm:
        ucm.process(light.update_light())
        ucm.process(Action("update", "radio", "1.1.0", 2, package=str(radio)))
        ucm.activate()
        with contextlib.suppress(OtaflowError):
            ucm.verify()
    assert is_up(light)
    assert light.device().applications.versions() == {"notes": "1.0.0", "radio": "1.0.0"}


def test_a_reload_that_fails_is_made_up_for_by_a_restart(light: LightWorld) -> None:
    unit = light.tree / "services/notes.service"
    deaf = unit.read_text().replace("/bin/true", "/bin/false")
    before = light.picture()
    package = light.build_light("1.0.0", name="radio", units=False, services={"reload": ["notes.service"]}, **SICK)
    unit.write_text(deaf)
    light.device().services.stop("notes.service")
    light.device().services.start("notes.service")
    with pytest.raises(HealthCheckFailed, match="cannot reload"):
        light.install(Action("install", "radio", "1.0.0", 1, package=str(package)))
    assert is_up(light)
    unit.write_text(deaf.replace("/bin/false", "/bin/true"))
    assert light.picture() == before


def test_a_unit_that_is_not_named_is_refused(light: LightWorld) -> None:
    before = light.picture()
    with pytest.raises(InvalidManifest, match=r"does not name notes\.service"):
        light.install(light.update_light(services={}, health=[]))
    assert light.picture() == before


def test_a_request_to_close_is_over_with_its_session(light: LightWorld) -> None:
    light.config.write_text(light.config.read_text().replace("close_seconds = 0", "close_seconds = 600"))
    with light.ucm() as ucm:
        ucm.process(light.update_light(), unattended=True)
        ucm.fire("<Activate")
        session = ucm.journal.session.id
        Closing(ucm.device.nvm).ask(Request("notes", "1.1.0", session, 1, 600.0, most=3))
        recover(ucm)
    with pytest.raises(OperationNotPermitted, match="it was not asked to close"):
        defer(light.device(), "notes")
    assert Closing(light.root / "nvm").find("notes", "another session") is None


def test_nothing_of_the_new_version_runs_when_it_has_no_services(light: LightWorld) -> None:
    desk = light.build_light("1.0.0", name="desk", units=False)
    light.install(Action("install", "desk", "1.0.0", 1, package=str(desk)))
    newer = light.build_light("1.1.0", before="1.0.0", name="desk", units=False)
    with light.ucm() as ucm:
        ucm.process(Action("update", "desk", "1.1.0", 2, package=str(newer)))
        ucm.activate()
        ucm.verify()
        start = "subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=-3, stderr=-3)"
        program = [str(light.root / "applications/desk/bin/notes"), str(light.data)]
        code = f"import subprocess, sys; print({start}.pid)"
        done = subprocess.run([sys.executable, "-c", code, *program], capture_output=True, text=True, check=True)
        ucm.rollback()
        assert has_ended(int(done.stdout))
        ucm.finish()
    assert light.device().applications.versions() == {"desk": "1.0.0", "notes": "1.0.0"}
