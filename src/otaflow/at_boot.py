"""The question of every boot, which is nearly always answered with no: is there anything to recover?

It is asked with the standard library alone, since the boot waits for it: reading the configuration with pydantic and
building the command line take five times as long as the answer. Where it is not a plain no, `otaflow recover` goes on
as any command does.
"""

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otaflow.errors import OtaflowError
from otaflow.journal import Journal
from otaflow.places import DEFAULT_PATH, VARIABLE
from otaflow.platform.applications import UNITS
from otaflow.platform.boots import Boots
from otaflow.platform.systemd_units import is_arranged

if TYPE_CHECKING:
    from otaflow.platform.protocols import BootTarget

SYSTEMD = Path("/etc/systemd/system")
GRUBENV, FW_ENV_CONFIG = "/boot/loader/grub/grubenv", "/etc/fw_env.config"
"""The configuration's own defaults: a test holds them together."""


def find_config(arguments: list[str]) -> Path | None:
    """The configuration file of a plain `otaflow recover`; None for every other command and for other options."""
    match [argument for argument in arguments if argument != "--no-verify"]:
        case ["recover"]:
            return Path(os.environ.get(VARIABLE) or DEFAULT_PATH)
        case ["recover", "--config" | "-c", path]:
            return Path(path)
    return None


def is_idle(path: Path) -> bool:
    """Count this start of the device whose configuration is `path`, and say whether it is Idle.

    False, too, where it cannot be told this way.
    """
    try:
        values = tomllib.loads(path.read_text())
        root = path.parent / values["device"]["root"]
        nvm = root / values.get("nvm", {}).get("path", "nvm")
        if not nvm.is_dir():
            return False
        boots = Boots(nvm / "boots.json")
        if Journal(nvm / "journal", boots.count).state != "Idle":
            return False
        if any((nvm / "services" / "linked").glob("*")):  # without systemd we start the services at boot
            return False
        if not _knows_services(root, values) or not _runs_its_target(root, values, boots):
            return False
        boots.note_boot()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OtaflowError):
        return False
    return True


def _runs_its_target(root: Path, values: dict[str, Any], boots: Boots) -> bool:
    """Whether the slot that was to start runs; False, too, where only the command can tell."""
    settings, places = values.get("boot", {}), values.get("slots", {})
    restart = settings.get("restart", "switch")
    if restart == "switch":  # no machine was restarted
        return True
    if places.get("kind", "directories") not in ("directories", "btrfs"):
        return False
    folder = root / places.get("path", "slots")
    slots = {name: folder / name for name in places.get("names", ("a", "b"))}
    boot: BootTarget
    match settings.get("kind", "index-file"):
        case "index-file":
            from otaflow.platform.index_file import IndexFile

            record = root / values.get("nvm", {}).get("path", "nvm") / "running.json"
            index = root / settings.get("index", "index.json")
            boot = IndexFile(index, record, restart=restart, slots=slots, boots=boots)
        case "grub":
            from otaflow.platform.grub import GrubBoot

            boot = GrubBoot(root / settings.get("grubenv", GRUBENV), slots=slots, restart=restart)
        case "u-boot":
            from otaflow.platform.u_boot import UBootBoot

            variables = root / settings.get("fw_env_config", FW_ENV_CONFIG)
            boot = UBootBoot(variables, slots=slots, restart=restart)
        case _:
            return False
    return boot.running() == boot.target() and boot.tries_left() is None


def _knows_services(root: Path, values: dict[str, Any]) -> bool:
    """Whether systemd knows the applications' services as they are now, and nothing is held."""
    services = values.get("services", {})
    if services.get("kind", "systemd") != "systemd":
        return True
    trees = root / values.get("applications", {}).get("path", "applications")
    folders = [tree / UNITS for tree in sorted(trees.glob("[!.]*"))]
    return is_arranged(root / services.get("units", SYSTEMD), folders, [])
