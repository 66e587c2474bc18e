"""What must not be installed: a named error, the device as before, and the failure in the history."""

import contextlib
import gzip
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from update_world import NAME, PROGRAM, Packages, World, differences

from otaflow import errors
from otaflow.action import Action
from otaflow.files import sync_file_system

Damage = Callable[[Packages, Path], Path]


def _with(**more: Any) -> Damage:
    return lambda packages, _: packages.make(**more)


def _changed(change: Callable[[bytes], bytes]) -> Damage:
    def make(packages: Packages, folder: Path) -> Path:
        damaged = folder / "damaged.nsu"
        damaged.write_bytes(change(packages.make().read_bytes()))
        return damaged

    return make


def _inside(old: bytes, new: bytes) -> Damage:
    def change(content: bytes) -> bytes:
        plain = gzip.decompress(content)
        assert old in plain
        assert len(old) == len(new)
        return gzip.compress(plain.replace(old, new, 1), mtime=0)

    return _changed(change)


def _missing(_: Packages, folder: Path) -> Path:
    return folder / "nothing.nsu"


INCONSISTENT, PROCESSED = "PackageInconsistent", "ProcessedSoftwarePackageInconsistent"
MANIFEST, DEPENDENCIES = "InvalidManifest", "MissingDependencies"
EMPTIES = '#!/bin/sh\nrm -rf "$OTAFLOW_SLOT"/* "$OTAFLOW_SLOT"/.o*\nexit 9\n'

