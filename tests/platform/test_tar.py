"""platform/tar.py: a tree comes back from its archive as it was."""

import os
from pathlib import Path

import pytest

from otaflow.errors import CommandFailed, OtaflowError
from otaflow.platform.describe import describe
from otaflow.platform.protocols import Trees
from otaflow.platform.tar import archive, restore


def test_there_and_back(sample: Path, storage: tuple[Path, Trees]) -> None:
    folder, trees = storage
    archive(sample, folder / "full.tar")
    trees.create(folder / "restored")
    restore(folder / "full.tar", folder / "restored")
    assert describe(folder / "restored", times=True) == describe(sample, times=True)
    assert not (folder / ".full.tar.new").exists()


def test_members_are_subvolumes_too(sample: Path, storage: tuple[Path, Trees], tmp_path: Path) -> None:
    folder, trees = storage
    entry = folder / "entry"
    entry.mkdir()
    trees.freeze(sample, entry / "sys")
    trees.freeze(sample / "etc", entry / "etc-sys")
    (entry / "entry.json").write_text("{}")
    archive(entry, entry / "full.tar", ("sys", "etc-sys"))
    (tmp_path / "restored").mkdir()
    restore(entry / "full.tar", tmp_path / "restored")
    assert sorted(os.listdir(tmp_path / "restored")) == ["etc-sys", "sys"]
    assert describe(tmp_path / "restored" / "sys", times=True) == describe(sample, times=True)


def test_an_archive_that_is_there_is_kept(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "full.tar").write_text("there")
    archive(plain, tmp_path / "full.tar")
    assert (tmp_path / "full.tar").read_text() == "there"


def test_a_failure_leaves_no_archive(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed):
        archive(plain, tmp_path / "full.tar", ("none",))
    assert not (tmp_path / "full.tar").exists()
    archive(plain, tmp_path / "full.tar")


def test_only_an_empty_folder_is_filled(plain: Path, tmp_path: Path) -> None:
    archive(plain, tmp_path / "full.tar")
    with pytest.raises(OtaflowError, match="no empty folder"):
        restore(tmp_path / "full.tar", plain)
    with pytest.raises(OtaflowError, match="no empty folder"):
        restore(tmp_path / "full.tar", tmp_path / "none")


@pytest.mark.parametrize("kept", [0, 512, 1024, 5000, 5120, 2**20 - 512])
def test_a_cut_off_archive_is_an_error(plain: Path, tmp_path: Path, kept: int) -> None:
    """Also where tar alone would take it for a whole one: between two members, or in the zeros behind one."""
    archive(plain, tmp_path / "full.tar")
    os.truncate(tmp_path / "full.tar", kept)
    (tmp_path / "restored").mkdir()
    with pytest.raises(OtaflowError, match="it was cut off"):
        restore(tmp_path / "full.tar", tmp_path / "restored")
    assert list((tmp_path / "restored").iterdir()) == []
