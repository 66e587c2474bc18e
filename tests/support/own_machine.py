"""A function run as on a machine of its own: mounts, shared memory and processes go with it, as at a power cut.

The kernel gives it a boot id of its own; a device under test is mounted at the same place on every machine.
"""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from recording_disk import Parts

NEW_MOUNTS, NEW_IPC, NEW_PROCESSES = 0x00020000, 0x08000000, 0x20000000
DEVICES = Path("/media")
"""Where a machine's further parts are, on a tmpfs of its own."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NAME_OF_BOOT_ID = "OTAFLOW_TEST_BOOT_ID"


class MachineFailed(Exception):
    """The function did not return; the text is what it raised."""


def run_machine(
    image: str | Path,
    top: Path,
    work: Callable[[], Any],
    *,
    options: str = "",
    parts: Parts = (),
    log: Path,
) -> Any:
    """Mount `image` (a file or a block device) at `top`, and return what `work` returns there (plain data).

    Of a disk with `parts` (begin and length, in bytes) the first one is mounted; DEVICES/1 is the second one.

    Its output goes to `log`. Raises MachineFailed, with `unmountable: …` where the image cannot be mounted.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_machine(_Disk(image, top, options, parts), work, log, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise MachineFailed(f"it died: {log.read_text()[-2000:]}")
    value = json.loads(answer)
    if "failed" in value:
        raise MachineFailed(value["failed"])
    return value["returned"]


def begin_boot() -> None:
    """Give this machine another boot id, as a restart does."""
    Path(os.environ[NAME_OF_BOOT_ID]).write_text(f"{uuid4()}\n")


@dataclass(frozen=True)
class _Disk:
    image: str | Path
    top: Path
    options: str
    parts: Parts


def _be_machine(disk: _Disk, work: Callable[[], Any], log: Path, writer: int) -> None:
    """Never returns. The first process of the new name space only waits: when it ends, all others are killed."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, fd in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(fd, number)
    _unshare()
    first = os.fork()
    if first:
        os.close(writer)
        os.waitpid(first, 0)
        os._exit(0)
    worker = os.fork()
    if worker == 0:
        _work(disk, work, log, writer)
    os.close(writer)
    while True:
        with contextlib.suppress(ChildProcessError):
            if os.wait()[0] != worker:
                continue
        os._exit(0)


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS | NEW_IPC | NEW_PROCESSES):
        raise OSError(ctypes.get_errno(), "cannot unshare")


def _work(disk: _Disk, work: Callable[[], Any], log: Path, writer: int) -> None:
    try:
        answer = {"returned": _start(disk, log) or work()}
    except MachineFailed as error:
        answer = {"failed": str(error)}
    except BaseException:
        answer = {"failed": traceback.format_exc()}
    os.write(1, b"\n")
    sys.stdout.flush()
    with os.fdopen(writer, "w") as pipe:
        json.dump(answer, pipe, default=str)
    os._exit(0)


def _start(disk: _Disk, log: Path) -> None:
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "proc", "proc", "/proc")
    boot_id = log.with_suffix(".boot")
    os.environ[NAME_OF_BOOT_ID] = str(boot_id)
    begin_boot()
    _run("mount", "--bind", str(boot_id), str(BOOT_ID))
    devices = _open_parts(disk) or [disk.image]
    chosen = ["noatime", *([disk.options] if disk.options else []), *(["loop"] if Path(devices[0]).is_file() else [])]
    command = ["mount", "-o", ",".join(chosen), devices[0], disk.top]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise MachineFailed(f"unmountable: {done.stderr.strip()[:200]}")


def _open_parts(disk: _Disk) -> list[Path]:
    """A loop device for each part; it goes with the machine, which has it open."""
    found: list[Path] = []
    if disk.parts:
        _run("mount", "-t", "tmpfs", "tmpfs", str(DEVICES))
    for number, (start, size) in enumerate(disk.parts):
        place = [f"--offset={start}", f"--sizelimit={size}", "--direct-io=on", str(disk.image)]
        loop = Path(_run("losetup", "--find", "--show", *place).strip())
        os.open(loop, os.O_RDONLY)  # kept open, on purpose
        _run("losetup", "--detach", str(loop))  # when it is closed everywhere
        (DEVICES / str(number)).symlink_to(loop)
        found.append(loop)
    return found


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
