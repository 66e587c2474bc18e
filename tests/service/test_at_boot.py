"""The short answer at boot says what the long one would."""

from pathlib import Path

import pytest
from switch import counted_starts

from otaflow.at_boot import FW_ENV_CONFIG, GRUBENV, VARIABLE, find_config
from otaflow.at_boot import is_idle as is_idle_at
from otaflow.config import Boot, Slots, load
from otaflow.platform.device import Device
from otaflow.platform.grubenv import change_block
from otaflow.platform.setup import init_device
from otaflow.platform.systemd_units import HOLD_FILE, read_units
from otaflow.ucm.states import State

CONFIG = '[device]\nname = "d"\nmodel = "m"\nroot = "device"\n'
TARGET_A = {"otaflow_target": "a"}


def is_idle() -> bool:
    config = find_config(["recover", "--no-verify"])
    return config is not None and is_idle_at(config)


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["recover"], "/etc/otaflow.toml"),
        (["recover", "--no-verify"], "/etc/otaflow.toml"),
        (["recover", "--config", "x.toml"], "x.toml"),
        (["recover", "-c", "x.toml", "--no-verify"], "x.toml"),
        (["recover", "--json"], None),
        (["recover", "--config"], None),
        (["status"], None),
        ([], None),
    ],
)
def test_only_a_plain_recover_is_answered_short(
    arguments: list[str], path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert find_config(arguments) == (Path(path) if path else None)


def make(folder: Path, more: str, monkeypatch: pytest.MonkeyPatch) -> Device:
    config = folder / "otaflow.toml"
    config.write_text(CONFIG + more)
    monkeypatch.setenv(VARIABLE, str(config))
    device = Device(load())
    init_device(device, system=None, name="system", version="1.0.0", configuration=None)
    return device


@pytest.mark.parametrize("more", ["", '[nvm]\npath = "elsewhere/nvm"\n'], ids=["as it comes", "nvm elsewhere"])
def test_it_reads_the_device_that_the_commands_read(more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = make(tmp_path, more, monkeypatch)
    assert is_idle()
    device.journal.transition("<ProcessSwPackage", State.PROCESSING, what="an update")
    assert not is_idle()


def test_services_that_systemd_does_not_know_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = make(tmp_path, '[services]\nunits = "units"\n', monkeypatch)
    units = tmp_path / "device/units"
    units.mkdir()
    (units / "own.service").write_text("[Service]\nExecStart=true\n")
    assert is_idle()
    hold = units / "notes.service.d" / HOLD_FILE
    hold.parent.mkdir()
    hold.touch()
    assert not is_idle()
    hold.unlink()
    source = device.applications.units("notes") / "notes.service"
    source.parent.mkdir(parents=True)
    source.write_text("[Service]\nExecStart=true\n[Install]\nWantedBy=multi-user.target\n")
    assert not is_idle()
    (units / source.name).write_bytes(read_units(source.parent)[0].text)
    assert not is_idle()
    (units / "multi-user.target.wants").mkdir()
    (units / "multi-user.target.wants/notes.service").symlink_to("../notes.service")
    assert is_idle()
    source.unlink()
    assert not is_idle()


@pytest.mark.parametrize("kind", ["index-file", "grub"])
def test_another_slot_than_the_target_runs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the target is on trial although nothing goes on: both are the command's to tell, and to put right."""
    device = make(tmp_path, "", monkeypatch)
    if kind == "grub":
        (tmp_path / "grubenv").write_bytes(change_block(b"# GRUB Environment Block\n".ljust(1024, b"#"), TARGET_A))
    config = tmp_path / "otaflow.toml"
    grubenv = f'grubenv = "{tmp_path}/grubenv"\n' if kind == "grub" else ""
    config.write_text(f'{CONFIG}[boot]\nkind = "{kind}"\nrestart = ["true"]\n{grubenv}')
    first, second = (device.slots.path(name) for name in ("a", "b"))
    for slot, idle in ((first, True), (second, False)):
        slot.rename(tmp_path / slot.name)
        slot.symlink_to("/")
        assert is_idle() is idle
        slot.unlink()
        (tmp_path / slot.name).rename(slot)
    first.rename(tmp_path / "a")
    first.symlink_to("/")
    Device(load()).boot.set_target("a", "promise", trial=True)
    assert not is_idle()


def test_its_defaults_are_the_configurations() -> None:
    boot = Boot()
    assert (str(boot.grubenv), str(boot.fw_env_config)) == (GRUBENV, FW_ENV_CONFIG)
    assert (boot.kind, str(boot.index), boot.restart) == ("index-file", "index.json", "switch")
    assert (Slots().kind, str(Slots().path), Slots().names) == ("directories", "slots", ("a", "b"))


def test_it_counts_the_start_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = make(tmp_path, "", monkeypatch)
    (device.nvm / "boots.json").write_text('{"count": 4, "boot_id": "an earlier boot"}')
    assert is_idle()
    assert is_idle()
    assert counted_starts(device) == 5


@pytest.mark.parametrize(
    "text",
    [
        None,
        "no toml",
        "",
        "device = 1",
        "[device]\nroot = 1",
        '[device]\nroot = "x"',
        '[device]\nroot = "."\n[nvm]\npath = 2',
    ],
    ids=["none", "no TOML", "empty", "no table", "no path", "no device", "no nvm"],
)
def test_what_it_cannot_tell_is_left_to_the_command(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "otaflow.toml"
    if text is not None:
        config.write_text(text)
    monkeypatch.setenv(VARIABLE, str(config))
    assert not is_idle()


def test_a_damaged_journal_is_left_to_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = make(tmp_path, "", monkeypatch)
    device.journal.transition("<ProcessSwPackage", State.PROCESSING, what="an update")
    sound = (device.nvm / "journal").read_bytes()
    (device.nvm / "journal").write_bytes(b"damaged\n" + sound)
    assert not is_idle()
