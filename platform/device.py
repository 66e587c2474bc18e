"""The device: its adapters and its files, put together from the configuration.

A step reaches it with `device()`; one process works on one device at a time.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from otaflow.config import Config
from otaflow.history import History
from otaflow.journal import Journal
from otaflow.platform.applications import Applications
from otaflow.platform.backups import Backups
from otaflow.platform.boots import Boots
from otaflow.platform.flight_recorder import FlightRecorder
from otaflow.platform.labels import Label, read_label
from otaflow.platform.lock import DeviceLock
from otaflow.platform.marks import Marks
from otaflow.platform.protocols import BootTarget, Services, Slots, Trees

PROGRAM_LOG = "logs"


class Device:
    """A device as its configuration describes it; making one reads nothing and changes nothing."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = config.device.root
        self.main = config.path(config.main.path)
        self.configuration = config.path(config.main.configuration)
        self.cache = config.path(config.cache.path)
        self.nvm = config.path(config.nvm.path)
        self.dumps = config.path(config.dumps.path)
        self.logs = self.nvm / PROGRAM_LOG
        self.recorder = FlightRecorder(self.logs)
        self.backups = Backups(config.path(config.backups.path))
        self.history = History(self.nvm / "history")
        self.lock = DeviceLock(self.nvm / "lock")
        self.boots = Boots(self.nvm / "boots.json")
        self.marks = Marks.of_machine(restarts=config.boot.restart != "switch")
        self.stop_work = threading.Event()
        """Set by Cancel, and by a Rollback while Verifying: the working phase ends at its next look at it."""

    @cached_property
    def journal(self) -> Journal:
        """The journal, read on first use. Raises JournalCorrupt."""
        return Journal(self.nvm / "journal", self.boots.count)

    @cached_property
    def trees(self) -> Trees:
        """The kind of storage that slots and backups are on."""
        if self.config.slots.kind == "btrfs":
            from otaflow.platform.btrfs import BtrfsTrees

            return BtrfsTrees()
        from otaflow.platform.directories import FolderTrees

        return FolderTrees()

    @cached_property
    def slots(self) -> Slots:
        """The two slots."""
        settings = self.config.slots
        root = self.config.path(settings.path)
        if settings.devices is not None:
            from otaflow.platform.partitions import PartitionSlots

            devices = tuple(self.config.path(device) for device in settings.devices)
            return PartitionSlots(root, settings.names, devices, self.trees, self.backups.find_picture)
        if settings.kind == "ostree":
            from otaflow.platform.ostree import OstreeSlots

            return OstreeSlots(root, settings.names)
        from otaflow.platform.slots import TreeSlots

        return TreeSlots(root, settings.names, self.trees)

    @property
    def boot_file(self) -> Path:
        """The file that says where the boot target is."""
        boot = self.config.boot
        files = {"index-file": boot.index, "grub": boot.grubenv, "u-boot": boot.fw_env_config}
        return self.config.path(files[boot.kind])

    @cached_property
    def boot(self) -> BootTarget:
        """The boot target."""
        settings = self.config.boot
        file = self.boot_file
        slots = {name: self.slots.place(name) for name in self.slots.names}
        if settings.kind == "grub":
            from otaflow.platform.grub import GrubBoot

            return GrubBoot(file, slots=slots, restart=settings.restart, tries=settings.tries)
        if settings.kind == "u-boot":
            from otaflow.platform.u_boot import UBootBoot

            return UBootBoot(file, slots=slots, restart=settings.restart, tries=settings.tries)
        from otaflow.platform.index_file import IndexFile

        return IndexFile(
            file,
            self.nvm / "running.json",
            restart=settings.restart,
            slots=slots,
            boots=self.boots,
            tries=settings.tries,
        )

    @cached_property
    def applications(self) -> Applications:
        """The applications."""
        settings = self.config.applications
        return Applications(self.config.path(settings.path), self.config.path(settings.data), self.trees)

    @cached_property
    def services(self) -> Services:
        """Who runs the background programs."""
        settings = self.config.services
        if settings.kind == "systemd":
            from otaflow.platform.systemd import SystemdServices

            return SystemdServices(self.config.path(settings.units), settings.timeout_seconds)
        from otaflow.platform.supervised import SupervisedServices

        return SupervisedServices(self.nvm / "services", settings.timeout_seconds, self.logs / "services")

    def spare(self) -> str:
        """The slot that is not running."""
        first, second = self.slots.names
        return second if self.boot.running() == first else first

    def running_system(self) -> Label:
        """The label of the system that runs. OtaflowError when it cannot be read."""
        return read_label(self.slots.path(self.boot.running()))


_everywhere: list[Device] = []
_here = threading.local()


def device() -> Device:
    """The device that this thread works on; in a thread that was not told (Prefect's own), the process's first one."""
    mine: list[Device] = getattr(_here, "devices", [])
    return mine[-1] if mine else _everywhere[0]


@contextmanager
def using(which: Device) -> Iterator[Device]:
    """Let `device()` be `which` inside the block, in this thread: an agent polls beside its work."""
    mine: list[Device] = _here.__dict__.setdefault("devices", [])
    mine.append(which)
    _everywhere.append(which)
    try:
        yield which
    finally:
        mine.pop()
        _everywhere.remove(which)
