"""Running a package's up-down program: it cannot write to the running slot, and no process of it outlives it.

With root it runs in mount, PID and IPC namespaces of its own, where the protected folders are read-only mounts, without
the capabilities to undo that. It is a guard against a wrong program; a hostile one is kept out by the signature.
Without root nothing is enforced (`enforced()`), and left-over processes are found by a mark in their environment.
"""

import functools
import os
import signal
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from otaflow.errors import CommandFailed
from otaflow.platform.lock import end_left_over
from otaflow.platform.run import CANCELLED, TIMED_OUT, require_program, run

__all__ = ["CANCELLED", "TIMED_OUT", "end_left_over", "enforced", "run_program"]

MARK = "OTAFLOW_RUN"
QUIET_LOOKS = 3
NAMESPACES = [
    "unshare",
    *("--mount", "--pid", "--ipc", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation", "private", "--"),
]
# What would change the machine beside its files, or take the protection away. Kept: chown, setfcap, kill, net_bind…
DROPPED = [
    *("sys_admin", "sys_module", "sys_boot", "sys_time", "sys_rawio", "sys_ptrace", "sys_pacct", "syslog", "mknod"),
    *("dac_read_search", "mac_admin", "mac_override", "audit_control", "wake_alarm", "block_suspend"),
    *("bpf", "perfmon", "checkpoint_restore"),
]
# $1: the mark, $2: how many folders are writable, $3: how many are protected, then those, then the program.
# A writable folder becomes a mount of its own first; --rbind takes such mounts along, and the remount concerns the
# protected folder's own mount only. "/" cannot be bound over itself, but it is a mount already.
SETUP = """
set -e
mark=$1 writable=$2 protected=$3 drop=$4
shift 4
while [ "$writable" -gt 0 ]; do mount --bind -- "$1" "$1"; shift; writable=$((writable - 1)); done
while [ "$protected" -gt 0 ]; do
    [ "$1" = / ] || mount --rbind -- "$1" "$1"
    mount -o remount,bind,ro -- "$1"
    shift; protected=$((protected - 1))
done
here=$1
shift
cd -- "$here"
echo "$mark"
exec setpriv --bounding-set "$drop" -- sh -c '"$@"; exit $?' sh "$@"
"""


class Bounds(NamedTuple):
    """How long a program may run (seconds), who hears its lines, and who may stop it."""

    timeout: float
    output: Callable[[str], None] | None
    cancelled: Callable[[], bool] | None


def run_program(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout: float,
    writable: Sequence[Path],
    protected: Sequence[Path],
    output: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> int:
    """Run the program to its end: its exit status, or TIMED_OUT or CANCELLED when it was killed with all it started.

    With root it cannot write into the folders of `protected`, those in `writable` inside them excepted; folders that do
    not exist are left out. CommandFailed: it is missing, or the protection could not be set up.
    """
    bounds = Bounds(timeout, output, cancelled)
    try:
        if enforced():
            return _run_enclosed(argv, cwd, env, writable, protected, bounds)
        return _run_marked(argv, cwd, env, bounds)
    except CommandFailed as error:
        if error.returncode in (TIMED_OUT, CANCELLED):
            return error.returncode
        raise


@functools.cache
def enforced() -> bool:
    """Whether programs are really kept from writing to protected folders: root, with the right to mount."""
    if os.geteuid() != 0:
        return False
    try:
        return run([*NAMESPACES, "mount", "--bind", "/", "/"], timeout=30, check=False).returncode == 0
    except CommandFailed:
        return False


def _run_enclosed(
    argv: Sequence[str | Path],
    cwd: Path,
    env: Mapping[str, str],
    writable: Sequence[Path],
    protected: Sequence[Path],
    bounds: Bounds,
) -> int:
    require_program(str(argv[0]))
    mark = f"ready {uuid.uuid4()}"
    opened = sorted({path.resolve() for path in writable if path.exists()})
    folders = {path.resolve() for path in protected if path.exists()}
    closed = sorted((folders | _find_mounts(folders)) - set(opened))
    drop = ",".join(f"-{name}" for name in _known_capabilities(DROPPED))
    command: list[str | Path] = [*NAMESPACES, "sh", "-c", SETUP, "sh", mark, str(len(opened)), str(len(closed)), drop]
    command += [*opened, *closed, cwd, *argv]
    listener = _AfterMark(mark, bounds.output)
    ended = run(command, timeout=bounds.timeout, env=env, check=False, output=listener.take, cancelled=bounds.cancelled)
    if not listener.ready:
        reason = (ended.output.strip().splitlines() or ["no reason given"])[-1]
        raise CommandFailed(f"cannot protect the running slot from {argv[0]}: {reason}", output=ended.output)
    return ended.returncode


def _find_mounts(folders: set[Path]) -> set[Path]:
    """What is mounted inside the folders, except "/": a folder made read-only does not make its mounts so."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = {Path(line.split()[4].encode().decode("unicode_escape")) for line in lines}
    return {place for place in places for folder in folders if folder != Path("/") and folder in place.parents}


def _run_marked(argv: Sequence[str | Path], cwd: Path, env: Mapping[str, str], bounds: Bounds) -> int:
    mark = str(uuid.uuid4())
    try:
        return run(
            argv,
            timeout=bounds.timeout,
            cwd=cwd,
            env={**env, MARK: mark},
            check=False,
            output=bounds.output,
            cancelled=bounds.cancelled,
        ).returncode
    finally:
        kill_marked(mark)


def kill_marked(mark: str, seconds: float = 5.0) -> None:
    """SIGKILL every process of ours that was started with the mark, and those it starts meanwhile."""
    deadline, quiet = time.monotonic() + seconds, 0
    # a process has no readable environment for the moment in which it starts a program: one quiet look is not enough
    while quiet < QUIET_LOOKS and time.monotonic() < deadline:
        left = _find_marked(mark)
        quiet = 0 if left else quiet + 1
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _find_marked(mark: str) -> list[int]:
    needle = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                if needle in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
    return found


@functools.cache
def _last_capability() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())


def _known_capabilities(names: Sequence[str]) -> list[str]:
    """Those of `names` that this kernel has: setpriv refuses the others."""
    newest = {"bpf": 39, "perfmon": 38, "checkpoint_restore": 40}
    return [name for name in names if newest.get(name, 0) <= _last_capability()]


class _AfterMark:
    """Lets a program's lines through from the moment that the protection stands; its end is seen by `ready`."""

    def __init__(self, mark: str, output: Callable[[str], None] | None) -> None:
        self._mark = mark
        self._output = output
        self.ready = False

    def take(self, line: str) -> None:
        if not self.ready:
            self.ready = line == self._mark
        elif self._output is not None:
            self._output(line)
