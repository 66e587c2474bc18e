"""The one door to other programs: list arguments, logged as a shell line, a time limit, nothing left behind.

Each child has stdin closed, its own session, a clean environment (PATH, LANG and what the caller gives) and dies with
us: `setpriv --pdeathsig KILL` is bound to the thread that forked, and `run` waits in that thread. Descriptors in
`INHERITED` (the device's lock) are passed to every child, so that the lock is held until the last child of a killed
otaflow is gone.
"""

import logging
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from otaflow.errors import CommandFailed

log = logging.getLogger("otaflow.run")

KEPT_OUTPUT = 64 * 1024
POLL_SECONDS = 0.2
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEBIAN_PACKAGES = {
    "btrfs": "btrfs-progs",
    "mkfs.btrfs": "btrfs-progs",
    "ostree": "ostree",
    "tar": "tar",
    "cp": "coreutils",
    "sh": "dash",
    "mount": "mount",
    "umount": "mount",
    "losetup": "mount",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "systemctl": "systemd",
    "journalctl": "systemd",
    "systemd-nspawn": "systemd-container",
    "fw_printenv": "libubootenv-tool",
    "fw_setenv": "libubootenv-tool",
    "nginx": "nginx",
    "openssl": "openssl",
    "pg_dump": "postgresql-client",
    "pg_restore": "postgresql-client",
    "psql": "postgresql-client",
}
INHERITED: set[int] = set()
# `returncode` of a CommandFailed whose program was killed by us; no exit status has these numbers
TIMED_OUT = 256
CANCELLED = 257


class Completed(NamedTuple):
    """How a program ended: its exit status (minus the signal's number when one killed it) and its last 64 KiB."""

    returncode: int
    output: str


def inherit(fd: int) -> None:
    """Pass the descriptor `fd` to every program that is started from now on."""
    INHERITED.add(fd)


def disinherit(fd: int) -> None:
    """Pass `fd` to no more programs."""
    INHERITED.discard(fd)


def run(
    args: Sequence[str | Path],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
    output: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Completed:
    """Run a program to its end; stdout and stderr are one stream, given line by line to `output`.

    CommandFailed: it is missing, it did not end within `timeout` seconds (its returncode is TIMED_OUT), `cancelled()`
    became true (CANCELLED), or, with `check`, its exit status is not 0. What does not end in time is killed with its
    whole session and all descendants.
    """
    words = [str(word) for word in args]
    environment = clean_environment(env)
    require_program(words[0], environment["PATH"])
    log.debug("%s", shlex.join(words))
    started = time.monotonic()
    # no `with`: leaving it would wait for ever for a child that cannot be killed
    child = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=environment,
        start_new_session=True,
        pass_fds=(*pass_fds, *INHERITED),
    )
    lines = _Lines(output)
    try:
        why = _follow(child, lines, started + timeout, cancelled)
        lines.end()
    except BaseException:
        kill_session(child.pid)
        raise
    finally:
        if child.stdout is not None:
            child.stdout.close()
    if why is not None:
        kill_session(child.pid)
        child.wait()
        reason = "it was cancelled" if why == CANCELLED else f"it did not end within {timeout:g} s"
        raise CommandFailed(f"cannot finish `{shlex.join(words)}`: {reason}", output=lines.text, returncode=why)
    status = child.wait()
    log.debug("%s: status %d, %.3f s", Path(words[0]).name, status, time.monotonic() - started)
    if check and status != 0:
        said = lines.text.strip().splitlines()
        reason = f"{_ending(status)}: {said[-1]}" if said else _ending(status)
        raise CommandFailed(f"cannot run `{shlex.join(words)}`: {reason}", output=lines.text, returncode=status)
    return Completed(status, lines.text)


class Server(NamedTuple):
    """A program that runs beside us: its process id and, since ids are used again, when it started (Unix time)."""

    pid: int
    started: float


