"""Extraction on a real disk: full ones, cancelled ones, and random damage."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otaflow.errors import GeneralReject, InsufficientMemory, OtaflowError
from otaflow.package.build import build
from otaflow.package.extract import extract, read_metadata
from otaflow.package.names import check_name

PARTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=80).filter(
    lambda part: part not in (".", "..") and len(part.encode()) < 240
)
CONTENT = st.binary(max_size=2000)
TREES = st.recursive(
    st.dictionaries(PARTS, CONTENT, max_size=4),
    lambda inner: st.dictionaries(PARTS, CONTENT | inner, max_size=4),
    max_leaves=12,
)
MODES = st.integers(0, 0o777)


def plant(folder: Path, content: dict[str, Any], modes: Iterator[int]) -> None:
    folder.mkdir()
    for name, value in content.items():
        if isinstance(value, dict):
            plant(folder / name, value, modes)
        else:
            (folder / name).write_bytes(value)
            (folder / name).chmod(next(modes) | 0o400)
            (folder / f"{name[:20]}~link").symlink_to(name)
    folder.chmod(next(modes) | 0o500)


def tree(root: Path) -> dict[str, tuple[int, bytes | str | None]]:
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in sorted(root.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (path.lstat().st_mode, content)
    return found


def open_up(root: Path) -> None:
    """Remove a tree, also where its folders are read-only and the test is not root."""
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o700)
    shutil.rmtree(root)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=TREES, seed=st.integers(0, 2**32), data=st.data())
def test_what_is_built_is_extracted(tmp_path: Path, content: dict[str, Any], seed: int, data: st.DataObject) -> None:
    chance = random.Random(seed)
    work = tmp_path / "work"
    work.mkdir()
    try:
        (work / "source").mkdir()
        (work / "source/metadata").write_text("format: 1\nname: x\nkind: system\nversion: 1.0.0\nupdate_number: 1\n")
        (work / "source/update").write_text("#!/bin/sh\n")
        (work / "source/update").chmod(0o755)
        plant(work / "source/assets", content, iter(lambda: chance.randrange(0o1000), None))
        build(work / "source", work / "a.nsu")
        extract(work / "a.nsu", work / "into")
        ours, theirs = tree(work / "into"), tree(work / "source")
        assert {name for name in ours if check_name(name)} == theirs.keys()
        assert ours.pop("metadata")[1] != theirs.pop("metadata")[1]
        assert ours == theirs
    finally:
        open_up(work)


@pytest.mark.parametrize("seed", range(12))
def test_random_damage(tmp_path: Path, forge: Any, seed: int) -> None:
    """A package with flipped bytes is refused, or is the same: never another, never anything outside."""
    chance = random.Random(seed)
    archive = forge.write(tmp_path / "good.nsu")
    good = archive.read_bytes()
    extract(archive, tmp_path / "good")
    wanted = tree(tmp_path / "good")
    before = {path.name for path in tmp_path.iterdir()} | {"bad.nsu"}
    for _ in range(100):
        bad = bytearray(good)
        for _ in range(chance.choice([1, 1, 2, 8])):
            bad[chance.randrange(len(bad))] ^= chance.randrange(1, 256)
        (tmp_path / "bad.nsu").write_bytes(bad)
        try:
            extract(tmp_path / "bad.nsu", tmp_path / "into")
        except OtaflowError:
            pass
        else:
            assert tree(tmp_path / "into") == wanted
            open_up(tmp_path / "into")
        assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_under_a_good_checksum(tmp_path: Path, forge: Any, seed: int) -> None:
    """The same for the archive inside: gzip's own checksum is good, so the damage reaches the parsers."""
    chance = random.Random(seed)
    plain = forge.tar()
    archive = forge.write(tmp_path / "good.nsu")
    extract(archive, tmp_path / "good")
    wanted = tree(tmp_path / "good")
    wanted.pop("metadata")
    before = {path.name for path in tmp_path.iterdir()} | {"bad.nsu"}
    for _ in range(100):
        bad = bytearray(plain)
        for _ in range(chance.choice([1, 1, 2, 8])):
            bad[chance.randrange(len(bad))] ^= chance.randrange(1, 256)
        forge.tar = lambda bad=bad: bytes(bad)
        forge.write(tmp_path / "bad.nsu")
        try:
            extract(tmp_path / "bad.nsu", tmp_path / "into")
        except OtaflowError:
            pass
        else:
            found = tree(tmp_path / "into")
            # What the metadata says of itself is vouched for by the repository's signature alone.
            found.pop("metadata")
            assert found == wanted
            open_up(tmp_path / "into")
        assert {path.name for path in tmp_path.iterdir()} == before


def test_left_over_is_not_touched(tmp_path: Path, forge: Any) -> None:
    archive = forge.write(tmp_path / "a.nsu")
    (tmp_path / "into").mkdir()
    (tmp_path / "into/kept").write_text("x")
    with pytest.raises(GeneralReject, match="File exists"):
        extract(archive, tmp_path / "into")
    assert (tmp_path / "into/kept").read_text() == "x"


def test_folder_that_is_not_there(tmp_path: Path, forge: Any) -> None:
    with pytest.raises(GeneralReject, match="No such file"):
        extract(forge.write(tmp_path / "a.nsu"), tmp_path / "none/into")


def test_cancelled_by_its_progress(tmp_path: Path, source: Path) -> None:
    class Cancelled(Exception):
        pass

    def stop(written: int) -> None:
        raise Cancelled(written)

    build(source, tmp_path / "a.nsu")
    with pytest.raises(Cancelled):
        extract(tmp_path / "a.nsu", tmp_path / "into", progress=stop)
    assert not (tmp_path / "into").exists()


def test_read_metadata_reads_no_further(tmp_path: Path, source: Path) -> None:
    (source / "assets/noise").write_bytes(random.Random(0).randbytes(2**21))
    built = build(source, tmp_path / "a.nsu")
    with (tmp_path / "a.nsu").open("r+b") as file:
        file.truncate(2**20)
    assert read_metadata(tmp_path / "a.nsu") == built


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB and 64 inodes."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "otaflow-test", disk], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_full_disk_is_seen_before(tmp_path: Path, source: Path, small_disk: Path) -> None:
    build(source, tmp_path / "a.nsu")
    seen: list[int] = []
    with pytest.raises(InsufficientMemory, match=r"bytes in .* files"):
        extract(tmp_path / "a.nsu", small_disk / "into", progress=seen.append)
    assert (seen, list(small_disk.iterdir())) == ([], [])


def test_too_few_inodes_are_seen_before(tmp_path: Path, source: Path, small_disk: Path) -> None:
    (source / "assets/big").unlink()
    for number in range(64):
        (source / f"assets/{number}").touch()
    build(source, tmp_path / "a.nsu")
    with pytest.raises(InsufficientMemory, match="files are free"):
        extract(tmp_path / "a.nsu", small_disk / "into")
    assert list(small_disk.iterdir()) == []


def test_disk_that_fills_up_meanwhile(tmp_path: Path, source: Path, small_disk: Path) -> None:
    (source / "assets/big").write_bytes(bytes(2**19))
    (source / "assets/bigger").write_bytes(bytes(2**18))
    build(source, tmp_path / "a.nsu")

    def fill(written: int) -> None:
        with (small_disk / "other").open("ab") as other:
            other.write(bytes(2**18))

    with pytest.raises(InsufficientMemory, match="No space left"):
        extract(tmp_path / "a.nsu", small_disk / "into", progress=fill)
    assert not (small_disk / "into").exists()
