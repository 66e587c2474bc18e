"""All that a device is, on the disk: what is done or undone is recorded only when no power cut can bring it back."""

from pathlib import Path

from otaflow.files import sync_file_system
from otaflow.platform.device import Device


def sync_device(device: Device) -> None:
    """Return when every file system that holds a part of the device is on the disk. OSError where one cannot be.

    A removed tree is there again after a power cut until its file system is synced: fsync of the journal is no help.
    """
    slots = [device.slots.place(name) for name in device.slots.names]
    if device.config.slots.devices is None:  # of btrfs each slot would be synced as a file system, which is one with it
        slots = [slot.parent for slot in slots]
    places = [device.root, *slots, device.main, device.configuration, device.cache, device.nvm, device.dumps]
    places += [device.backups.folder, device.config.path(device.config.applications.path)]
    places += [device.config.path(device.config.applications.data)]
    synced: set[int] = set()
    for place in places:
        if _file_system(place) not in synced | {0}:
            synced.add(_file_system(place))
            sync_file_system(place)


def _file_system(place: Path) -> int:
    """The number of the file system; of btrfs, every subvolume has its own. 0 where there is no such folder."""
    return place.stat().st_dev if place.is_dir() else 0
