"""Fixtures for all tests."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

BTRFS_BYTES = 2**30


@pytest.fixture(scope="session")
def btrfs_top(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The mounted top of an empty btrfs on a loop file; needs root. Mark tests that use it `btrfs`."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        message = "btrfs tests need root and loop devices"
        if os.environ.get("OTAFLOW_REQUIRE_BTRFS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("btrfs")
    image, top = folder / "image", folder / "top"
    top.mkdir()
    with image.open("wb") as file:
        file.truncate(BTRFS_BYTES)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    # `-o loop` detaches the loop device itself when it is unmounted
    subprocess.run(["mount", "-o", "loop,noatime", image, top], check=True)
    try:
        yield top
    finally:
        subprocess.run(["umount", "--recursive", top], check=True)
        image.unlink()


@pytest.fixture
def btrfs_tmp(btrfs_top: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new folder on the btrfs for one test, removed after it with all subvolumes in it."""
    from otaflow.platform.btrfs import BtrfsTrees

    folder = btrfs_top / f"{request.node.name[:40]}-{os.getpid()}".replace("/", "_")
    folder.mkdir()
    yield folder
    BtrfsTrees().remove(folder)
