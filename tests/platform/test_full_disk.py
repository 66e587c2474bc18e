"""A disk that is full when the machine starts, and stays full: how the boot is counted, by the room that was kept."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otaflow.platform.boots import Boots, Ending
from otaflow.platform.run_record import RunRecord
from otaflow.records import RESERVE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def nvm(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    nvm = tmp_path / "nvm"
    nvm.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", nvm], check=True)
    try:
        yield nvm
    finally:
        subprocess.run(["umount", "--lazy", nvm], check=True)


def fill(folder: Path) -> None:
    file = os.open(folder / "ballast", os.O_WRONLY | os.O_CREAT)
    try:
        with pytest.raises(OSError, match="No space left"):
            while os.write(file, bytes(4096)):
                pass
    finally:
        os.close(file)


def boots(nvm: Path) -> Boots:
    boot_id = nvm.parent / "boot_id"
    boot_id.write_text("boot-1")
    return Boots(nvm / "boots.json", boot_id, nvm.parent / "sys")


WRITERS: dict[str, Callable[[Path], object]] = {
    "the boot is counted": lambda nvm: boots(nvm).note_boot(),
    "a going-down is noted": lambda nvm: boots(nvm).note_going_down(Ending.DEADLINE),
    "the slot that runs is noted": lambda nvm: RunRecord(nvm / "running.json", ["a", "b"], boots(nvm)).write("a"),
}


@pytest.mark.parametrize("case", WRITERS)
def test_the_room_that_is_kept_is_used(case: str, nvm: Path) -> None:
    (nvm / f"{RESERVE}-0").write_bytes(bytes(64 * 1024))
    fill(nvm)
    WRITERS[case](nvm)
    assert not list(nvm.glob(f"{RESERVE}-*"))
    assert not list(nvm.glob(".*")), "no half written file is left"


@pytest.mark.parametrize("case", WRITERS)
def test_without_any_it_fails(case: str, nvm: Path) -> None:
    fill(nvm)
    with pytest.raises(OSError, match="No space left") as failed:
        WRITERS[case](nvm)
    assert failed.value.errno == errno.ENOSPC
