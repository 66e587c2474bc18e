"""Whole updates, ways back and commands on slots that are partitions, and on those of an OSTree repository.

What every moment of an update does to a device is tried on btrfs and on directories (test_every_moment.py); what is the
slots' own part of that is in tests/platform/test_contracts.py, for these kinds too.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slot_kinds import images, partitions, why_not
from update_world import FAILING, PROGRAM, SICK, Packages, World, differences

from otaflow.cli.report import read_status
from otaflow.errors import OtaflowError
from otaflow.platform.labels import FILE_NAME


class KindWorld(World):
    """A world on slots of another kind; it cannot be copied."""

    def call(self, *arguments: str) -> str:
        """What the command prints."""
        done = subprocess.run(
            [sys.executable, "-c", "from otaflow.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "OTAFLOW_CONFIG": str(self.config)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(params=["partitions", "ostree"])
def empty(request: pytest.FixtureRequest, packages: Packages, tmp_path: Path) -> Iterator[KindWorld]:
    """A configuration, and what its device needs to be made."""
    if why := why_not(request.param):
        pytest.skip(why)
    world = KindWorld(tmp_path / "w", request.param, packages)
    world.folder.mkdir()
    world.configure()
    if world.kind == "ostree":
        yield world
        return
    with partitions(world.folder):
        yield world


@pytest.fixture
def world(empty: KindWorld, quick: None) -> KindWorld:
    empty.make()
    return empty


def versions(world: World) -> list[str]:
    status = read_status(world.device())
    return [status["system_version"], *(status["slots"][name]["version"] for name in ("a", "b"))]


def test_good_updates_and_every_way_back(world: KindWorld) -> None:
    assert versions(world) == ["1.1.0", "1.0.0", "1.1.0"]
    world.install(world.up())
    assert world.resolutions()[-1] == ("1.2.0", "kActivated")
    assert versions(world) == ["1.2.0", "1.2.0", "1.1.0"]
    assert world.outcome()["?promise kept"]
    slots = world.device().slots
    assert (slots.path("a") / "bin/hello").read_text() == "1.2.0"
    assert (slots.path("b") / "bin/hello").read_text() == "1.1.0"
    assert not [name for name in world.picture() if ".kept/" in name or ".new" in name or ".gone" in name]

    (world.device().main / "home/data").write_text("spoiled")
    world.install(world.action("snapshot"))
    assert (world.device().main / "home/data").read_text() == "what the users did since"
    world.install(world.action("previous-slot"))
    assert versions(world) == ["1.1.0", "1.2.0", "1.1.0"]
    world.install(world.action("backup"))
    assert versions(world) == ["1.2.0", "1.2.0", "1.1.0"]
    assert slots.kept_names() == []


FILLING = PROGRAM + 'cat /dev/zero >"$OTAFLOW_SLOT/zeros"\n'


@pytest.mark.parametrize(
    "more",
    [{"program": FAILING}, {"health": SICK}, {"program": FILLING}],
    ids=["failing program", "sick system", "full slot"],
)
def test_what_failed_leaves_the_device_as_it_was(world: KindWorld, more: dict[str, str]) -> None:
    if more.get("program") == FILLING and world.kind != "partitions":
        return  # it would fill the whole disk
    before = world.picture()
    with pytest.raises(OtaflowError):
        world.install(world.up(world.packages.make(**more)))
    assert world.resolutions()[-1][1] != "kActivated"
    assert differences(before, world.picture()) == {}


@pytest.mark.parametrize("point", ["copy_active_slot.done", "run_update_program.done"])
def test_killed_and_recovered(world: KindWorld, zygote, point: str) -> None:
    before = world.picture()
    assert zygote.run(world, "install", fault=f"{point}:kill", action=world.up()) == -9
    assert zygote.run(world, "recover") == 0
    assert differences(before, world.picture()) == {}


def test_the_commands_make_and_show_a_device(empty: KindWorld, tmp_path: Path) -> None:
    (tmp_path / "system").mkdir()
    (tmp_path / "system/file").write_text("x")
    made = json.loads(empty.call("device", "init", "--system", str(tmp_path / "system"), "--json"))
    assert made["slots"] == empty.kind
    assert [(empty.device().slots.path(name) / "file").read_text() for name in ("a", "b")] == ["x", "x"]
    before = empty.picture()
    with pytest.raises(AssertionError, match=r"slot a .* is there already"):
        empty.call("device", "init")
    before["nvm/running.json"] = empty.picture()["nvm/running.json"]  # written when a picture asks what runs
    assert differences(before, empty.picture()) == {}
    assert json.loads(empty.call("status", "--json"))["active_slot"] == "a"


def test_a_damaged_spare_partition_stops_updates_only(world: KindWorld) -> None:
    if world.kind != "partitions":
        return
    spare = world.device().spare()
    subprocess.run(["umount", world.device().slots.place(spare)], check=True)
    with images(world.folder)["ab".index(spare)].open("r+b") as image:
        image.write(b"\0" * 2**20)
    status = read_status(world.device())
    assert "cannot use the partition" in status["slots"][spare]["error"]
    with pytest.raises(OtaflowError, match="cannot use the partition"):
        world.install(world.up())
    device = world.device()
    assert (str(device.journal.state), device.running_system().version) == ("Idle", "1.1.0")
    assert not (device.root / "slots" / spare / FILE_NAME).exists()
