"""The same on btrfs: an application is a subvolume, its update a snapshot, the switch one exchange of two names."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_world import FAIL_HALF_WAY, LightWorld

from otaflow.errors import HealthCheckFailed, OtaflowError
from otaflow.platform.btrfs import is_subvolume

pytestmark = pytest.mark.btrfs


@pytest.fixture
def light(btrfs_tmp: Path) -> Iterator[LightWorld]:
    world = LightWorld(btrfs_tmp / "w", "btrfs")
    try:
        world.install_light()
        yield world
    finally:
        world.close()


def test_an_update_is_a_snapshot_and_owners_and_capabilities_stay(light: LightWorld) -> None:
    program = light.tree / "bin/notes"
    os.chown(program, 12, 34)
    os.chmod(program, 0o4755)
    os.setxattr(program, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    capability = os.getxattr(program, "security.capability")
    (light.tree / "big").write_bytes(b"x" * 5_000_000)
    light.install(light.update_light())
    assert is_subvolume(light.tree)
    status = program.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (12, 34, 0o4755)
    assert os.getxattr(program, "security.capability") == capability
    assert (light.tree / "big").stat().st_size == 5_000_000
    assert not (light.tree / "1.0.0").exists()
    assert sorted(path.name for path in light.root.joinpath("applications").iterdir()) == ["notes"]


@pytest.mark.parametrize(
    "more", [{"sql": FAIL_HALF_WAY}, {"last": "exit 1"}], ids=["migration fails", "service does not come up"]
)
def test_what_fails_leaves_everything_as_it_was(light: LightWorld, more: dict[str, str]) -> None:
    before = light.picture()
    with pytest.raises(HealthCheckFailed):
        light.install(light.update_light(**more))
    assert light.picture() == before
    assert is_subvolume(light.tree)


@pytest.mark.parametrize(
    "point",
    ["prepare_files.acted", "replace_files.acted", "migrate.acted", "start_services.acted", "forget_tree.before"],
)
@pytest.mark.parametrize("how", ["kill", "power"])
def test_a_kill_leaves_all_or_nothing(light: LightWorld, point: str, how: str, zygote: Any) -> None:
    before = light.picture()
    assert zygote.run(light, "install", fault=f"{point}:kill", action=light.update_light()) == -9
    if how == "power":
        light.cut_power()
    assert zygote.run(light, "recover") == 0
    if point in ("prepare_files.acted", "replace_files.acted"):
        assert light.picture() == before
    else:
        assert light.device().applications.versions() == {"notes": "1.1.0"}
        assert light.rows()["version"] == (2,)
        assert not list(light.device().dumps.glob("*"))


def test_an_application_is_removed_and_installed_anew(light: LightWorld) -> None:
    light.install(light.action("1.0.0", Path(), "remove"))
    assert light.device().applications.versions() == {}
    assert light.rows()["version"] == (1,)  # its data stays
    with pytest.raises(OtaflowError, match=r"1\.0\.0"):
        light.install(light.action("1.0.0", light.build_light("1.0.0"), "install"))
    light.install(light.action("1.0.1", light.build_light("1.0.1"), "install"))
    assert light.device().applications.versions() == {"notes": "1.0.1"}
