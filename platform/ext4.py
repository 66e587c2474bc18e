"""What boot loaders need of an ext4: they read it without its journal.

GRUB and U-Boot see what is in its place on the disk. What fsync and syncfs make durable may be in the journal only,
which Linux replays when it mounts the file system after a power cut, and a boot loader does not.
"""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

EXT4_IOC_CHECKPOINT = 0x4004662B  # _IOW('f', 43, __u32), since Linux 5.14
ELSE = {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV}
"""Linux is older, it is another file system, or it has no journal: a syncfs ends with writes that are not flushed."""


def show_to_boot_loaders(folder: Path) -> None:
    """Have the file system of `folder`, all of which is synced, write what is in its journal to its place.

    OSError: it cannot. Other file systems need not.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, EXT4_IOC_CHECKPOINT, bytes(4))
    except OSError as error:
        if error.errno in ELSE:
            _flush_device(os.fstat(fd).st_dev)
        elif error.errno != errno.EPERM:  # no root, as in a test
            raise
    finally:
        os.close(fd)


def _flush_device(number: int) -> None:
    """What is in the journal is in the device's cache, too, for its place: all of that is written.

    Where no device is behind the file system (tmpfs, btrfs) there is nothing to do, and as no root nothing can be.
    """
    facts = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/uevent")
    with suppress(FileNotFoundError, PermissionError):
        values = dict(line.split("=", 1) for line in facts.read_text().splitlines())
        fd = os.open(Path("/dev", values["DEVNAME"]), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
