"""A disk that remembers: every write and flush that a file system makes is logged, and what a power cut leaves is made
of the log.

file system → loop device (direct I/O) → nbdfuse → nbdkit with recording_plugin.py → a sparse file in memory. What a
power cut leaves is everything up to the last flush before it, and any part of what was written since: a disk keeps its
cache as it likes, and may tear a write at a sector.
"""

import contextlib
import functools
import os
import random
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MEMORY = Path("/dev/shm")
HEAD = struct.Struct("<cQI")
PLUGIN = Path(__file__).with_name("recording_plugin.py")
NEEDED = ("nbdkit", "nbdfuse", "losetup", "mkfs.btrfs", "mkfs.ext4")
SECTOR = 4096
"""What a disk writes whole: flash and present disks do; a torn superblock of btrfs could not be started from."""
FORMAT = {
    # one copy of the metadata: nothing that is torn is mended by another copy
    "btrfs": ["mkfs.btrfs", "-q", "-m", "single"],
    "ext4": ["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
}
DISK = 512 * 2**20
Parts = Sequence[tuple[int, int]]
"""Where each part of a disk begins, and how long it is, in bytes."""


def what_is_missing() -> str:
    """Why there can be no recording disk here; empty where there can."""
    if os.geteuid() != 0:
        return "a recording disk needs root"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    missing += [name for name in ("/dev/fuse", "/dev/loop-control", "/dev/shm") if not os.path.exists(name)]
    if (
        not missing
        and subprocess.run(["nbdkit", "--dump-plugin", "python"], check=False, capture_output=True).returncode
    ):
        missing = ["nbdkit's plugin for Python"]
    return f"a recording disk needs {', '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Entry:
    """A write (its place in the disk, and in the log), or a flush (`length` 0); `end` is the log's length after it."""

    offset: int
    start: int
    length: int
    end: int

    @property
    def is_flush(self) -> bool:
        return self.length == 0


class Log:
    """A recorded log: moments are lengths of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_bytes()
        self.entries = list(self._parse())
        self.ends = [entry.end for entry in self.entries]

    def _parse(self) -> Iterator[Entry]:
        place = 0
        while place + HEAD.size <= len(self.content):
            _, offset, length = HEAD.unpack_from(self.content, place)
            start = place + HEAD.size
            place = start + length
            yield Entry(offset, start, length, place)

    def data(self, entry: Entry, length: int | None = None) -> bytes:
        """What the entry writes, or the first `length` bytes of it."""
        return self.content[entry.start : entry.start + (entry.length if length is None else length)]

    @functools.cached_property
    def flushes(self) -> list[int]:
        return [number for number, entry in enumerate(self.entries) if entry.is_flush]


class Rest:
    """What power cuts leave of a recorded disk; ask for moments in their order, as the durable part only grows."""

    def __init__(self, base: Path, log: Log, folder: Path) -> None:
        self.log, self.folder = log, folder
        self.durable = folder / "durable.img"
        copy_sparse(base, self.durable)
        self._done = 0

    def cut(self, number: int, chance: random.Random) -> Path:
        """The image that is left when the power goes after `number` entries of the log."""
        log = self.log
        last = max((flush for flush in log.flushes if flush < number), default=-1)
        with self.durable.open("r+b") as disk:
            for entry in log.entries[self._done : last + 1]:
                if not entry.is_flush:
                    os.pwrite(disk.fileno(), log.data(entry), entry.offset)
        self._done = max(self._done, last + 1)
        image = self.folder / "crash.img"
        copy_sparse(self.durable, image)
        share = chance.choice((0.0, 0.5, 0.5, 0.9, 1.0))
        with image.open("r+b") as disk:
            for entry in log.entries[last + 1 : number]:
                if chance.random() < share:
                    torn = share < 1 and entry.length >= 2 * SECTOR and chance.random() < 0.25
                    length = SECTOR * chance.randrange(1, entry.length // SECTOR) if torn else entry.length
                    os.pwrite(disk.fileno(), log.data(entry, length), entry.offset)
        return image


def copy_sparse(source: Path, target: Path) -> None:
    """Copy what is allocated of a file; holes stay holes."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        start = 0
        while start < size:
            try:
                start = os.lseek(reader.fileno(), start, os.SEEK_DATA)
            except OSError:  # only a hole is left
                return
            end = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            while start < end:
                done = os.sendfile(writer.fileno(), reader.fileno(), start, end - start) if _seek(writer, start) else 0
                start += done


def _seek(writer: "object", start: int) -> bool:
    os.lseek(writer.fileno(), start, os.SEEK_SET)  # type: ignore[attr-defined]
    return True


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="otaflow-power-", dir=MEMORY) as folder:
        yield Path(folder)


def make_disk(image: Path, kind: str, parts: Parts = ()) -> None:
    """An empty file system of `kind` in the sparse file `image`, or one in each of the `parts` of the disk."""
    with image.open("wb") as file:
        file.truncate(DISK)
    if not parts:
        subprocess.run([*FORMAT[kind], image], check=True, stdout=subprocess.DEVNULL)
    for start, size in parts:
        where = ["-E", f"offset={start}", image, f"{size // 1024}k"]
        subprocess.run([*FORMAT[kind], *where], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def recording(image: Path, log: Path, folder: Path) -> Iterator[str]:
    """The disk in the file `image` as a block device whose writes go to `log`; its name, such as /dev/loop7."""
    socket, node = folder / "nbd.sock", folder / "nbd.disk"
    node.touch()
    with contextlib.ExitStack() as stack:
        server = subprocess.Popen(
            ["nbdkit", "-f", "-U", socket, "--filter=nozero", "python", PLUGIN, f"img={image}", f"log={log}"],
            stderr=(folder / "nbdkit.err").open("w"),
        )
        stack.callback(_end, server)
        _wait(socket.exists, server, folder / "nbdkit.err")
        bridge = subprocess.Popen(
            ["nbdfuse", node, f"nbd+unix:///?socket={socket}"], stderr=(folder / "nbdfuse.err").open("w")
        )
        stack.callback(_end, bridge)
        stack.callback(_unmount, node)  # which ends the bridge
        _wait(lambda: str(node) in Path("/proc/mounts").read_text(), bridge, folder / "nbdfuse.err")
        device = subprocess.run(
            ["losetup", "-f", "--show", "--direct-io=on", node], check=True, capture_output=True, text=True
        ).stdout.strip()
        stack.callback(_detach, device)
        yield device


def _wait(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", errors: Path) -> None:
    end = time.monotonic() + 60
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args!r} does not come up: {errors.read_text()}")
        time.sleep(0.01)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait()


def _detach(device: str) -> None:
    """Who mounted it is gone, with a mount namespace of its own; the kernel takes a moment to see that."""
    subprocess.run(["losetup", "-d", device], check=False, capture_output=True)
    backing = Path("/sys/block", Path(device).name, "loop/backing_file")
    end = time.monotonic() + 60
    while backing.exists() and time.monotonic() < end:
        time.sleep(0.01)


def _unmount(node: Path) -> None:
    end = time.monotonic() + 60
    while subprocess.run(["umount", node], check=False, capture_output=True).returncode:
        if time.monotonic() > end:
            raise RuntimeError(f"cannot unmount {node}")
        time.sleep(0.02)
