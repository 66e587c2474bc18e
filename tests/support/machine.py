"""A machine with a real systemd as PID 1: systemd-nspawn over a small root folder and this machine's own /usr.

Nothing is downloaded or unpacked: the root folder holds a made /etc and empty folders (some 200 small files), /usr is
this machine's, bound read-only. So every Debian program that is installed here is there too, and Python with the
project's virtual environment, at the same paths. Of the units and generators that /usr brings, only those needed to
boot are left unmasked, whatever else is installed. A boot takes a third of a second.

What it cannot show: a boot loader, a kernel, a power cut (`kill` loses nothing that was written), limits of cgroups.

    machine = Machine(make_root(folder), shares={data: "/data"})
    machine.boot()
    status, output = machine.run(["systemctl", "is-active", "notes.service"])
    machine.reboot()
    machine.stop()

All of it lives in namespaces and a cgroup of its own and dies with the process that made it: no mount of it is seen
outside, and a machine in there cannot touch the clock, modules or power of this one.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from processes import wait_ended

from otaflow.platform.run import clean_environment, run

PROJECT = Path(__file__).parents[2]
UNITS = Path("/usr/lib/systemd/system")
FOLDERS = ("dev", "etc", "mnt", "opt", "proc", "root", "run", "sys", "tmp", "usr", "var/log/journal")
# on btrfs systemd makes these subvolumes, unless they are there; a slot that has some cannot be removed simply
FOLDERS += ("srv", "home", "var/tmp", "var/lib/machines", "var/lib/portables")
LINKED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
COPIED = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "alternatives", "ssl", "mke2fs.conf", "dbus-1", "pam.d")
# what is wanted at boot, of all that /usr wants; the rest is masked
WANTED = {
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
    "systemd-journal-flush.service",
    "systemd-tmpfiles-setup.service",
    "systemd-initctl.socket",
}
# never given to what runs inside: it would set the clock, or end the system, of the machine outside
DROPPED = "-sys_time,-sys_module,-sys_boot"
REBOOTED = 133
POWER_OFF, REBOOT = signal.SIGRTMIN + 4, signal.SIGRTMIN + 5
_numbers = itertools.count()


class Result(NamedTuple):
    """How a command inside ended: its exit status, its output and errors as one text."""

    status: int
    output: str


def make_root(folder: Path) -> Path:
    """Make `folder` the root of a machine that boots; it may be a btrfs subvolume, or copied afterwards."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        if Path("/", name).is_symlink():
            (folder / name).symlink_to(os.readlink(Path("/", name)))
    etc = folder / "etc"
    for name in COPIED:
        source = Path("/etc", name)
        if source.is_dir():
            shutil.copytree(source, etc / name, symlinks=True)
        elif source.exists():
            shutil.copy2(source, etc / name)
    shutil.copy("/usr/lib/os-release", etc / "os-release")  # looked for before /usr is there
    (etc / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (etc / "hostname").write_text("device\n")
    (etc / "fstab").write_text("")
    (folder / "tmp").chmod(0o1777)
    _mask(etc / "systemd")
    return folder


def _mask(systemd: Path) -> None:
    """Let a boot start what WANTED names and nothing else of what /usr has."""
    units = systemd / "system"
    units.mkdir(parents=True)
    (units / "default.target").symlink_to(UNITS / "multi-user.target")
    for link in UNITS.glob("*.wants/*"):
        if link.name not in WANTED and not (units / link.name).is_symlink():
            (units / link.name).symlink_to("/dev/null")
    # tests fail services on purpose, and may wait for none of them
    (systemd / "system.conf").write_text("[Manager]\nShowStatus=no\nDefaultTimeoutStopSec=20s\n")
    (systemd / "journald.conf").write_text("[Journal]\nStorage=persistent\nSyncIntervalSec=1\nRateLimitBurst=0\n")
    masked = systemd / "system-generators"
    masked.mkdir()
    for generator in Path("/usr/lib/systemd/system-generators").glob("*"):
        (masked / generator.name).symlink_to("/dev/null")


def python_folders() -> list[Path]:
    """The folders that this Python and the project need, outside /usr: all seen inside, read-only."""
    found: list[Path] = []
    for path in sorted({PROJECT, Path(sys.prefix), Path(sys.base_prefix)}):
        if not path.is_relative_to("/usr") and not any(path.is_relative_to(parent) for parent in found):
            found.append(path)
    return found


class Machine:
    """One machine. `root` is what it boots from next: a test that plays boot loader changes it before a `reboot`.

    `shares` are folders outside, writable, and where they are inside; a file system in one is mounted before the boot.
    `options` are more of systemd-nspawn's. What is said on the console goes to the file `console`.
    """

    def __init__(
        self,
        root: Path,
        *,
        shares: Mapping[Path, str] | None = None,
        private_network: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        self.root = root
        self.shares = dict(shares or {})
        self.options = [*options, *(["--private-network"] if private_network else [])]
        self.name = f"otaflow-{os.getpid()}-{next(_numbers)}"
        self.console = root.parent / f"{self.name}.console"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init: psutil.Process | None = None

    def boot(self, *, wait: bool = True, timeout: float = 180) -> None:
        """Start it; return when it has booted, or with `wait=False` as soon as commands can be run."""
        assert self._nspawn is None, "it is on already"
        _remove_litter()
        folders = [_make_folder(top / self.name) for top in _cgroups()]
        join = "".join(f"echo $$ >{folder}/cgroup.procs; " for folder in folders)
        binds = [f"--bind-ro={folder}" for folder in ("/usr", *python_folders())]
        for outside, inside in self.shares.items():
            # a share in which the root is, too, is shown without what is mounted there
            flag = ":norbind" if self.root.is_relative_to(outside) else ""
            binds.append(f"--bind={outside}:{inside}{flag}")
        nspawn = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"]
        nspawn += ["--kill-signal=SIGRTMIN+3", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        nspawn += [f"--machine={self.name}", f"--directory={self.root}", *binds, *self.options]
        # when we die, setpriv has unshare killed, and unshare the first process of its namespace: all of it is gone
        outer = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with self.console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                ["sh", "-c", f'{join}exec "$@"', "sh", *outer, *nspawn],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                # with the older hierarchy systemd is not told when a service's last process ends
                env=clean_environment({"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}),
            )
        deadline = time.monotonic() + timeout
        while not self._is_up():
            assert self._nspawn.poll() is None, f"it did not boot:\n{self.console.read_text(errors='replace')}"
            assert time.monotonic() < deadline, f"no systemd:\n{self.console.read_text(errors='replace')}"
            time.sleep(0.01)
        if wait:
            self.run(["systemctl", "is-system-running", "--wait"], timeout=timeout)

    def _is_up(self) -> bool:
        """Whether PID 1 is systemd and listens to systemctl."""
        with suppress(psutil.Error, OSError):
            for process in psutil.Process(self._nspawn.pid).children(recursive=True) if self._nspawn else []:
                status = Path("/proc", str(process.pid), "status").read_text()
                # 1 in the innermost namespace, and not unshare's own first process
                numbers = status.split("NSpid:")[1].split("\n")[0].split()
                if numbers[-1] == "1" and len(numbers) > 2 and process.name() == "systemd":
                    self._init = process
                    return self.path("/run/systemd/private").exists()
        return False

    @property
    def pid(self) -> int:
        """PID 1's process id outside."""
        assert self._init is not None
        assert self._init.is_running(), "it is off"
        return self._init.pid

    @property
    def has_gone(self) -> bool:
        """Whether it has gone down by itself, to start again, and nobody has taken note of that."""
        return self._nspawn is not None and self._nspawn.poll() == REBOOTED

    def path(self, inside: str | Path) -> Path:
        """Where a file of the machine is outside; while it is on, its /run, /tmp and shares too. No symbolic links."""
        top = Path("/proc", str(self.pid), "root") if self._nspawn is not None else self.root
        return top / str(inside).lstrip("/")

    def run(self, args: Sequence[str | Path], *, timeout: float = 180, env: Mapping[str, str] | None = None) -> Result:
        """Run a command inside, as root, in no service's cgroup. CommandFailed when it does not end in time."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "--wdns=/"]
        enter += ["setpriv", f"--bounding-set={DROPPED}", "--inh-caps=-all", "--pdeathsig", "KILL", "--"]
        done = run([*enter, *args], timeout=timeout, env=env, check=False)
        return Result(done.returncode, done.output)

    def check(self, args: Sequence[str | Path], *, timeout: float = 180, env: Mapping[str, str] | None = None) -> str:
        """The output of a command that has to end well."""
        status, output = self.run(args, timeout=timeout, env=env)
        assert status == 0, f"{args}: status {status}: {output}"
        return output

    def python(self, code: str | Path, *args: object, timeout: float = 180) -> Result:
        """Run code, or a script's file as it is seen inside, with this Python and the project."""
        script = [code] if isinstance(code, Path) else ["-c", code]
        # -B: what is bound read-only takes no compiled files
        return self.run([sys.executable, "-B", *script, *map(str, args)], timeout=timeout)

    def reboot(self, *, timeout: float = 180) -> None:
        """As by `systemctl reboot` inside, and booted again (from `root`)."""
        self.ask_for(REBOOT)
        status = self.wait_off(timeout=timeout)
        assert status == REBOOTED, f"no reboot, but {status}"
        self.boot(timeout=timeout)

    def ask_for(self, what: int) -> None:
        """REBOOT or POWER_OFF. Not by a command inside: nsenter, stopped with it in the end, would never go on."""
        os.kill(self.pid, what)

    def wait_off(self, *, timeout: float = 180) -> int:
        """Wait until it goes off by itself: REBOOTED if it wants to be booted again, 0 if it was switched off."""
        assert self._nspawn is not None
        try:
            return self._nspawn.wait(timeout)
        finally:
            self.kill()

    def stop(self, *, timeout: float = 30) -> None:
        """Switch it off, as a user would; by force when that takes too long."""
        if self._nspawn is None:
            return
        with suppress(psutil.Error, subprocess.TimeoutExpired):
            if self._init is not None and self._init.is_running():
                self._init.send_signal(POWER_OFF)
                self._nspawn.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """End it at once, as with the plug pulled, except that nothing of what was written is lost."""
        if self._nspawn is None:
            return
        inside: list[psutil.Process] = []
        with suppress(psutil.Error):
            inside = psutil.Process(self._nspawn.pid).children(recursive=True)
        for process in inside:
            with suppress(psutil.Error):
                process.kill()
        self._nspawn.kill()
        self._nspawn.wait()
        left = [process for process in inside if not wait_ended(process.pid)]
        self._nspawn = self._init = None
        for folder in _places(self.name):
            _remove_folders(folder)
        assert left == []


def _cgroups() -> list[Path]:
    """The tops of the hierarchies in which systemd keeps its services: the unified one, and its own of former times."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(f[1]) for f in lines if f[2] == "cgroup2" or (f[2] == "cgroup" and "name=systemd" in f[3].split(","))]


def _places(name: str) -> list[Path]:
    """What is left of the machines of this name, or pattern, when they are off."""
    tops = [*_cgroups(), Path("/run/systemd/nspawn/propagate")]
    return [path for top in tops for path in top.glob(name)]


def _remove_litter() -> None:
    """Remove what machines left whose test was killed."""
    for folder in _places("otaflow-*-*"):
        if not Path("/proc", folder.name.split("-")[1]).exists():
            _remove_folders(folder)


def _make_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _remove_folders(folder: Path) -> None:
    """Remove empty folders, or a cgroup with all below it; its last processes may need a moment to be gone."""
    for _ in range(500):
        with suppress(OSError):
            for path, _folders, _files in os.walk(folder, topdown=False):
                os.rmdir(path)
        if not folder.exists():
            return
        time.sleep(0.01)
