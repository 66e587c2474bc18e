"""Building: the same folder gives the same bytes; what extraction would refuse is not built."""

import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from otaflow.errors import InvalidManifest, OtaflowError, PackageInconsistent
from otaflow.package.build import build
from otaflow.package.extract import extract, read_metadata


def tree(root: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """Every path below `root` with its mode and content."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in sorted(root.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (path.lstat().st_mode, content)
    return found


def test_round_trip(tmp_path: Path, source: Path) -> None:
    built = build(source, tmp_path / "a.nsu")
    assert read_metadata(tmp_path / "a.nsu") == built
    seen: list[int] = []
    assert extract(tmp_path / "a.nsu", tmp_path / "into", progress=seen.append) == built
    ours, theirs = tree(tmp_path / "into"), tree(source)
    assert ours.pop("metadata") != theirs.pop("metadata")
    assert ours == theirs
    assert seen == sorted(seen)
    assert seen[-1] == built.size.installed_bytes


def test_same_folder_same_bytes(
    tmp_path: Path, source: Path, new_source: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(source, tmp_path / "a.nsu")
    old = os.umask(0o077)
    try:
        new_source(tmp_path / "again")
        build(tmp_path / "again", tmp_path / "b.nsu")
        assert (tmp_path / "b.nsu").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)
    assert (tmp_path / "a.nsu").read_bytes() == (tmp_path / "b.nsu").read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    build(source, tmp_path / "c.nsu")
    assert (tmp_path / "a.nsu").read_bytes() != (tmp_path / "c.nsu").read_bytes()


def test_members_say_nothing_of_the_builder(
    tmp_path: Path, source: Path, gunzip: Callable[[Path], tarfile.TarFile]
) -> None:
    build(source, tmp_path / "a.nsu")
    members = gunzip(tmp_path / "a.nsu").getmembers()
    assert [member.name for member in members] == [
        *("metadata", "assets", "assets/big", "assets/etc", "assets/etc/hosts", "assets/link", "update")
    ]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "root", "root", 0)}
    assert (tmp_path / "a.nsu").read_bytes()[3:8] == bytes(5), "gzip: no name, no time"


def test_gnu_tar_reads_it(tmp_path: Path, source: Path) -> None:
    long = source / "assets" / ("d" * 200) / ("é" * 100)
    long.parent.mkdir()
    long.write_text("x")
    build(source, tmp_path / "a.nsu")
    (tmp_path / "gnu").mkdir()
    subprocess.run(["tar", "xzpf", tmp_path / "a.nsu", "-C", tmp_path / "gnu"], check=True, capture_output=True)
    extract(tmp_path / "a.nsu", tmp_path / "ours")
    assert tree(tmp_path / "gnu") == tree(tmp_path / "ours")


def test_an_application(tmp_path: Path, source: Path) -> None:
    (source / "metadata").write_text((source / "metadata").read_text().replace("kind: system", "kind: application"))
    (source / "assets").rename(source / "files")
    (source / "update").unlink()
    build(source, tmp_path / "a.nua")
    assert extract(tmp_path / "a.nua", tmp_path / "into").kind == "application"
    assert (tmp_path / "into/files/link").read_text() == "127.0.0.1 localhost\n"


def test_an_old_package_is_replaced_whole(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "a.nsu"
    output.write_text("old")
    (source / "assets/big").unlink()
    (source / "assets/big").symlink_to("/etc/passwd")
    with pytest.raises(PackageInconsistent):
        build(source, output)
    assert output.read_text() == "old"
    assert not (tmp_path / ".a.nsu.new").exists()


def plug(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as plugged:
        plugged.bind(str(path))


REFUSED: dict[str, tuple[Callable[[Path], object], str, type[OtaflowError]]] = {
    "no metadata": (lambda s: (s / "metadata").unlink(), "no file `metadata`", PackageInconsistent),
    "no update": (lambda s: (s / "update").unlink(), "no program `update`", PackageInconsistent),
    "update not executable": (lambda s: (s / "update").chmod(0o644), "may not execute", PackageInconsistent),
    "update a link": (
        lambda s: ((s / "update").unlink(), (s / "update").symlink_to("assets/big")),
        "update",
        InvalidManifest,
    ),
    "assets a file": (
        lambda s: (shutil.rmtree(s / "assets"), (s / "assets").write_text("x")),
        "assets",
        InvalidManifest,
    ),
    "metadata with files": (
        lambda s: (s / "metadata").open("a").write("files: {}\n"),
        "files: Extra inputs",
        InvalidManifest,
    ),
    "unknown key": (lambda s: (s / "metadata").open("a").write("colour: red\n"), "colour", InvalidManifest),
    "something else": (lambda s: (s / "README").write_text("x"), "nothing else", PackageInconsistent),
    "FIFO": (lambda s: os.mkfifo(s / "assets/f"), "neither a file", PackageInconsistent),
    "socket": (lambda s: plug(s / "assets/s"), "neither a file", PackageInconsistent),
    "setuid": (lambda s: (s / "assets/big").chmod(0o4755), "setuid", PackageInconsistent),
    "setgid folder": (lambda s: (s / "assets/etc").chmod(0o2755), "setgid", PackageInconsistent),
    "absolute link": (lambda s: (s / "assets/l").symlink_to("/etc"), "absolute", PackageInconsistent),
    "link outside": (lambda s: (s / "assets/l").symlink_to("../../etc"), "outside", PackageInconsistent),
    "control character": (lambda s: (s / "assets/a\nb").write_text("x"), "control", PackageInconsistent),
    "not UTF-8": (lambda s: open(os.fsencode(s) + b"/assets/\xff", "w").close(), "UTF-8", PackageInconsistent),
}


@pytest.mark.parametrize(("change", "why", "error"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_built(
    tmp_path: Path, source: Path, change: Callable[[Path], object], why: str, error: type[OtaflowError]
) -> None:
    change(source)
    with pytest.raises(error) as caught:
        build(source, tmp_path / "a.nsu")
    assert why in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("value", ["now", "-1", str(8**11)])
def test_time_that_is_none(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    with pytest.raises(PackageInconsistent, match="SOURCE_DATE_EPOCH"):
        build(source, tmp_path / "a.nsu")


def test_output_inside_of_the_folder(source: Path) -> None:
    with pytest.raises(PackageInconsistent, match="inside"):
        build(source, source / "a.nsu")


def test_output_that_cannot_be_written(tmp_path: Path, source: Path) -> None:
    with pytest.raises(PackageInconsistent, match="No such file"):
        build(source, tmp_path / "none/a.nsu")
