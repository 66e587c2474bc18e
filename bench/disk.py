"""The disk that is measured on: a btrfs on a loop file, or a plain folder."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = ("btrfs", "directories")
LOOP_BYTES = 64 * 2**30


@contextmanager
def disk(kind: str, folder: Path | None = None) -> Iterator[Path]:
    """An empty folder on a disk of `kind`, gone afterwards. btrfs needs root and a loop device."""
    with tempfile.TemporaryDirectory(prefix="otaflow-bench-", dir=folder, ignore_cleanup_errors=True) as name:
        top = Path(name) / "top"
        top.mkdir()
        if kind == "directories":
            yield top
            return
        image = Path(name) / "image"
        with image.open("wb") as file:
            file.truncate(LOOP_BYTES)
        subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop,noatime", image, top], check=True)
        try:
            yield top
        finally:
            subprocess.run(["umount", top], check=True)


def settle(top: Path) -> None:
    """Let nothing of the run before be left for the next one: no dirty pages, nothing in the page cache."""
    os.sync()
    subprocess.run(["sync", "-f", top], check=True)
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


def empty(place: Path, kind: str) -> None:
    """Give back the room of a finished run. On btrfs only its archives: the deletion of subvolumes goes on for half a
    minute in the background, and would disturb the next run."""
    for archive in place.rglob("full.tar"):
        archive.unlink()
    if kind != "btrfs":
        shutil.rmtree(place)
