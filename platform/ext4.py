"""What boot loaders need of an ext4: they read it without its journal.

GRUB and U-Boot see what is in its place on the disk. What fsync and syncfs make durable may be in the journal only,
which Linux replays when it mounts the file system after a power cut, and a boot loader does not.
"""

import errno
import fcntl
import os
from pathlib import Path

EXT4_IOC_CHECKPOINT = 0x4004662B  # _IOW('f', 43, __u32), since Linux 5.14
# another file system, or ext4 without a journal; not root, as in a test
NO_JOURNAL = {errno.ENODEV, errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}


def show_to_boot_loaders(folder: Path) -> None:
    """Have the file system of `folder` write what is in its journal to its place. OSError: it cannot.

    Linux before 5.14 cannot be asked to, and other file systems need not: nothing is done then.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, EXT4_IOC_CHECKPOINT, bytes(4))
    except OSError as error:
        if error.errno not in NO_JOURNAL:
            raise
    finally:
        os.close(fd)
