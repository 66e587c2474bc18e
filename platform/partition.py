"""One ext4 partition, or an image file on a loop device, and the folder that it is mounted on.

It is mounted when it is first used, and stays so until the machine goes down, as an entry of fstab would: another
otaflow may be at work in it. What is mounted there is compared with the device each time, since a file that is written
into a mount point without its mount fills the main partition. The partition of the running system is mounted twice,
which the kernel makes one file system of; so two loop devices of one image are never made.
"""

import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from otaflow.errors import CommandFailed, OtaflowError
from otaflow.platform.run import run

TIMEOUT = 120.0
ROOT_INODE = 2
"""Of the root folder of every ext4."""
MAGIC = (1080, b"\x53\xef")
"""Where a file system that the ext4 driver knows says so."""
LOOP_GET_STATUS64, LOOP_INFO_BYTES = 0x4C05, 232
"""linux/loop.h; struct loop_info64 begins with the file's device number and its inode."""


class Partition:
    """The partition `device` of the slot `slot`, used at the folder `point`."""

    def __init__(self, slot: str, device: Path, point: Path) -> None:
        self.slot, self.device, self.point = slot, device, point
        self._mounted_by_us = False

    def open(self) -> Path:
        """The folder, with the partition mounted there. OtaflowError says why it cannot be."""
        if not self.is_mounted():
            try:
                self._mount()
            except OSError as error:
                raise self._cannot(f"{error.strerror} ({error.filename})") from error
        return self.point

    def open_writable(self) -> Path:
        """The same; OtaflowError where it cannot be written."""
        folder = self.open()
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            raise self._cannot(
                "it is mounted read-only",
                f"the kernel does that when it finds damage: `umount {folder}`, then `e2fsck -f {self.device}`",
            )
        return folder

    def is_mounted(self) -> bool:
        """Whether this device, and no other one, is what is mounted on the folder."""
        try:
            seen = os.stat(self.point)
            return seen.st_ino == ROOT_INODE and seen.st_dev in self._numbers()
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Unmount it where this object mounted it."""
        if self._mounted_by_us and self.is_mounted():
            run(["umount", self.point], timeout=TIMEOUT)
        self._mounted_by_us = False

    def _mount(self) -> None:
        self.point.mkdir(parents=True, exist_ok=True)
        with _locked(self.point.parent):  # or two processes mount it at once, each with a loop device of its own
            if self.is_mounted():
                return
            self._check_point()
            self._check_device()
            loops = [] if self._is_block() else _find_loops(self.device)
            options = ["noatime", *([] if loops or self._is_block() else ["loop"])]
            if os.stat("/").st_dev in self._numbers() and os.statvfs("/").f_flag & os.ST_RDONLY:
                options.append("ro")  # it runs so, and is mounted in one way or not at all
            command: list[str | Path] = ["mount", "-t", "ext4", "-o", ",".join(options)]
            try:
                run([*command, loops[0] if loops else self.device, self.point], timeout=TIMEOUT)
            except CommandFailed as error:
                said = " ".join(error.output.split()) or str(error)
                raise self._cannot(
                    f"it cannot be mounted: {said}",
                    f"`e2fsck -f {self.device}` may repair it; an empty one (`mkfs.ext4`) is filled by the next update",
                ) from error
            self._mounted_by_us = True

    def _check_point(self) -> None:
        if os.stat(self.point).st_dev != os.stat(self.point.parent).st_dev:
            raise self._cannot(f"something else is mounted on {self.point}", f"`umount {self.point}`")
        if any(self.point.iterdir()):
            raise self._cannot(
                f"{self.point} holds files while nothing is mounted there", "they would be hidden: move them away"
            )

    def _check_device(self) -> None:
        where, magic = MAGIC
        hint = f"`mkfs.ext4 {self.device}` makes one, and empties it"
        if not self.device.exists():
            raise self._cannot("there is no such device or file", "see slots.devices in the configuration")
        with self.device.open("rb", buffering=0) as device:
            if os.pread(device.fileno(), len(magic), where) != magic:
                raise self._cannot("it holds no ext4 file system", hint)

    def _is_block(self) -> bool:
        return stat.S_ISBLK(os.stat(self.device).st_mode)

    def _numbers(self) -> set[int]:
        """The device numbers that a mount of it can have."""
        if self._is_block():
            return {os.stat(self.device).st_rdev}
        return {os.stat(loop).st_rdev for loop in _find_loops(self.device)}

    def _cannot(self, why: str, hint: str = "") -> OtaflowError:
        return OtaflowError(f"cannot use the partition {self.device} of slot {self.slot}: {why}", hint=hint)


def _find_loops(image: Path) -> list[Path]:
    """The loop devices of an image file, by its inode: its path may be another file's in another mount namespace."""
    seen = os.stat(image)
    found = []
    for record in Path("/sys/block").glob("loop*/loop/backing_file"):
        loop = Path("/dev", record.parts[3])
        with suppress(OSError):
            if _is_backed_by(loop, record, image, seen):
                found.append(loop)
    return found


def _is_backed_by(loop: Path, record: Path, image: Path, seen: os.stat_result) -> bool:
    try:
        return _read_backing_file(loop) == (seen.st_dev, seen.st_ino)
    except PermissionError:  # who is not root may look at slots that are mounted
        return os.path.samefile(record.read_text().rstrip("\n"), image)


def _read_backing_file(loop: Path) -> tuple[int, int]:
    """Device number and inode of a loop device's file. OSError: it has none."""
    fd = os.open(loop, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = fcntl.ioctl(fd, LOOP_GET_STATUS64, bytes(LOOP_INFO_BYTES))
    finally:
        os.close(fd)
    device, inode = struct.unpack_from("=QQ", info)
    return device, inode


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