CASES: dict[str, tuple[Damage, str, str]] = {
    "no such file": (_missing, INCONSISTENT, "there is no such file"),
    "not an archive": (_changed(lambda content: b"hello" * 100), INCONSISTENT, "cannot"),
    "cut": (_changed(lambda content: content[: len(content) // 2]), INCONSISTENT, "cannot"),
    "flipped bit": (_changed(lambda c: c[:-30] + bytes([c[-30] ^ 1]) + c[-29:]), INCONSISTENT, "cannot"),
    "content is not what is listed": (_inside(b"1.2.01.2.0", b"1.2.01.2.9"), INCONSISTENT, "SHA-256"),
    "no update program": (_inside(b"\0update\0", b"\0updote\0"), INCONSISTENT, "cannot"),
    "unknown key": (_inside(b"description", b"desorption!"), MANIFEST, "desorption"),
    "other format": (_inside(b"format: 1", b"format: 2"), MANIFEST, "format"),
    "older": (_with(version="1.0.5", number=1), "OldVersion", "1.1.0 is installed"),
    "the same version": (_with(version="1.1.0", number=2), "OldVersion", "must be higher"),
    "other model": (_with(applies_to={"models": ["other"]}), MANIFEST, "made for other"),
    "other start": (_with(applies_to={"versions": ">=1.1.5"}), "IncompatibleDelta", "applies to"),
    "other system": (_with(name="other-system"), MANIFEST, f"runs {NAME}"),
    "program fails": (_with(program="#!/bin/sh\necho last words\nexit 1\n"), PROCESSED, "last words"),
    "program is no program": (_with(program="#!/no/such/shell\n"), PROCESSED, "exit code"),
    "program hangs": (_with(program=PROGRAM + "sleep 1000 & sleep 1000\n"), PROCESSED, "did not end within"),
    "program empties the slot and fails": (_with(program=EMPTIES), PROCESSED, "exit code 9"),
    "missing dependency": (_with(dependencies=[{"name": "libfoo", "versions": ">=1.0.0"}]), DEPENDENCIES, "libfoo"),
    "conflict": (_with(conflicts=[{"name": NAME, "versions": ">=1.0.0"}]), DEPENDENCIES, "conflicts"),
}


@pytest.mark.parametrize(("damage", "name", "text"), CASES.values(), ids=CASES.keys())
def test_it_is_refused_and_the_device_is_as_before(
    world: World, quick: None, tmp_path: Path, damage: Damage, name: str, text: str
) -> None:
    if text == "did not end within":
        world.configure("[program]\ntimeout_seconds = 1.0\n")
    before = world.picture()
    with pytest.raises(getattr(errors, name), match=text):
        world.install(world.up(damage(world.packages, tmp_path)))
    assert differences(before, world.picture()) == {}
    assert world.resolutions()[1:] == [("1.2.0", "kFailed")]
    assert world.last()["error"] == name
    assert text in world.last()["why"]


def test_an_update_that_takes_the_slot_away_is_not_activated(world: World, quick: None) -> None:
    """A program that ends well and leaves no system behind: nothing of it is ever started."""
    before = world.picture()
    package = world.packages.make(program='#!/bin/sh\nrm -rf "$OTAFLOW_SLOT"/bin\n', health="test -f bin/hello")
    with pytest.raises(errors.HealthCheckFailed):
        world.install(world.up(package))
    assert differences(before, world.picture()) == {}
    assert world.resolutions()[1:] == [("1.2.0", "kVerificationFailed")]


@pytest.mark.skipif(os.geteuid() != 0, reason="without root nothing is enforced")
def test_a_program_cannot_write_to_the_running_slot(world: World, quick: None) -> None:
    program = '#!/bin/sh\nexec touch "$OTAFLOW_SLOT/../a/oops" "$OTAFLOW_SLOT/../b/oops"\n'
    before = world.picture()
    with pytest.raises(errors.ProcessedSoftwarePackageInconsistent, match=r"[Rr]ead-only"):
        world.install(world.up(world.packages.make(program=program)))
    assert differences(before, world.picture()) == {}


# --- a second one at the same time ------------------------------------------------------------------------------------


def test_a_second_update_is_locked_out_and_is_in_the_history(world: World, otaflow: Any) -> None:
    package = world.packages.make(program=PROGRAM + "sleep 1000\n")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(world.config), str(package)], stderr=subprocess.DEVNULL)
    try:
        while "run_update_program" not in (world.device().nvm / "journal").read_text().rpartition("intent")[2]:
            assert process.poll() is None
            time.sleep(0.02)
        done = otaflow("update", str(package), check=False)
        assert done.returncode == 1
        assert "another" in done.stderr or "at work on it" in done.stderr
        assert "Traceback" not in done.stderr
        assert world.last()["error"] == "Locked"
        with pytest.raises(errors.Locked):
            world.install(world.up())
    finally:
        process.kill()
        process.wait()
    otaflow("recover")


HOLD = """
import sys
from pathlib import Path
from otaflow.action import Action
from otaflow.work import load_device, working
with working(load_device(Path(sys.argv[1])), prefect=False) as (ucm, _):
    ucm.install(Action("up", "demo-system", "1.2.0", 2, package=sys.argv[2]))
"""


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["directories", pytest.param("btrfs", marks=pytest.mark.btrfs)])
def small_world(request: pytest.FixtureRequest, tmp_path: Path, packages: Packages) -> Iterator[World]:
    """A device on a small disk of its own: tmpfs, or btrfs on a loop file."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    if request.param == "btrfs":
        request.getfixturevalue("btrfs_top")
    top = tmp_path / "small"
    top.mkdir()
    if request.param == "btrfs":
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(160 * 2**20)
        subprocess.run(["mkfs.btrfs", "-q", "--mixed", image], check=True)
        subprocess.run(["mount", "-o", "loop,noatime", image, top], check=True)
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", top], check=True)
    try:
        world = World(top / "w", request.param, packages)
        world.folder.mkdir()
        world.make()
        yield world
    finally:
        subprocess.run(["umount", top], check=True)


PIECE = 2**17


def fill(folder: Path, leave: int) -> Path:
    """Fill the file system with pieces, then remove as many as give about `leave` bytes back."""
    ballast = folder / "ballast"
    ballast.mkdir()
    with contextlib.suppress(OSError):
        for number in range(10_000):
            (ballast / str(number)).write_bytes(os.urandom(PIECE))
            if number % 8 == 0:
                sync(ballast)
    sync(ballast)
    pieces = sorted(ballast.iterdir(), key=lambda path: int(path.name))
    for piece in pieces[: leave // PIECE + 1]:
        piece.unlink()
    sync(ballast)
    return ballast


def sync(folder: Path) -> None:
    """Write what is in it; a full file system says so here, too. No other one: a test beside may cut the power."""
    with contextlib.suppress(OSError):
        sync_file_system(folder)


@pytest.mark.parametrize("leave", [100_000, 1_500_000, 6_000_000, 14_000_000], ids=lambda n: f"{n // 1000} kB free")
def test_a_full_disk_is_told_and_leaves_the_device_as_it_was(small_world: World, quick: None, leave: int) -> None:
    """The program writes until nothing goes; with less room it is the steps before it that cannot go on."""
    program = PROGRAM + 'head -c 400000000 /dev/urandom > "$OTAFLOW_SLOT/big"\n'
    package = small_world.packages.make(program=program)
    before = small_world.picture()
    ballast = fill(small_world.folder, leave)
    with pytest.raises(errors.UcmError) as refusal:
        small_world.install(small_world.up(package))
    assert type(refusal.value).__name__ in ("InsufficientMemory", "ProcessedSoftwarePackageInconsistent")
    assert differences(before, small_world.picture()) == {}
    shutil.rmtree(ballast)
    assert small_world.resolutions()[1:] == [("1.2.0", "kFailed")]
    small_world.install(Action("up", NAME, "1.2.0", 2, package=str(small_world.packages.make())))
    assert small_world.device().running_system().version == "1.2.0"
