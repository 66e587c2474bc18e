"""Temporary trees: a subvolume on btrfs, a plain folder elsewhere; gone when removed, whatever was in them."""

import os
import subprocess
from pathlib import Path

import pytest

from otaflow.platform.btrfs import is_subvolume
from otaflow.platform.scratch import make_scratch, remove_scratch


def fill(folder: Path) -> None:
    """What a package and its program may leave: closed folders, links that lead out, many levels."""
    (folder / "a" / "closed").mkdir(parents=True)
    (folder / "a" / "closed" / "file").write_text("x")
    (folder / "a" / "closed").chmod(0)
    (folder / "out").symlink_to(folder.parent / "stays")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "stays").mkdir()
    return tmp_path


@pytest.mark.parametrize("subvolume", [False, True], ids=["folder", "asked for a subvolume"])
def test_on_any_file_system(top: Path, subvolume: bool) -> None:
    """Also where a subvolume is asked for and the file system knows none."""
    if subvolume and os.geteuid() != 0:
        pytest.skip("btrfs needs root")
    path = top / "cache" / "scratch"
    make_scratch(path, subvolume=subvolume)
    assert path.stat().st_mode & 0o777 == 0o700
    fill(path)
    remove_scratch(path)
    remove_scratch(path)
    assert list(path.parent.iterdir()) == []


def test_what_is_there_is_not_taken_for_ours(top: Path) -> None:
    make_scratch(top / "scratch", subvolume=False)
    with pytest.raises(FileExistsError):
        make_scratch(top / "scratch", subvolume=False)


@pytest.mark.btrfs
def test_on_btrfs_it_is_a_subvolume(btrfs_tmp: Path) -> None:
    path = btrfs_tmp / "cache" / "scratch"
    make_scratch(path, subvolume=True)
    assert is_subvolume(path)
    assert path.stat().st_mode & 0o777 == 0o700
    fill(path)
    subprocess.run(["btrfs", "subvolume", "create", path / "a" / "nested"], check=True, capture_output=True)
    remove_scratch(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.btrfs
def test_data_is_shared_with_another_subvolume(btrfs_tmp: Path) -> None:
    """What the package's program does: the assets' data goes into the slot without being copied."""
    make_scratch(btrfs_tmp / "scratch", subvolume=True)
    make_scratch(btrfs_tmp / "slot", subvolume=True)
    (btrfs_tmp / "scratch" / "file").write_bytes(os.urandom(2**20))
    subprocess.run(["cp", "--reflink=always", btrfs_tmp / "scratch/file", btrfs_tmp / "slot/file"], check=True)


@pytest.mark.btrfs
def test_a_plain_folder_of_an_older_version_goes_too(btrfs_tmp: Path) -> None:
    path = btrfs_tmp / "scratch"
    path.mkdir()
    fill(path)
    remove_scratch(path)
    assert not path.exists()
