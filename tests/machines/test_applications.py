"""Applications on a device whose PID 1 is systemd, with the units of `deployments/` as they are shipped.

otaflow works inside, as root. The power cut is the machine's: what comes after it is a boot, in which systemd must
start no program on another one's data, otaflow-recover.service works before anything else, and otaflow-resume.service
at last.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_machine import LightInside, NotesInside, SystemInside
from app_world import FAIL_HALF_WAY
from update_world import differences

from otaflow.action import Action
from otaflow.platform.labels import read_label

ALLOWED = {"1.0.0 on schema 1", "1.1.0 on schema 2"}
FLAPS = "sleep 0.03; exit 1"
Picture = dict[str, Any]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A folder for a device, and the kind of its storage: the test's parameter `kind`, or directories."""
    if os.geteuid() != 0 or not shutil.which("systemd-nspawn"):
        pytest.skip("a machine with systemd needs root and systemd-nspawn (Debian: systemd-container)")
    callspec = getattr(request.node, "callspec", None)
    kind = callspec.params.get("kind", "directories") if callspec else "directories"
    return (request.getfixturevalue("btrfs_tmp") if kind == "btrfs" else tmp_path) / "w", kind


@pytest.fixture
def notes(place: tuple[Path, str]) -> Iterator[NotesInside]:
    """A device with the example's web service at 1.0.0, which answers."""
    world = NotesInside(*place)
    try:
        world.enter()
        world.install_first()
        yield world
    finally:
        world.close()


@pytest.fixture
def light(place: tuple[Path, str]) -> Iterator[LightInside]:
    """A device with the light application at 1.0.0, which runs."""
    world = LightInside(*place)
    try:
        world.enter()
        world.install_light()
        yield world
        assert set(world.starts()) <= ALLOWED, "no program was ever started on another one's data"
    finally:
        world.close()


def flap(world: LightInside) -> Action:
    """An update whose program dies again and again: looked at for as long as it takes to die on a slow machine."""
    for path in (world.config, world.machine.path("/etc/otaflow.toml")):
        path.write_text(path.read_text().replace("settle_seconds = 0.1", "settle_seconds = 60"))
    return world.update_light(last=FLAPS)


