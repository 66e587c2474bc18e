"""Runs one service in place of systemd: `python supervisor.py TURN FOLDER NAME`, a process that outlives its starter.

It imports the standard library only: it is small, starts fast, and what it runs does not depend on a version of
otaflow that is replaced meanwhile. In `FOLDER`: `NAME.plan` is what to run (JSON, removed once it is read), `NAME.json`
what became of it (replaced at each change), `NAME.lock` is locked as long as it lives, so that there is one. `TURN`
is a descriptor that it closes once `NAME.json` is written: who waits for that lock finds it.

All processes of the service are its descendants: it is their subreaper, so one that calls setsid and loses its parent
is still below it. They also have `MARK` in their environment, by which they are found when it was killed; the main
process is told then (PR_SET_PDEATHSIG). Signals to it: TERM stops, HUP reloads, USR1 writes `NAME.json` again.
"""

import ctypes
import fcntl
import json
import os
import pwd
import re
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

MARK = "OTAFLOW_SERVICE"
BUSY = 75
"""Exit status: another supervisor runs this service."""
KEPT_WORDS = 2000
KILL_SECONDS = 10.0
PIECE = 64 * 1024
HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
TITLE = "otaflow-service"
"""The name (`ps -o comm`) of a supervisor that takes signals; before that it has Python's."""


# --- processes, from /proc: also for those who look for a supervisor ----------------------------------------------


class Process(NamedTuple):
    """A process: `started` is in clock ticks after the boot, which no change of the clock moves."""

    pid: int
    parent: int
    started: int


def read_process(pid: int) -> Process | None:
    """The process `pid`; None when there is none, or only its zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # the name may hold spaces and parentheses
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else Process(pid, int(fields[1]), int(fields[19]))


def read_processes() -> Iterator[Process]:
    """All processes that live."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := read_process(int(name))) is not None:
            yield process


def read_family(pid: int) -> list[Process]:
    """All living descendants of `pid`."""
    children: dict[int, list[Process]] = {}
    for process in read_processes():
        children.setdefault(process.parent, []).append(process)
    found, parents = [], [pid]
    while parents:
        below = children.pop(parents.pop(), [])
        found += below
        parents += [process.pid for process in below]
    return found


def read_boot() -> str:
    """Which boot this is: the numbers of processes mean nothing in another one."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def send(process: Process, number: int) -> bool:
    """Signal this process, never another one that has its number now. False: it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        # the descriptor is bound to whoever has the number: looked at after it was opened
        present = read_process(process.pid)
        if present is None or present.started != process.started:
            return False
        signal.pidfd_send_signal(fd, number)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


# --- the supervisor -----------------------------------------------------------------------------------------------


class Ending(NamedTuple):
    """How a run of the service ended: for Restart=, and for people."""

    good: bool
    words: str


class CannotStart(Exception):
    """The service could not be started; the text says why."""


class Log:
    """The service's output: the log file, put aside once it is full, and the last words since the last start."""

    def __init__(self, path: str, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._file = -1
        self._size = 0
        self.words = b""
        self._open()

    def write(self, piece: bytes) -> None:
        self.words = (self.words + piece)[-KEPT_WORDS:]
        with suppress(OSError):  # a full disk must not end the service
            if self._size + len(piece) > self._limit:
                os.replace(self._path, self._path + ".1")
                os.close(self._file)
                self._open()
            self._size += os.write(self._file, piece)

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._file).st_size


