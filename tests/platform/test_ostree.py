"""platform/ostree.py with the real program, beyond the contract: what the repository holds, and what it does not."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from slot_kinds import make_slots, why_not

from otaflow.errors import OtaflowError
from otaflow.platform.describe import describe
from otaflow.platform.ostree import FOLDER, REF, SETTINGS
from otaflow.platform.protocols import Slots


@pytest.fixture
def slots(plain: Path, tmp_path: Path) -> Slots:
    """Slot a has everything that a tree can hold."""
    if why := why_not("ostree"):
        pytest.skip(why)
    made = make_slots("ostree", tmp_path)
    (tmp_path / "slots").mkdir()
    plain.rename(tmp_path / "slots" / "a")
    return made


def ostree(slots: Slots, *arguments: str) -> str:
    repo = slots.place("a").parent / FOLDER
    command = ["ostree", arguments[0], f"--repo={repo}", *arguments[1:]]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def objects(slots: Slots) -> set[Path]:
    return set((slots.place("a").parent / FOLDER / "objects").glob("*/*"))


def test_the_repository_is_bare_and_durable(slots: Slots) -> None:
    slots.copy("a", "b", "one")
    assert ostree(slots, "config", "get", "core.mode") == "bare\n"
    for key, value in SETTINGS.items():
        assert ostree(slots, "config", "get", key) == f"{value}\n"
    assert ostree(slots, "refs").split() == [REF]
    assert "/etc/secret" in ostree(slots, "ls", "-R", REF)
    ostree(slots, "fsck")


def test_what_ostree_cannot_hold_is_in_the_slot_all_the_same(slots: Slots) -> None:
    """Times, hard links, FIFOs, devices, names that are no UTF-8; `plain` has the others."""
    a = slots.path("a")
    (a / "etc" / os.fsdecode(b"no-\xff-utf8")).write_text("x")
    (a / os.fsdecode(b"folder-\xff")).mkdir()
    (a / os.fsdecode(b"folder-\xff") / "file").write_text("y")
    slots.copy("a", "b", "one")
    assert describe(slots.path("b"), times=True) == describe(a, times=True)
    assert not [name for name in os.listdir(a.parent) if name.endswith((".new", ".gone"))]
    listed = ostree(slots, "ls", "-R", REF)
    assert "fifo" not in listed
    assert "no-" not in listed


def test_a_socket_is_left_out(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(slots.path("a"))  # the address may be 108 bytes long only
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    slots.copy("a", "b", "one")
    assert not (slots.path("b") / "socket").exists()
    assert (slots.path("b") / "fifo").is_fifo()


def test_what_is_mounted_inside_is_left_out(slots: Slots) -> None:
    inside = slots.path("a") / "etc" / "empty"
    subprocess.run(["mount", "-t", "tmpfs", "none", inside], check=True)
    try:
        (inside / "file").write_text("x")
        slots.copy("a", "b", "one")
    finally:
        subprocess.run(["umount", inside], check=True)
    assert list((slots.path("b") / "etc" / "empty").iterdir()) == []


def test_a_slot_shares_no_file_with_the_repository(slots: Slots) -> None:
    slots.copy("a", "b", "one")
    (slots.path("b") / "etc" / "shared").write_text("written by a program")
    (slots.path("b") / "bin" / "tool").chmod(0o700)
    ostree(slots, "fsck")
    inodes = {path.lstat().st_ino for path in objects(slots)}
    assert not inodes & {path.lstat().st_ino for path in slots.path("b").rglob("*")}


def test_only_what_changed_is_written_and_what_is_of_no_use_goes(slots: Slots) -> None:
    slots.copy("a", "b", "one")
    slots.forget("one")
    first = objects(slots)
    (slots.path("b") / "etc" / "shared").write_text("new")
    slots.copy("b", "a", "two")
    new = {path for path in objects(slots) - first if path.suffix == ".file"}
    assert len(new) == 1
    slots.forget("two")
    assert len([path for path in objects(slots) if path.suffix == ".commit"]) == 1
    assert {path for path in first if path.suffix == ".file"} - objects(slots)
    ostree(slots, "fsck")


@pytest.mark.parametrize("spoil", ["gone", "half made"])
def test_the_repository_is_made_anew(slots: Slots, spoil: str) -> None:
    slots.copy("a", "b", "one")
    repo = slots.place("a").parent / FOLDER
    if spoil == "gone":
        shutil.rmtree(repo)
    else:
        (repo / "config").unlink()
    slots.put_back("b", "one")
    slots.copy("a", "b", "two")
    assert describe(slots.path("b"), times=True) == describe(slots.path("a"), times=True)
    ostree(slots, "fsck")


@pytest.mark.parametrize("suffix", [".dirtree", ".dirmeta", ".file", ".commit"])
def test_a_damaged_repository_is_not_believed(slots: Slots, suffix: str) -> None:
    """Its `bare` objects are read without a check, so a copy is compared with its source."""
    slots.copy("a", "b", "one")
    for path in objects(slots):
        if path.suffix == suffix and not path.is_symlink():
            path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()[:-1]))
    for name in ("two", "three"):
        slots.copy("a", "b", name)
        assert describe(slots.path("b"), times=True) == describe(slots.path("a"), times=True)
        slots.forget(name)
    slots.copy("a", "b", "four")
    ostree(slots, "fsck")


def test_without_the_program(slots: Slots, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from otaflow.platform import run

    (tmp_path / "programs").mkdir()
    for name in ("setpriv", "cp"):
        (tmp_path / "programs" / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setattr(run, "DEFAULT_PATH", str(tmp_path / "programs"))
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    with pytest.raises(OtaflowError, match="cannot run ostree") as caught:
        slots.copy("a", "b", "one")
    assert caught.value.hint == "apt-get install ostree"
    slots.put_back("b", "one")
    assert sorted(os.listdir(slots.path("a").parent)) == [".kept", "a"]
