"""Making a new device: its folders, its first system in both slots, its boot target."""

import shutil
from pathlib import Path
from uuid import uuid4

from otaflow.errors import OtaflowError
from otaflow.files import fsync_folder
from otaflow.platform.device import Device
from otaflow.platform.directories import copy_tree
from otaflow.platform.labels import Label, write_label

MAKING = "making"


def init_device(device: Device, *, system: Path | None, name: str, version: str, configuration: Path | None) -> None:
    """Fill slot one from the folder `system` (empty without), make slot two a copy of it, and boot slot one.

    `configuration` is copied to `/etc/sys`. OtaflowError where a device is already: nothing is overwritten.
    """
    slots = device.slots
    first, second = slots.names
    if system is not None and not system.is_dir():
        raise OtaflowError(f"cannot use the system {system}: it is no folder")
    if device.config.boot.kind != "index-file":
        device.boot.promise()  # a boot loader's environment is there before, or nothing is made
    for slot in slots.names:
        slots.create(slot)
    for folder in (device.nvm, device.logs, device.cache, device.backups.folder):
        # The configuration's secrets are in the backups, and what programs say is in the logs.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if system is not None:
        copy_tree(system, slots.path(first))
    label = Label(name, version, update_number=0, generation=uuid4().hex)
    write_label(slots.path(first), label)
    device.trees.create(device.main)
    device.configuration.mkdir(parents=True, exist_ok=True)
    if configuration:
        shutil.copytree(configuration, device.configuration, symlinks=True, dirs_exist_ok=True)
    slots.copy(first, second, MAKING)
    slots.forget(MAKING)
    slots.sync(second)
    slots.sync(first)
    device.boot.set_target(first, label.generation)
    device.boots.note_boot()
    fsync_folder(device.root)