class Supervisor:
    """One service. Everything happens in `_pump`, which waits for output, notices, signals and ends of processes."""

    def __init__(self, folder: str, name: str, plan: dict[str, Any]) -> None:
        self._place = os.path.join(folder, name)
        self._plan = plan
        self._log = Log(plan["log"], plan["log_limit"])
        self._output = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._output[1], True)
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._notices: socket.socket | None = None
        self._watched: set[int] = set()
        self._ended: dict[int, int] = {}
        self._starts: list[float] = []
        self._main = 0
        self._ready = self._stopping = self._reload = False
        self._address = ""
        own = read_process(os.getpid())
        assert own is not None
        self._state: dict[str, Any] = {
            "boot": read_boot(),
            "supervisor": own,
            "main": None,
            "status": "starting",
            "run": os.urandom(6).hex(),
            "starts": 0,
            "reloads": 0,
            "reload_error": "",
            "stop_seconds": plan["stop_timeout"],
            "why": "",
            "text": "",
        }

    def tell(self, status: str = "", **facts: Any) -> None:
        """Write what is so now: the whole file or none of it."""
        self._state |= {"status": status or self._state["status"], **facts}
        self._state["words"] = self._log.words.decode(errors="replace")
        new = f"{self._place}.json.new"
        with suppress(OSError):
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(self._state, file)
            os.replace(new, f"{self._place}.json")

    def listen(self) -> None:
        """Take signals from now on; they wake `_pump`."""
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        for number in HEARD:
            signal.signal(number, self._hear)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def run(self) -> None:
        """Run the service until it is stopped, or ends and is not to be started again."""
        while True:
            ending = self._run_once()
            left = self._end_all()
            self._pump(0)
            if left:
                ending = Ending(False, f"process {left[0].pid} does not end")
            if self._stopping or not self._starts_again(ending):
                break
            self.tell("restarting", main=None, why=ending.words)
            self._wait(self._plan["restart_wait"])
            if self._stopping or os.path.lexists(self._plan["held"]):
                break
            if self._too_often():
                ending = Ending(False, f"{ending.words}; started too often: {self._plan['limit_burst']} times")
                break
        good = ending.good or (self._stopping and not left)
        self.tell("stopped" if good else "failed", main=None, why=ending.words)

    # --- one run of the service ---

    def _run_once(self) -> Ending:
        plan = self._plan
        self._log.words = b""
        self._ready = plan["type"] != "notify"
        self._starts.append(time.monotonic())
        self.tell("starting", starts=self._state["starts"] + 1, text="")
        deadline = time.monotonic() + plan["start_timeout"]
        try:
            self._listen_to_notices()
            for command in plan["before"]:
                self._run_command("ExecStartPre", command, deadline)
            if self._stopping:
                return Ending(True, "stopped")
            self._main = self._spawn(plan["start"]["words"], dies_with_us=True)
            self.tell("starting", main=read_process(self._main))
            while not self._ready and self._main not in self._ended and not self._stopping:
                if time.monotonic() >= deadline:
                    raise CannotStart(f"it was not ready within {plan['start_timeout']:g} s")
                self._pump(deadline)
        except (CannotStart, OSError, ValueError, KeyError) as error:
            return Ending(False, f"cannot start: {error}")
        if self._ready and not self._stopping and self._main not in self._ended:
            self.tell("running")
        return self._follow()

    def _follow(self) -> Ending:
        """Until the main process ended, or a stop was asked for."""
        while self._main not in self._ended and not self._stopping:
            self._pump(None)
            if self._reload and self._main not in self._ended:
                self._reload = False
                self._do_reload()
        if self._main not in self._ended:
            return Ending(True, "stopped")
        self._pump(0)
        ending = self._ending(self._ended[self._main])
        return ending if self._ready else Ending(False, f"{ending.words} before it was ready")

    def _ending(self, status: int) -> Ending:
        words = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        gentle = (-signal.SIGHUP, -signal.SIGINT, -signal.SIGTERM, -signal.SIGPIPE)
        return Ending(status == 0 or status in gentle or status in self._plan["good_exits"], words)

    def _starts_again(self, ending: Ending) -> bool:
        rule = self._plan["restart"]
        if os.path.lexists(self._plan["held"]):
            return False
        return bool(rule == "always" or (rule == "on-failure" and not ending.good))

    def _too_often(self) -> bool:
        burst, seconds = self._plan["limit_burst"], self._plan["limit_seconds"]
        recent = [moment for moment in self._starts if time.monotonic() - moment < seconds]
        self._starts = recent
        return bool(burst > 0 and seconds > 0 and len(recent) >= burst)

    def _do_reload(self) -> None:
        self.tell("reloading")
        error = ""
        main = read_process(self._main)
        deadline = time.monotonic() + self._plan["start_timeout"]
        try:
            if not self._plan["reload"] and main is not None:
                send(main, signal.SIGHUP)
            for command in self._plan["reload"]:
                self._run_command("ExecReload", command, deadline)
        except (CannotStart, OSError, ValueError, KeyError) as failure:
            error = str(failure)
        self.tell("running", reloads=self._state["reloads"] + 1, reload_error=error)

    # --- ends ---

    def _end_all(self) -> list[Process]:
        """End all that is left of the service: as its unit says, then with SIGKILL. Returns what cannot be ended."""
        self.tell("stopping")
        deadline = time.monotonic() + self._plan["stop_timeout"]
        if self._stopping and self._main and self._main not in self._ended:
            for command in self._plan["stop"]:
                with suppress(CannotStart, OSError, ValueError, KeyError):
                    self._run_command("ExecStop", command, deadline, even_stopping=True)
        asked: set[tuple[int, int]] = set()
        killed = 0.0  # since when, not until when: this process may have stood still itself
        mixed = self._plan["kill_mode"] == "mixed"
        while family := read_family(os.getpid()):
            now = time.monotonic()
            if killed and now > killed + KILL_SECONDS:
                return family
            for process in family:
                if now >= deadline:
                    send(process, signal.SIGKILL)
                    killed = killed or now
                elif process[::2] not in asked and (not mixed or process.pid == self._main):
                    send(process, self._plan["kill_signal"])
                    send(process, signal.SIGCONT)
                    asked.add(process[::2])
            if mixed and (not self._main or self._main in self._ended):
                deadline = min(deadline, now)  # the others are killed when the main process is gone
            self._pump(min(now + 0.1, deadline) if now < deadline else now + 0.02)
        self._main = 0
        self._ended.clear()
        self._watched.clear()
        return []

    # --- programs ---

    def _run_command(self, key: str, command: dict[str, Any], deadline: float, *, even_stopping: bool = False) -> None:
        """Run a program to its end. CannotStart when it fails, or the time is over."""
        pid = self._spawn(command["words"])
        while pid not in self._ended:
            if time.monotonic() >= deadline:
                self._kill(pid)
                raise CannotStart(f"{key} {command['words'][0]} did not end in time")
            if self._stopping and not even_stopping:
                return  # it ends with all the others
            self._pump(deadline)
        self._pump(0)
        status = self._ended.pop(pid)
        if status != 0 and not command["may_fail"]:
            raise CannotStart(f"{key} {command['words'][0]}: {self._ending(status).words}")

    def _kill(self, pid: int) -> None:
        for process in (read_process(pid), *read_family(pid)):
            if process is not None:
                send(process, signal.SIGKILL)

    def _spawn(self, words: list[str], *, dies_with_us: bool = False) -> int:
        """Start a program in a session of its own. CannotStart says why there is none."""
        environment = self._environment()
        words = [part for word in words for part in expand(word, environment)]
        if not words:
            raise CannotStart("no word of the command is left")
        user = find_user(self._plan["user"], self._plan["group"])
        folder = self._plan["folder"] if self._plan["folder"] != "~" else environment.get("HOME", "/")
        said, says = os.pipe2(os.O_CLOEXEC)
        us = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become(words, environment, folder, user, says, us if dies_with_us else 0)
        os.close(says)
        self._watched.add(pid)
        with open(said, "rb") as pipe:
            why = pipe.read().decode(errors="replace")
        if why:
            raise CannotStart(why)
        return pid

    def _become(
        self,
        words: list[str],
        environment: dict[str, str],
        folder: str,
        user: "tuple[str, int, int] | None",
        says: int,
        dies_with: int,
    ) -> NoReturn:
        """In the child: become the program, or say why not."""
        try:
            signal.set_wakeup_fd(-1)
            for number in (*HEARD, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores the last two
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            os.umask(self._plan["umask"])
            os.dup2(self._output[1], 1)
            os.dup2(self._output[1], 2)
            if user is not None:
                name, uid, gid = user
                os.setgid(gid)
                if name:
                    os.initgroups(name, gid)
                    os.setuid(uid)
            if dies_with:  # after setuid, which clears it
                prctl(PR_SET_PDEATHSIG, self._plan["kill_signal"])
                if os.getppid() != dies_with:
                    os._exit(203)
            try:
                os.chdir(folder)
            except OSError:
                if not self._plan["folder_may_lack"]:
                    raise
            os.execvpe(words[0], words, environment)
        except BaseException as error:
            os.write(says, f"{words[0]}: {error}".encode())
        finally:
            os._exit(203)

    def _environment(self) -> dict[str, str]:
        environment: dict[str, str] = {"PATH": self._plan["path"], "LANG": "C.UTF-8", MARK: self._place}
        if self._plan["user"]:
            entry = find_entry(self._plan["user"])
            environment |= {"USER": entry.pw_name, "LOGNAME": entry.pw_name, "HOME": entry.pw_dir}
            environment["SHELL"] = entry.pw_shell
        if self._address:
            environment["NOTIFY_SOCKET"] = self._address
        if self._main:
            environment["MAINPID"] = str(self._main)
        return environment | dict(self._plan["environment"])

    # --- what happens ---

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < deadline:
            self._pump(deadline)

    def _pump(self, deadline: float | None) -> None:
        """Wait until something happens, at most until `deadline` (0: do not wait), and take it in."""
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        watched: list[Any] = [self._output[0], self._wake[0], *([self._notices] if self._notices else [])]
        ready = select.select(watched, [], [], wait)[0]
        if self._wake[0] in ready:
            with suppress(BlockingIOError):
                os.read(self._wake[0], PIECE)
        self._reap()
        self._read_output()
        if self._notices in ready:
            self._take_notice()

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid in self._watched:
                    self._ended[pid] = os.waitstatus_to_exitcode(status)

    def _read_output(self) -> None:
        for _ in range(64):  # one that writes without end must not keep us from hearing a stop
            try:
                piece = os.read(self._output[0], PIECE)
            except BlockingIOError:
                return
            self._log.write(piece)

    def _hear(self, number: int, _frame: object) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stopping = True
        elif number == signal.SIGHUP:
            self._reload = True
        elif number == signal.SIGUSR1:
            self.tell()

    # --- sd_notify ---

    def _listen_to_notices(self) -> None:
        """A new abstract socket for each start: what a former process says late does not count."""
        if self._plan["type"] != "notify":
            return
        if self._notices is not None:
            self._notices.close()
        self._address = f"@otaflow-{os.urandom(12).hex()}"
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._notices.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._notices.bind("\0" + self._address[1:])

    def _take_notice(self) -> None:
        assert self._notices is not None
        try:
            message, extra, _, _ = self._notices.recvmsg(4096, socket.CMSG_SPACE(12))
        except OSError:
            return
        senders = [struct.unpack("3i", data[:12])[0] for _, kind, data in extra if kind == socket.SCM_CREDENTIALS]
        # a sender that ended already (`systemd-notify`) cannot be looked up: only ours know the socket's name
        if not senders or (
            read_process(senders[0]) and senders[0] not in {one.pid for one in read_family(os.getpid())}
        ):
            return
        for line in message.decode(errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key == "READY" and value == "1":
                self._ready = True
                if self._state["status"] == "reloading":
                    self.tell("running")
            elif key == "RELOADING" and value == "1" and self._state["status"] == "running":
                self.tell("reloading")
            elif key == "STATUS":
                self.tell(text=value[:200])


# --- small things -------------------------------------------------------------------------------------------------


def expand(word: str, environment: dict[str, str]) -> list[str]:
    """`$NAME` alone is split into words, `${NAME}` is put in place, `$$` is a dollar (systemd.service)."""
    if re.fullmatch(r"\$[A-Za-z_][A-Za-z0-9_]*", word):
        return environment.get(word[1:], "").split()

    def value(found: "re.Match[str]") -> str:
        return "$" if found[0] == "$$" else environment.get(found[1], "")

    return [re.sub(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)\}", value, word)]


def find_entry(user: str) -> pwd.struct_passwd:
    """The entry of a user, by name or number. CannotStart."""
    try:
        return pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        raise CannotStart(f"there is no user {user}") from None


def find_user(user: str, group: str) -> tuple[str, int, int] | None:
    """Name and numbers to become; None when we stay who we are. CannotStart."""
    import grp

    if not user and not group:
        return None
    entry = find_entry(user) if user else None
    try:
        gid = (int(group) if group.isdigit() else grp.getgrnam(group).gr_gid) if group else -1
    except KeyError:
        raise CannotStart(f"there is no group {group}") from None
    uid = entry.pw_uid if entry else os.getuid()
    gid = gid if gid >= 0 or entry is None else entry.pw_gid
    if os.geteuid() != 0:
        if uid != os.getuid() or gid != os.getgid():
            raise CannotStart("only root can run it as another user or group")
        return None
    return entry.pw_name if entry else "", uid, gid


def prctl(option: int, value: int | bytes) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def main(turn: int, folder: str, name: str) -> int:
    """Go into the background; returns, in the starter, when the supervisor runs: 0, BUSY or 1."""
    most = os.sysconf("SC_OPEN_MAX")
    os.closerange(3, turn)
    os.closerange(turn + 1, most if 0 < most < 1 << 20 else 1 << 20)
    os.set_inheritable(turn, False)
    up, tells = os.pipe2(os.O_CLOEXEC)
    if os.fork() != 0:
        os.close(turn)
        os.close(tells)
        answer = os.read(up, 1)
        return {b"+": 0, b"b": BUSY}.get(answer, 1)
    os.close(up)
    os.setsid()
    os.chdir("/")
    lock = os.open(os.path.join(folder, f"{name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(OSError):
            os.write(tells, b"b")
        os._exit(BUSY)
    path = os.path.join(folder, f"{name}.plan")
    with open(path) as file:
        plan = json.load(file)
    os.unlink(path)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    supervisor = Supervisor(folder, name, plan)
    supervisor.listen()
    prctl(PR_SET_NAME, TITLE.encode())
    supervisor.tell()
    os.close(turn)
    with suppress(OSError):  # who started us may have been killed: the service goes on, and is found
        os.write(tells, b"+")
    os.close(tells)
    # the starter's output is closed by now; from here on errors have nowhere to go but the log
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    try:
        supervisor.run()
    except Exception as error:
        supervisor.tell("failed", why=f"its supervisor failed: {error!r}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
