"""What is durable before what, and what becomes of work that could be taken back in part only."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from update_world import Packages, World

from otaflow import fault
from otaflow.errors import ErrorNoValidProcessing, HealthCheckFailed, NotAbleToRevertPackages, UndoFailed
from otaflow.platform.labels import read_label
from otaflow.recovery import recover

IMAGE_BYTES = 512 * 2**20


@contextmanager
def mounted(image: Path, top: Path) -> Iterator[None]:
    top.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop,noatime", image, top], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", top], check=True)


@pytest.mark.btrfs
def test_power_that_goes_in_ready_leaves_the_slot_that_the_label_promises(
    btrfs_top: Path, tmp_path: Path, packages: Packages
) -> None:
    """The disk is copied as it is at that moment, without what was not written yet, and started again."""
    image, top = tmp_path / "image", tmp_path / "top"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    with mounted(image, top):
        (top / "world").mkdir()
        world = World(top / "world", "btrfs", packages)
        world.make()
        with world.ucm() as ucm:
            ucm.process(world.up())
            subprocess.run(["cp", "--sparse=always", image, tmp_path / "cut"], check=True)
            promised = world.device().spare()
            content = sorted((p.name, p.read_bytes()) for p in (world.root / "slots" / promised / "bin").iterdir())
            settings = (world.root / "main/etc/sys/net.conf").read_text()
            ucm.revert()
    with mounted(tmp_path / "cut", top):
        world = World(top / "world", "btrfs", packages)
        assert world.device().journal.state == "Ready"
        slot = world.root / "slots" / promised
        assert read_label(slot).version == "1.2.0"
        assert sorted((p.name, p.read_bytes()) for p in (slot / "bin").iterdir()) == content
        assert (world.root / "main/etc/sys/net.conf").read_text() == settings


@pytest.fixture
def kind() -> str:
    return "directories"


@pytest.fixture(autouse=True)
def no_fault_is_left() -> Iterator[None]:
    yield
    fault.arm("")


def test_what_is_reverted_in_part_cannot_be_activated(world: World) -> None:
    with world.ucm() as ucm:
        ucm.process(world.up())
        fault.arm("undo.copy_active_slot.before", "fail")
        with pytest.raises(NotAbleToRevertPackages):
            ucm.revert()
        assert ucm.state == "Ready"
        with pytest.raises(ErrorNoValidProcessing):
            ucm.activate()
        fault.arm("")
        ucm.revert()
        assert ucm.state == "Idle"


def test_an_activation_that_was_interrupted_and_then_done_is_activated_in_the_history(world: World) -> None:
    with world.ucm() as ucm:
        ucm.process(world.up())
        ucm.fire("<Activate")
    with world.ucm() as ucm:
        recover(ucm)
        assert ucm.state == "Ready"
        ucm.activate()
        ucm.verify()
        ucm.finish()
    assert world.resolutions()[-1] == ("1.2.0", "kActivated")


def test_an_undo_that_fails_is_in_the_history(world: World) -> None:
    package = world.packages.make("1.2.0", program="#!/bin/sh\nexit 1\n")
    fault.arm("undo.copy_active_slot.before", "fail")
    with world.ucm() as ucm, pytest.raises(UndoFailed):
        ucm.process(world.up(package))
    assert world.last()["resolution"] == "kFailed"
    assert world.last()["error"] == "UndoFailed"
    fault.arm("")
    with world.ucm() as ucm:
        recover(ucm)
        assert ucm.state == "Idle"


def test_a_system_whose_checks_never_end_is_rolled_back(world: World) -> None:
    """The machine goes down whenever the new system is checked: that must have an end."""
    world.configure("[health]\ntrials = 3\n")
    with world.ucm() as ucm:
        ucm.process(world.up())
        ucm.activate()
        for _ in range(3):
            ucm._count_trial()
        with pytest.raises(HealthCheckFailed, match="never to the end"):
            ucm.verify()
        assert ucm.state == "Rolled-back"
        ucm.finish()


def test_a_file_that_is_handed_in_is_judged_and_used_as_one(world: World, tmp_path: Path, monkeypatch: Any) -> None:
    """What lies where the user put it may be changed by others: its copy in the cache is judged, and used."""
    from otaflow.platform.device import using
    from otaflow.tasks.repository import take_file

    package = tmp_path / "p.nsu"
    shutil.copy(world.packages.make(), package)
    good = package.read_bytes()
    device = world.device()
    with using(device):
        copy = Path(take_file(str(package)))
    package.write_bytes(b"something else")
    assert copy.read_bytes() == good
    assert copy.parent == device.cache / "packages"


def test_the_states_of_a_device_are_its_owners_alone(world: World) -> None:
    for folder in ("nvm", "backups", "cache"):
        assert (world.root / folder).stat().st_mode & 0o077 == 0
    for archive in (world.root / "backups").glob("*/full.tar"):
        assert archive.stat().st_mode & 0o077 == 0