def start(args: Sequence[str | Path], *, env: Mapping[str, str], log: Path, outlives: bool = False) -> Server:
    """Start a program that runs beside us, its output in the file `log`; it dies with us, unless it `outlives` us.

    It does not hold the device's lock. CommandFailed when there is no such program.
    """
    import psutil  # slow to import, and rarely needed

    words = [str(word) for word in args]
    environment = clean_environment(env)
    require_program(words[0], environment["PATH"])
    with log.open("ab") as output:
        child = subprocess.Popen(
            words if outlives else ["setpriv", "--pdeathsig", "KILL", "--", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Server(child.pid, psutil.Process(child.pid).create_time())


def is_running(server: Server) -> bool:
    """Whether the server runs, and not another process of its number."""
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(server.pid)
        return process.create_time() == server.started and process.status() != psutil.STATUS_ZOMBIE
    return False


def stop(server: Server, *, timeout: float = 10) -> None:
    """End a server of `start`: SIGTERM, after `timeout` seconds SIGKILL, to all that it started too."""
    import psutil

    if not is_running(server):
        return
    with suppress(psutil.Error):
        process = psutil.Process(server.pid)
        process.terminate()
        process.wait(timeout)
    kill_session(server.pid)


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every child: our PATH (with the sbin folders), a fixed LANG, and `extra`."""
    paths = os.environ.get("PATH", DEFAULT_PATH).split(":")
    paths += [folder for folder in DEFAULT_PATH.split(":") if folder not in paths]
    return {"PATH": ":".join(filter(None, paths)), "LANG": "C.UTF-8", **(extra or {})}


def require_program(name: str, path: str | None = None) -> None:
    """CommandFailed, with the Debian package to install, when there is no program `name`."""
    path = path or clean_environment()["PATH"]
    for program in ("setpriv", name):
        if shutil.which(program, path=path) is None:
            package = DEBIAN_PACKAGES.get(Path(program).name)
            hint = f"apt-get install {package}" if package else "check the name and the file's mode"
            raise CommandFailed(f"cannot run {program}: there is no such program", hint=hint)


def kill_session(leader: int) -> None:
    """SIGKILL the process `leader`, its session and all its descendants, also those in a session of their own."""
    import psutil  # slow to import, and rarely needed

    doomed = {leader}
    with suppress(psutil.Error):
        doomed |= {child.pid for child in psutil.Process(leader).children(recursive=True)}
    for pid in psutil.pids():
        with suppress(OSError):
            if os.getsid(pid) == leader:
                doomed.add(pid)
    with suppress(OSError):
        os.killpg(leader, signal.SIGKILL)
    for pid in doomed:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _follow(
    child: "subprocess.Popen[bytes]", lines: "_Lines", deadline: float, cancelled: Callable[[], bool] | None
) -> int | None:
    """Read until the child ends: None. TIMED_OUT or CANCELLED when it has to be killed."""
    assert child.stdout is not None
    pipe = child.stdout.fileno()
    os.set_blocking(pipe, False)
    pidfd = os.pidfd_open(child.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            selector.register(pidfd, selectors.EVENT_READ)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    return TIMED_OUT
                if cancelled is not None and cancelled():
                    return CANCELLED
                ready = {key.fd for key, _ in selector.select(left if cancelled is None else min(left, POLL_SECONDS))}
                if pidfd in ready:
                    # what it wrote is in the pipe; a descendant may hold the pipe open for ever, so no wait for its end
                    while lines.read(pipe):
                        pass
                    return None
                if pipe in ready and lines.read(pipe) is None:
                    selector.unregister(pipe)
    finally:
        os.close(pidfd)


class _Lines:
    """What a program says: the last 64 KiB in memory, each whole line to the listener."""

    def __init__(self, listener: Callable[[str], None] | None) -> None:
        self._listener = listener
        self._kept = bytearray()
        self._line = bytearray()

    @property
    def text(self) -> str:
        return self._kept[-KEPT_OUTPUT:].decode(errors="replace")

    def read(self, fd: int) -> bool | None:
        """Take what is there: True if something was, False if nothing yet, None at the end."""
        try:
            piece = os.read(fd, KEPT_OUTPUT)
        except BlockingIOError:
            return False
        if not piece:
            return None
        self._kept += piece
        del self._kept[: -2 * KEPT_OUTPUT]
        if self._listener is not None:
            *whole, rest = (bytes(self._line) + piece).split(b"\n")
            # a line without end must not fill the memory either
            self._line = bytearray(rest[-KEPT_OUTPUT:])
            for line in whole:
                self._listener(line.decode(errors="replace"))
        return True

    def end(self) -> None:
        """Hand over the last line, which may have no line end."""
        if self._line and self._listener is not None:
            self._listener(self._line.decode(errors="replace"))
            self._line.clear()


def _ending(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
