"""Fixtures of the transfer tests."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 8 MiB; needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


class Disk:
    """An ext4 in an image; a copy of the image is what a power cut at this moment would leave."""

    def __init__(self, folder: Path) -> None:
        self.image, self.top = folder / "image", folder / "disk"

    def make(self) -> None:
        self.top.mkdir()
        with self.image.open("wb") as file:
            file.truncate(32 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True)
        self.mount(self.image, self.top)

    @staticmethod
    def mount(image: Path, top: Path) -> None:
        """With the file system's own writing so rare that only what is synced gets to the image."""
        subprocess.run(["mount", "-o", "loop,noatime,commit=300", image, top], check=True)

    @contextmanager
    def after_power_cut(self) -> Iterator[Path]:
        """The disk as it would come up now, mounted beside the one that goes on."""
        copy, top = self.image.with_name("copy"), self.top.with_name("after")
        top.mkdir(exist_ok=True)
        subprocess.run(["cp", "--sparse=always", self.image, copy], check=True)
        self.mount(copy, top)
        try:
            yield top
        finally:
            subprocess.run(["umount", top], check=True)
            copy.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk whose power can be cut; needs root and loop devices."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("power cuts need root and loop devices")
    disk = Disk(tmp_path)
    disk.make()
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk.top], check=True)
