"""`otaflow device`: make a device."""

from pathlib import Path
from typing import Annotated

import cyclopts

from otaflow.cli.common import ConfigFile, Json, print_json

app = cyclopts.App(name="device", help="Make a device.")

SAMPLE = """# The configuration of an otaflow device; docs/configuration.md lists every key.
[device]
name = "{name}"
model = "{model}"
root = "{root}"

[slots]
kind = "{kind}"       # or "btrfs", "partitions", "ostree"

[boot]
kind = "index-file"        # or "grub", "u-boot": docs/installation.md
restart = "switch"         # or a command, as ["systemctl", "reboot"]

# The repository that is asked for updates; root is its 1.root.json.
# [sources.official]
# url = "https://updates.example.org"
# root = "root.json"
"""


@app.command
def init(
    *,
    config: ConfigFile = None,
    system: Annotated[Path | None, cyclopts.Parameter(help="The folder that becomes the first system.")] = None,
    name: Annotated[str, cyclopts.Parameter(help="The system's name, as its packages carry it.")] = "system",
    version: Annotated[str, cyclopts.Parameter(help="The first system's version (semver).")] = "0.1.0",
    configuration: Annotated[Path | None, cyclopts.Parameter(help="The folder that becomes /etc/sys.")] = None,
    new_config: Annotated[
        bool, cyclopts.Parameter(negative=(), help="Write a sample of the configuration file first, where none is.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a device as its configuration describes it: both slots, the boot target, the folders of its state."""
    from otaflow import config as configurations
    from otaflow.platform.device import Device
    from otaflow.platform.setup import init_device

    path = config or configurations.DEFAULT_PATH
    if new_config and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SAMPLE.format(name="device-1", model="generic", root="device", kind="directories"))
    device = Device(configurations.load(config))
    init_device(device, system=system, name=name, version=version, configuration=configuration)
    # not which one runs: a system is installed from another one
    made = {"root": str(device.root), "slots": device.config.slots.kind, "active_slot": device.boot.target()}
    made |= {"boot": device.config.boot.kind, "boot_target": str(device.boot_file)}
    if json:
        print_json(made | {"system_version": version})
    else:
        print(f"{device.root}: {name} {version} in slot {made['active_slot']}, {made['slots']}")
        print(f"boot target: slot {made['active_slot']}, {made['boot']} ({made['boot_target']})")
