"""A disk that is full, or turns read-only, at every step of an update and of its way back: all or nothing.

The moments are the fault points that an update of system and application, with a migration, really passes. There is a
clear error or the whole update, at the latest when the disk is well again and `otaflow recover` has run.
"""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from app_world import ADD_AUTHOR, LightWorld, build_system

from otaflow import fault
from otaflow.action import Action
from otaflow.agent.agent import Agent
from otaflow.errors import OtaflowError
from otaflow.files import sync_file_system
from otaflow.flows.retention import retention
from otaflow.platform.boots import Ending
from otaflow.recovery import recover

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

MIB = 2**20
ALLOWED = {"1.0.0 on schema 1", "1.1.0 on schema 2"}
"""A program is never started on another one's data."""
Picture = dict[str, Any]


def choose(world: LightWorld, sick: bool = False) -> list[Action]:
    """System and application in one session, both with data to migrate; a `sick` one is rolled back."""
    health = [{"name": "well", "command": ["sh", "-c", "echo unwell; exit 1"], "tries": 1}]
    database = {"kind": "sqlite", "path": "notes.db", "application": "notes"}
    more: dict[str, Any] = {"health": health} if sick else {}
    shutil.rmtree(world.folder / "system-1.1.0", ignore_errors=True)
    return [
        build_system(
            world,
            files={"up.sql": "INSERT INTO notes (text) VALUES ('of the system');"},
            migrations=[{"database": database, "sql": ["up.sql"]}],
            services={"restart": ["notes.service"]},
        ),
        world.action("1.1.0", world.build_light("1.1.0", before="1.0.0", sql=ADD_AUTHOR, **more)),
    ]


@contextmanager
def at_points(call: Callable[[str], None]) -> Iterator[None]:
    """`call` is called with the name of each fault point that is reached."""
    point, fault.point = fault.point, call
    try:
        yield
    finally:
        fault.point = point


@contextmanager
def light_world(folder: Path) -> Iterator[LightWorld]:
    """A device at 1.0.0; nothing of it runs or is left at the end."""
    world = LightWorld(folder)
    world.config.write_text(world.config.read_text().replace("timeout_seconds = 60", "timeout_seconds = 20"))
    try:
        world.install_light()
        yield world
    finally:
        world.close()
        shutil.rmtree(folder)


def recorded() -> list[str]:
    """Every step of the update, by the moment before it."""
    names: list[str] = []
    with tempfile.TemporaryDirectory(prefix="otaflow-test-") as folder, light_world(Path(folder, "w")) as world:
        actions = choose(world)
        with at_points(names.append):
            world.install(*actions)
    return [name for name in dict.fromkeys(names) if name.endswith(".before") and " " not in name]


STEPS = recorded()
BACK = [f"undo.{name}.before" for name in ("run_update_program", "flip_slot", "replace_files", "migrate")]
"""What brings the system, its configuration, the boot target, the files and the data back."""


