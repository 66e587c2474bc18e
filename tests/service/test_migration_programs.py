"""Migrations that are programs, of a folder of files and of `/etc/sys`; and one that fills the disk."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_world import LightWorld
from update_world import differences

from otaflow.action import Action
from otaflow.errors import HealthCheckFailed
from otaflow.platform.describe import describe

MIGRATE = """#!/bin/sh
set -e
cd "$OTAFLOW_DATABASE"
mkdir by-year && mv first.jpg by-year/ && rm old.jpg && echo "$1 $OTAFLOW_APPLICATION" > done
echo "folder = by-year" >> "$OTAFLOW_ETC/notes.conf"
echo new > "$OTAFLOW_ETC/more.conf"
LAST
"""
FILL = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) INSERT INTO notes (text) SELECT 'xxx' FROM n;"


@pytest.fixture
def world(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LightWorld]:
    """A device with the light application at 1.0.0, which has uploads beside its database."""
    world = LightWorld((request.getfixturevalue("btrfs_tmp") if kind == "btrfs" else tmp_path) / "w", kind)
    try:
        world.install_light()
        uploads = world.data / "uploads"
        uploads.mkdir()
        for name in ("first.jpg", "old.jpg"):
            (uploads / name).write_bytes(os.urandom(50_000))
        yield world
    finally:
        world.close()


def update(world: LightWorld, last: str = "", **program: Any) -> Action:
    """To 1.1.0, with a program that sorts the uploads and changes the configuration; `last` is its last line."""
    source = Path(tempfile.mkdtemp(dir=world.folder))
    (source / "files/bin").mkdir(parents=True)
    (source / "files/bin/migrate").write_text(MIGRATE.replace("LAST", last))
    (source / "files/bin/migrate").chmod(0o755)
    migration = {"database": {"kind": "files", "path": "uploads"}, "program": ["bin/migrate", "up"], **program}
    values = {
        **{"format": 1, "name": "notes", "kind": "application", "version": "1.1.0", "update_number": 2},
        **{"applies_to": {"versions": "1.0.0"}, "services": {"restart": ["notes.service"]}, "migrations": [migration]},
    }
    (source / "metadata").write_text(json.dumps(values))
    return world.action("1.1.0", world.finish(source))


def look(world: LightWorld) -> dict[str, Any]:
    """All of the device, with the uploads; nothing is beside them that should not be."""
    uploads = {f"uploads/{name}": value for name, value in describe(world.data / "uploads", times=True).items()}
    return {**world.picture(), **uploads, "?data": sorted(os.listdir(world.data))}


def test_a_program_changes_files_and_configuration(world: LightWorld) -> None:
    world.install(update(world))
    uploads = world.data / "uploads"
    assert sorted(os.listdir(uploads)) == ["by-year", "done"]
    assert (uploads / "done").read_text() == f"up {world.tree}\n"
    assert world.device().configuration.joinpath("notes.conf").read_text() == "greeting = hello\nfolder = by-year\n"
    assert world.picture()["?dumps"] == []


BAD = {
    "it fails": ("exit 3", {}, "exit code 3"),
    "it hangs": ("sleep 1000", {"timeout_seconds": 1}, "did not end within 1 s"),
    "it writes elsewhere": ('echo x > "$OTAFLOW_APPLICATION/bin/notes"', {}, "exit code"),
    "it is killed": ("kill -9 $$", {}, "exit code"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_it_had_changed_is_taken_back(world: LightWorld, case: str) -> None:
    if case == "it writes elsewhere" and os.geteuid() != 0:
        pytest.skip("only with root it is kept from that")
    last, more, why = BAD[case]
    before = look(world)
    with pytest.raises(HealthCheckFailed, match=why):
        world.install(update(world, last, **more))
    assert differences(before, look(world)) == {}


@pytest.mark.parametrize("point", ["migrate.acted", "migrate.done", "undo.migrate.before", "undo.migrate.acted"])
def test_a_kill_in_the_middle(world: LightWorld, point: str, zygote: Any) -> None:
    before = look(world)
    action = update(world, "exit 3") if point.startswith("undo") else update(world)
    assert zygote.run(world, "install", fault=f"{point}:kill", action=action) == -9
    assert zygote.run(world, "recover") == 0
    if point.startswith("undo"):
        assert differences(before, look(world)) == {}
    else:
        assert (world.device().configuration / "notes.conf").read_text().count("by-year") == 1
        assert sorted(os.listdir(world.data / "uploads")) == ["by-year", "done"]


def mount(folder: Path, size: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)


@pytest.mark.parametrize("where", ["data", "dumps"])
def test_a_disk_that_is_full(where: str, tmp_path: Path) -> None:
    """The data's while it is migrated; that of the dumps before, where it is seen."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    world = LightWorld(tmp_path / "w")
    kept = (world.data / "notes.db").read_bytes()
    small = world.root / where
    mount(small, "1m" if where == "data" else "4k")
    try:
        world.data.mkdir(parents=True, exist_ok=True)
        (world.data / "notes.db").write_bytes(kept)
        world.install_light()
        before = world.picture()
        why = "full" if where == "data" else "bytes are free|are free|No space"
        with pytest.raises(HealthCheckFailed, match=why):
            world.install(world.action("1.1.0", world.build_light("1.1.0", before="1.0.0", sql=FILL)))
        assert differences(before, world.picture()) == {}
        assert set(world.starts()) == {"1.0.0 on schema 1"}
    finally:
        world.close()
        subprocess.run(["umount", small], check=True)
