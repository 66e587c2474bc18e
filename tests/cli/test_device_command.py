"""`otaflow device init` with each kind of boot target, and what of [boot] cannot be used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from boot_loaders import make_u_boot_environment
from grub import call

from otaflow.config import load, parse
from otaflow.errors import ConfigError
from otaflow.platform.device import Device
from otaflow.platform.grub import GrubBoot
from otaflow.platform.index_file import IndexFile
from otaflow.platform.u_boot import UBootBoot

BOOT = {
    "index-file": "",
    "grub": '[boot]\nkind = "grub"\ngrubenv = "{folder}/grubenv"\nrestart = ["systemctl", "reboot"]\n',
    "u-boot": '[boot]\nkind = "u-boot"\nfw_env_config = "{folder}/fw_env.config"\nrestart = ["systemctl", "reboot"]\n',
}
FILES = {"index-file": "device/index.json", "grub": "grubenv", "u-boot": "fw_env.config"}


def write_config(folder: Path, kind: str) -> Path:
    path = folder / "otaflow.toml"
    device = '[device]\nname = "one"\nmodel = "m"\nroot = "device"\n'
    path.write_text(device + BOOT[kind].format(folder=folder))
    return path


def init(config: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from otaflow.cli import main; main()", "device", "init", *words]
    environment = {**os.environ, "OTAFLOW_CONFIG": str(config)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("kind", list(BOOT))
def test_init_sets_the_boot_target_and_says_so(kind: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, kind)
    if kind == "grub":
        call("grub-editenv", tmp_path / "grubenv", "create")
    if kind == "u-boot":
        make_u_boot_environment(tmp_path)
    done = init(config)
    assert done.returncode == 0, done.stderr
    assert f"boot target: slot a, {kind} ({tmp_path / FILES[kind]})" in done.stdout
    boot = Device(load(config)).boot
    assert isinstance(boot, {"index-file": IndexFile, "grub": GrubBoot, "u-boot": UBootBoot}[kind])
    assert (boot.target(), boot.tries_left()) == ("a", None)
    assert boot.promise()


def test_what_init_says_to_programs(tmp_path: Path) -> None:
    said = json.loads(init(write_config(tmp_path, "index-file"), "--json").stdout)
    assert {
        "active_slot": "a",
        "boot": "index-file",
        "boot_target": str(tmp_path / FILES["index-file"]),
    }.items() <= said.items()


@pytest.mark.parametrize("kind", ["grub", "u-boot"])
def test_without_an_environment_nothing_is_made(kind: str, tmp_path: Path) -> None:
    done = init(write_config(tmp_path, kind))
    assert done.returncode == 1
    assert "environment" in done.stderr
    assert "hint:" in done.stderr
    assert not (tmp_path / "device").exists()


@pytest.mark.parametrize(
    ("boot", "why"),
    [
        ({"kind": "grub"}, "starts slots at a restart"),
        ({"kind": "u-boot", "restart": "switch"}, "starts slots at a restart"),
        ({"kind": "lilo"}, "boot.kind"),
        ({"tries": 0}, "boot.tries"),
        ({"tries": 10}, "boot.tries"),
        ({"restart": []}, "boot.restart"),
    ],
    ids=str,
)
def test_what_cannot_be_used(boot: dict[str, object], why: str, tmp_path: Path) -> None:
    values = {"device": {"name": "one", "model": "m", "root": "device"}, "boot": boot}
    with pytest.raises(ConfigError, match=why):
        parse(values, tmp_path / "otaflow.toml")
