"""platform/mirror.py: a folder becomes exactly another one, whatever it was, and whenever it was cut off."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from otaflow.platform.describe import describe, tree_digest
from otaflow.platform.mirror import mirror


def spoil_types(folder: Path) -> None:
    """Every name is of another type than it should be."""
    (folder / "etc").write_text("a file")
    (folder / "bin").symlink_to("/usr")
    (folder / "broken" / "deep").mkdir(parents=True)
    (folder / "fifo").symlink_to("etc")
    (folder / "sparse").mkdir()


def spoil_more(folder: Path) -> None:
    """Too much, and too closed."""
    (folder / "etc" / "closed" / "deep").mkdir(parents=True)
    (folder / "etc" / "closed").chmod(0)
    (folder / "more").mkdir(mode=0o500)
    os.setxattr(folder, "user.more", b"x")


def spoil_files(folder: Path) -> None:
    """The files are there, and wrong."""
    (folder / "etc").mkdir()
    (folder / "etc" / "secret").write_text("y" * 5000)
    (folder / "bin").mkdir()
    (folder / "bin" / "tool").write_bytes(b"#!/bin/sh\n")
    (folder / "bin" / "same-tool").write_bytes(b"#!/bin/sh\n")
    (folder / "bin" / "link").symlink_to("elsewhere")
    (folder / ".otaflow-new").write_text("the rest of a cut-off run")


@pytest.mark.parametrize("spoil", [lambda _: None, spoil_types, spoil_more, spoil_files], ids=range(4))
def test_the_target_becomes_the_source(plain: Path, tmp_path: Path, spoil) -> None:
    target = tmp_path / "target"
    target.mkdir()
    spoil(target)
    before = describe(plain, times=True)
    for _ in range(2):
        mirror(plain, target)
        assert describe(target, times=True) == before
    assert describe(plain, times=True) == before


def test_unchanged_files_are_not_written(plain: Path, tmp_path: Path) -> None:
    mirror(plain, tmp_path / "target")
    inodes = {path: path.lstat().st_ino for path in (tmp_path / "target").rglob("*")}
    (plain / "etc" / "secret").chmod(0o600)
    mirror(plain, tmp_path / "target")
    changed = {path.name for path, inode in inodes.items() if path.lstat().st_ino != inode}
    assert changed == {"secret"}


def test_links_of_files_that_are_none_in_the_source(plain: Path, tmp_path: Path) -> None:
    """Pictures share files with other pictures: these links are not the tree's."""
    mirror(plain, tmp_path / "target")
    os.link(tmp_path / "target" / "etc" / "secret", tmp_path / "outside")
    same = tmp_path / "target" / "bin" / "same-tool"
    same.unlink()
    shutil.copy2(plain / "bin" / "same-tool", same)
    mirror(plain, tmp_path / "target")
    assert describe(tmp_path / "target", times=True) == describe(plain, times=True)


def test_a_source_that_uses_our_name(plain: Path, tmp_path: Path) -> None:
    (plain / ".otaflow-new").write_text("mine")
    mirror(plain, tmp_path / "target")
    assert describe(tmp_path / "target", times=True) == describe(plain, times=True)


def test_a_missing_source_changes_nothing(plain: Path, tmp_path: Path) -> None:
    before = tree_digest(plain)
    with pytest.raises(NotADirectoryError):
        mirror(tmp_path / "none", plain)
    assert tree_digest(plain) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_the_target_may_be_a_mount_point(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "outer" / "target"
    target.mkdir(parents=True)
    (tmp_path / "device").mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "device", target], check=True)
    try:
        mirror(plain, target)
        assert f" {target} " in Path("/proc/self/mountinfo").read_text()
        with pytest.raises(OSError, match="a file system is mounted"):
            mirror(plain / "etc", tmp_path / "outer")
    finally:
        subprocess.run(["umount", target], check=True)
    assert describe(tmp_path / "device", times=True) == describe(plain, times=True)


FOR_EVER = """
import sys
from pathlib import Path
from otaflow.platform.mirror import mirror
one, other, target = map(Path, sys.argv[1:])
print("go", flush=True)
while True:
    mirror(one, target)
    mirror(other, target)
"""


@pytest.mark.parametrize("moment", range(6))
def test_a_cut_off_run_is_repeated(plain: Path, tmp_path: Path, moment: int, start_python) -> None:
    other, target = tmp_path / "other", tmp_path / "target"
    other.mkdir()
    spoil_files(other)
    process = start_python(FOR_EVER, plain, other, target)
    assert process.stdout.readline() == "go\n"
    time.sleep(moment * 0.0071)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    mirror(plain, target)
    assert describe(target, times=True) == describe(plain, times=True)


def test_a_link_in_the_place_of_the_target_is_refused(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious").write_text("kept")
    (tmp_path / "target").symlink_to("victim")
    with pytest.raises(OSError, match="target"):
        mirror(plain, tmp_path / "target")
    assert os.listdir(tmp_path / "victim") == ["precious"]


def test_links_inside_the_target_are_replaced(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious").write_text("kept")
    (tmp_path / "target").mkdir()
    for name in ("etc", "bin", "extra"):
        (tmp_path / "target" / name).symlink_to(tmp_path / "victim")
    mirror(plain, tmp_path / "target")
    assert describe(tmp_path / "target", times=True) == describe(plain, times=True)
    assert os.listdir(tmp_path / "victim") == ["precious"]