@contextmanager
def small_disk(top: Path, command: list[str], size: int) -> Iterator[Path]:
    """A small file system of its own, in memory, made by `command`; `size` in bytes."""
    ram, small = top / "ram", top / "small"
    ram.mkdir()
    small.mkdir()
    mounts: list[Path] = []
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size + 16 * MIB}", "tmpfs", ram], check=True)
        mounts.append(ram)
        with (ram / "image").open("wb") as file:
            file.truncate(size)
        subprocess.run([*command, ram / "image"], check=True)
        subprocess.run(["mount", "-o", "loop,noatime", ram / "image", small], check=True)
        mounts.append(small)
        yield small
    finally:
        for mount in reversed(mounts):
            # lazily: a program of another test may have been given a copy of all mounts
            subprocess.run(["umount", "--lazy", mount], check=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small ext4."""
    with small_disk(tmp_path_factory.mktemp("disk"), ["mkfs.ext4", "-q", "-m", "0"], 64 * MIB) as small:
        yield small


@pytest.fixture
def world(disk: Path, quick: None) -> Iterator[LightWorld]:
    with light_world(disk / "w") as world:
        yield world


def outcome(world: LightWorld) -> Picture:
    """The picture without what differs between two good updates."""
    return {
        name: value[:5] if isinstance(value, tuple) else value
        for name, value in world.picture().items()
        if not name.endswith((".otaflow-application.json", ".otaflow.json"))
    }


@pytest.fixture(scope="module")
def good_end(disk: Path) -> Picture:
    """How the update ends when nothing is wrong."""
    with light_world(disk / "good") as world:
        world.install(*choose(world))
        return outcome(world)


def differences(one: Picture, other: Picture) -> Picture:
    return {name: (one.get(name), other.get(name)) for name in one | other if one.get(name) != other.get(name)}


def fill(ballast: Path) -> None:
    """Take the room that is left, to the last block."""
    file = os.open(ballast, os.O_RDWR | os.O_CREAT)
    try:
        end, size = os.fstat(file).st_size, 64 * MIB
        while size >= 4096:
            try:
                os.posix_fallocate(file, end, size)
                end += size
            except OSError:
                size //= 2
        os.fsync(file)
    finally:
        os.close(file)


def give_back(disk: Path) -> None:
    """Return when there is room again: what was removed gives it back when it is written. No other disk is synced."""
    with contextlib.suppress(OSError):  # an error is told that nobody was told while the disk was full
        sync_file_system(disk)


@contextmanager
def full(world: LightWorld, moment: str, kept: bool) -> Iterator[None]:
    """The disk is full from `moment` on; `kept`: whatever becomes free is taken as well."""
    ballast = world.folder.parent / "ballast"
    begun = False

    def reach(name: str) -> None:
        nonlocal begun
        if name == moment or (begun and kept):
            begun = True
            fill(ballast)

    try:
        with at_points(reach):
            yield
        assert begun, f"{moment} was not reached"
    finally:
        ballast.unlink(missing_ok=True)
        give_back(ballast.parent)


@contextmanager
def read_only(world: LightWorld, moment: str, place: str) -> Iterator[None]:
    """From `moment` on, what is opened below `place` is on a read-only mount; it lies over the real one."""
    folder = world.root / place
    mounted = False

    def reach(name: str) -> None:
        nonlocal mounted
        if name == moment and not mounted:
            mounted = True
            subprocess.run(["mount", "--bind", folder, folder], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)

    try:
        with at_points(reach):
            yield
        assert mounted, f"{moment} was not reached"
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


def is_all_or_nothing(world: LightWorld, good_end: Picture, trouble: Any, *, sick: bool = False) -> None:
    """Update in `trouble`; then the disk is well again, the device is put in order, and the next update works."""
    before, actions = world.picture(), choose(world, sick)
    failed: BaseException | None = None
    with trouble:
        try:
            world.install(*actions)
        except (OtaflowError, OSError) as error:
            failed = error
    if isinstance(failed, OSError):  # nothing could be recorded any more; the command line says what to do
        assert failed.errno in (errno.ENOSPC, errno.EROFS)
    with world.ucm() as ucm:
        with contextlib.suppress(OtaflowError):
            recover(ucm)
        ucm.run(retention, {})  # `otaflow clean-up`: what could not be removed
    assert world.device().journal.state == "Idle"
    assert list(world.device().journal.open_intents()) == []
    assert list((world.root / "nvm").glob("reserve-*")) == []
    if failed and not differences(before, world.picture()):
        assert world.last()["resolution"] in ("kFailed", "kVerificationFailed") or world.last()["version"] == "1.0.0"
        world.install(*choose(world))
    assert differences(good_end, outcome(world)) == {}
    assert set(world.starts()) <= ALLOWED


@pytest.mark.parametrize("moment", STEPS)
def test_full_before(world: LightWorld, good_end: Picture, moment: str) -> None:
    """Filled up to the last block; what is kept for the way back, or the steps themselves free, can be used."""
    is_all_or_nothing(world, good_end, full(world, moment, kept=False))


@pytest.mark.parametrize("moment", BACK)
def test_full_while_rolling_back(world: LightWorld, good_end: Picture, moment: str) -> None:
    """The way back has no room from one of its steps on, not even what it frees itself."""
    is_all_or_nothing(world, good_end, full(world, moment, kept=True), sick=True)


PHASES = {
    "processing": ("copy_active_slot.before", False),
    "activating": ("flip_slot.before", False),
    "migrating": ("migrate.before", False),
    "rolling back": ("undo.migrate.before", True),
    "cleaning up": ("forget_kept.before", False),
}
PLACES = {"the slots": "slots", "nvm": "nvm", "the whole device": "."}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("moment", "sick"), PHASES.values(), ids=PHASES)
def test_read_only_from(world: LightWorld, good_end: Picture, moment: str, sick: bool, place: str) -> None:
    is_all_or_nothing(world, good_end, read_only(world, moment, place), sick=sick)


def start_agent(world: LightWorld) -> None:
    agent = Agent(world.device())
    agent.start()
    try:
        assert agent.status()["status"] == "Idle"
    finally:
        agent.stop()


def call(*words: str) -> Callable[[LightWorld], None]:
    def call(world: LightWorld) -> None:
        command = [Path(sys.executable).with_name("otaflow"), *words, "--config", world.config]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return call


STARTS = {"the agent": start_agent, "recover": call("recover"), "status": call("status"), "clean-up": call("clean-up")}


@pytest.mark.parametrize("begin", STARTS.values(), ids=STARTS)
def test_a_start_on_a_full_disk(world: LightWorld, begin: Callable[[LightWorld], None]) -> None:
    starts_on_a_full_disk(world, begin)


@pytest.mark.btrfs
@pytest.mark.parametrize("begin", STARTS.values(), ids=STARTS)
def test_a_start_on_a_full_btrfs(tmp_path: Path, quick: None, begin: Callable[[LightWorld], None]) -> None:
    """What is written over takes room there, too."""
    with small_disk(tmp_path, ["mkfs.btrfs", "-q", "--mixed"], 128 * MIB) as small, light_world(small / "w") as world:
        starts_on_a_full_disk(world, begin)


def starts_on_a_full_disk(world: LightWorld, begin: Callable[[LightWorld], None]) -> None:
    """Where nothing is going on, the device comes up all the same, and the start is written down once there is room."""
    start_agent(world)  # its folders are there
    boots = world.device().boots.count()
    counter, ballast = world.root / "nvm" / "boots.json", world.folder.parent / "ballast"
    counter.write_text(json.dumps(json.loads(counter.read_text()) | {"boot_id": "the one before"}))
    try:
        fill(ballast)
        begin(world)
        assert json.loads(counter.read_text())["boot_id"] == "the one before"
        assert world.device().boots.count() == boots + 1
    finally:
        ballast.unlink()
        give_back(ballast.parent)
    world.install(*choose(world))
    assert world.device().boots.endings(0) == [Ending.POWER_CUT, Ending.ORDERLY]
