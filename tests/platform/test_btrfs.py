"""platform/btrfs.py on a real btrfs, beyond the contract."""

import os
import subprocess
from pathlib import Path

import pytest

from otaflow.platform import run as run_module
from otaflow.platform.btrfs import BtrfsTrees, is_subvolume
from otaflow.platform.describe import describe

pytestmark = pytest.mark.btrfs
trees = BtrfsTrees()


def btrfs(*arguments: str | Path) -> str:
    return subprocess.run(["btrfs", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def subvolume(btrfs_tmp: Path) -> Path:
    path = btrfs_tmp / "subvolume"
    trees.create(path)
    (path / "file").write_text("x" * 100_000)
    return path


def test_trees_are_subvolumes(subvolume: Path, btrfs_tmp: Path) -> None:
    trees.clone(subvolume, btrfs_tmp / "clone")
    trees.freeze(subvolume, btrfs_tmp / "picture")
    assert all(is_subvolume(btrfs_tmp / name) for name in ("subvolume", "clone", "picture"))
    with pytest.raises(OSError, match="Read-only"):
        (btrfs_tmp / "picture" / "new").write_text("x")
    (btrfs_tmp / "clone" / "new").write_text("x")


@pytest.mark.parametrize("verb", ["clone", "freeze"])
def test_a_plain_folder_is_copied_with_shared_data(btrfs_tmp: Path, plain_inside: Path, verb: str) -> None:
    getattr(trees, verb)(plain_inside, btrfs_tmp / "made")
    assert describe(btrfs_tmp / "made", times=True) == describe(plain_inside, times=True)
    assert is_subvolume(btrfs_tmp / "made")
    if verb == "freeze":
        with pytest.raises(OSError, match="Read-only"):
            (btrfs_tmp / "made" / "new").write_text("x")


@pytest.fixture
def plain_inside(btrfs_tmp: Path, plain: Path) -> Path:
    subprocess.run(["cp", "-a", plain, btrfs_tmp / "plain"], check=True)
    return btrfs_tmp / "plain"


def test_nested_subvolumes_go_too(subvolume: Path, btrfs_tmp: Path) -> None:
    (subvolume / "deep").mkdir()
    btrfs("subvolume", "create", subvolume / "deep" / "inner")
    btrfs("subvolume", "create", subvolume / "deep" / "inner" / "most")
    btrfs("property", "set", subvolume / "deep" / "inner", "ro", "true")
    btrfs("property", "set", subvolume, "ro", "true")
    trees.remove(subvolume)
    assert os.listdir(btrfs_tmp) == []


def test_a_plain_folder_with_a_subvolume_inside(btrfs_tmp: Path) -> None:
    folder = btrfs_tmp / "folder"
    (folder / "deep").mkdir(parents=True)
    btrfs("subvolume", "create", folder / "deep" / "inner")
    (folder / "deep" / "inner" / "file").write_text("x")
    trees.remove(folder)
    assert os.listdir(btrfs_tmp) == []


def test_a_snapshot_s_shadow_of_a_nested_subvolume(subvolume: Path, btrfs_tmp: Path) -> None:
    btrfs("subvolume", "create", subvolume / "inner")
    trees.clone(subvolume, btrfs_tmp / "clone")
    trees.freeze(btrfs_tmp / "clone", btrfs_tmp / "picture")
    for name in ("clone", "picture", "subvolume"):
        trees.remove(btrfs_tmp / name)
    assert os.listdir(btrfs_tmp) == []


@pytest.mark.parametrize(
    ("verb", "programs"), [("create", 1), ("clone", 1), ("freeze", 1), ("remove", 1), ("sync", 0)], ids=str
)
def test_few_programs_are_started(
    subvolume: Path, btrfs_tmp: Path, verb: str, programs: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", run_module.log.name)
    arguments = {"clone": (subvolume, btrfs_tmp / "x"), "freeze": (subvolume, btrfs_tmp / "x")}
    getattr(trees, verb)(*arguments.get(verb, (btrfs_tmp / "new" if verb == "create" else subvolume,)))
    assert sum(message.startswith("btrfs ") for message in caplog.messages) == programs


def test_the_price_does_not_depend_on_the_size(subvolume: Path, btrfs_tmp: Path) -> None:
    with (subvolume / "big").open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(1 << 20))
    trees.sync(subvolume)
    free = os.statvfs(btrfs_tmp).f_bavail
    trees.clone(subvolume, btrfs_tmp / "clone")
    trees.sync(btrfs_tmp)
    assert (free - os.statvfs(btrfs_tmp).f_bavail) * os.statvfs(btrfs_tmp).f_frsize < 1 << 20
