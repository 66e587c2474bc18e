"""Making a new device: its folders, its first system in both slots, its boot target."""

import shutil
from pathlib import Path
from uuid import uuid4

from otaflow.errors import OtaflowError
from otaflow.files import fsync_folder
from otaflow.platform.device import Device
from otaflow.platform.directories import copy_tree
from otaflow.platform.labels import Label, write_label


def init_device(device: Device, *, system: Path | None, name: str, version: str, configuration: Path | None) -> None:
    """Fill slot one from the folder `system` (empty without), make slot two a copy of it, and boot slot one.

    `configuration` is copied to `/etc/sys`. OtaflowError where a device is already: nothing is overwritten.
    """
    first, second = device.slots.names
    for slot in device.slots.names:
        if device.slots.path(slot).exists():
            raise OtaflowError(
                f"cannot make a device in {device.root}: slot {slot} is there already",
                hint="name another folder, or remove this one if its content may go",
            )
    if device.config.boot.kind != "index-file":
        device.boot.promise()  # a boot loader's environment is there before, or nothing is made
    device.slots.path(first).parent.mkdir(parents=True, exist_ok=True)
    for folder in (device.nvm, device.logs, device.cache, device.backups.folder):
        # The configuration's secrets are in the backups, and what programs say is in the logs.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _fill(device, device.slots.path(first), system)
    label = Label(name, version, update_number=0, generation=uuid4().hex)
    write_label(device.slots.path(first), label)
    device.trees.create(device.main)
    device.configuration.mkdir(parents=True, exist_ok=True)
    if configuration:
        shutil.copytree(configuration, device.configuration, symlinks=True, dirs_exist_ok=True)
    device.trees.clone(device.slots.path(first), device.slots.path(second))
    device.trees.sync(device.slots.path(second))
    device.trees.sync(device.slots.path(first))
    device.boot.set_target(first, label.generation)
    device.boots.note_boot()
    fsync_folder(device.root)


def _fill(device: Device, slot: Path, system: Path | None) -> None:
    device.trees.create(slot)
    if system is None:
        return
    if not system.is_dir():
        raise OtaflowError(f"cannot use the system {system}: it is no folder")
    copy_tree(system, slot)