def answers(world: NotesInside) -> dict[str, Any]:
    """What the service says as soon as it says something: systemd has started it, and that is all it knows."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return world.get()
        except OSError:
            assert time.monotonic() < deadline, world.log("notes.service")
            time.sleep(0.05)


# --- the example's web service ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pytest.param("btrfs", marks=pytest.mark.btrfs)])
def test_the_life_of_an_application(notes: NotesInside, kind: str) -> None:
    assert notes.get() == {"version": "1.0.0", "schema": 1, "notes": ["first", "second"]}
    notes.install(notes.action("1.1.0"))
    assert notes.get() == {"version": "1.1.0", "schema": 2, "notes": ["unknown: first", "unknown: second"]}
    before = notes.picture()
    for version, why in (("1.2.0", "no such column: author"), ("1.3.0", "notes 1.3.0 cannot start")):
        assert why in notes.fail(notes.action(version))
        assert answers(notes)["version"] == "1.1.0"
        assert differences(before, notes.picture()) == {}
        assert why in notes.last()["why"]
    notes.machine.reboot()
    assert answers(notes)["notes"] == ["unknown: first", "unknown: second"]
    assert differences(before, notes.picture()) == {}
    notes.install(Action("remove", "notes", "1.1.0"))
    gone = notes.picture()
    assert (gone["?service"], gone["?programs"], gone["?applications"]) == (("inactive", "not-found"), [], {})
    assert gone["?units"] == {}, "neither unit files, nor links, nor holds"
    assert gone["?rows"] == before["?rows"], "its data stays"
    notes.machine.reboot()
    assert differences(gone, notes.picture()) == {}


# --- the power is cut -------------------------------------------------------------------------------------------------


STORIES: dict[str, Callable[[LightInside], Action]] = {
    "update": LightInside.update_light,
    "failing migration": lambda world: world.update_light(sql=FAIL_HALF_WAY),
    "flapping service": flap,
    "remove": lambda world: Action("remove", "notes", "1.0.0"),
}
UNDONE = [
    ("update", "stop_application.acted"),
    ("update", "replace_files.acted"),
    ("failing migration", "undo.migrate.acted"),
    ("flapping service", "!Fail Verifying.after"),
    ("flapping service", "undo.replace_files.acted"),
    ("flapping service", "undo.stop_application.before"),
]
FINISHED = [
    ("update", "replace_files.done"),
    ("update", "migrate.acted"),
    ("update", "start_services.acted"),
    ("remove", "remove_application.done"),
]
OUR_UNITS = ("otaflow-recover.service", "otaflow-resume.service")


def name(case: Any) -> str:
    return str(case)


def check_boot(world: LightInside) -> None:
    """Our units did what they are for, systemd found no cycle in their order, and nothing is left to be done."""
    for unit in OUR_UNITS:
        assert world.show(unit, "Result") == "success", world.log(unit)
    assert "ordering cycle" not in world.machine.check(["journalctl", "--no-pager", "--boot", "_PID=1"])
    assert world.machine.check(["systemctl", "--failed", "--quiet"]) == ""
    assert world.device().journal.state == "Idle"


@pytest.mark.parametrize(("story", "point"), UNDONE, ids=name)
def test_what_was_not_decided_is_taken_back(light: LightInside, story: str, point: str) -> None:
    before = light.picture()
    light.kill_at(point, STORIES[story](light))
    light.boot()
    check_boot(light)
    assert differences(before, light.picture()) == {}
    light.wait_for_start("1.0.0 on schema 1", after=0)
    assert light.last()["resolution"] == ("kFailed" if story == "update" else "kVerificationFailed")


@pytest.mark.parametrize(("story", "point"), FINISHED, ids=name)
def test_what_was_decided_is_finished(light: LightInside, story: str, point: str) -> None:
    light.kill_at(point, STORIES[story](light))
    light.boot()
    check_boot(light)
    after = light.picture()
    assert after["?dumps"] == []
    assert light.last()["resolution"] == "kActivated"
    if story == "remove":
        assert (after["?programs"], after["?units"], after["?applications"]) == ([], {}, {})
        return
    assert after["?rows"]["notes"] == [(1, "first", "x"), (2, "second", "x")]
    assert after["?service"] == ("active", "loaded")
    assert len(after["?programs"]) == 1
    assert not [path for path in after["?units"] if "otaflow" in path]
    light.wait_for_start("1.1.0 on schema 2", after=0)


# --- a system and an application --------------------------------------------------------------------------------------


@pytest.fixture
def system(place: tuple[Path, str]) -> Iterator[SystemInside]:
    """A device that restarts its machine, which boots from the slots; /etc is in them, with systemd's unit files."""
    world = SystemInside(*place)
    try:
        world.enter()
        world.install_light()
        yield world
        assert set(world.starts()) <= ALLOWED, "no program was ever started on another one's data"
    finally:
        world.close()


def test_the_new_program_starts_in_the_new_system_on_migrated_data(system: SystemInside) -> None:
    system.install_and_reboot(system.build_system(), system.update_light())
    check_boot(system)
    assert system.device().running_system().version == "1.1.0"
    assert system.wait_for_starts(2) == ["1.0.0 on schema 1", "1.1.0 on schema 2"]
    assert system.picture()["?rows"]["notes"] == [(1, "first", "x"), (2, "second", "x")]
    assert len(system.running()) == 1
    assert system.machine.check(["cat", "/version"]) == "1.1.0\n"


def test_a_sick_one_takes_the_system_back(system: SystemInside) -> None:
    before = system.picture()
    system.install_and_reboot(system.build_system(), flap(system), times=2)
    check_boot(system)
    assert system.device().running_system().version == "1.0.0"
    system.wait_for_start("1.0.0 on schema 1", after=1)  # the first was before
    assert "1.1.0 on schema 2" in system.starts()
    assert differences(before, system.picture()) == {}
    assert system.last()["resolution"] == "kVerificationFailed"


def test_an_older_slot_knows_the_applications_of_today(system: SystemInside) -> None:
    """Gone back to, it has the unit files of its own time, and holds what was updated long ago."""
    system.install_and_reboot(system.build_system(), system.update_light())
    device, present = system.device(), system.slot()
    former = device.spare()
    device.boot.set_target(former, read_label(device.slots.path(former)).generation)
    system.machine.stop()
    system.boot()
    assert system.machine.root != present
    check_boot(system)
    system.wait_for_start("1.1.0 on schema 2", after=0)
    assert system.show("notes.service", "ActiveState") == "active"
    assert not [path for path in system.units() if "otaflow-hold" in path]
