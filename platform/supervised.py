"""Services where there is no systemd: each is run by a small supervisor of its own (supervisor.py).

What must outlive a power cut is names in three folders: `linked/NAME` is a link to the unit file, `held/NAME` and
`stopped/NAME` are empty files. `start_all`, at boot, starts what is linked, not held and was not stopped. `run/` is
about this boot only: what each supervisor says about itself and its service.

The supervisors are nobody's children: they outlive who started them, and do not hold the device's lock. Who starts,
stops or reloads a service holds `run/NAME.turn`. A process is known by its number and its start (ticks after the boot),
or, when nothing else is left of it, by the service's mark in its environment; no other process is ever signalled.
"""

import fcntl
import json
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from otaflow.errors import CommandFailed, ServiceFailed
from otaflow.files import fsync_folder, write_atomic
from otaflow.platform import supervisor
from otaflow.platform.protocols import ServiceState
from otaflow.platform.run import DEFAULT_PATH, run
from otaflow.platform.supervisor import MARK, Process, read_family, read_process, read_processes, send
from otaflow.platform.unit_file import Unit, check_name, parse_environment, read_unit

LOG_BYTES = 1 << 20
POLL_SECONDS = 0.02
MARGIN_SECONDS = 5.0
UP = ("running", "reloading")
LAST_LINES = 3


class SupervisedServices:
    """The services of a device without systemd; `folder` is theirs in the durable state, `logs` holds what they say.

    Starting, stopping and reloading take at most `timeout` seconds each, whatever a unit file says, and what it takes
    to kill. A log file has at most `log_bytes`, and there is one former file of each.
    """

    def __init__(self, folder: Path, timeout: float, logs: Path, *, log_bytes: int = LOG_BYTES) -> None:
        self._linked = folder / "linked"
        self._held = folder / "held"
        self._stopped = folder / "stopped"
        self._run = folder / "run"
        self._logs = logs
        self._timeout = timeout
        self._log_bytes = log_bytes

    # --- which there are ---

    def check(self, name: str, folder: Path | None = None) -> None:
        self._read(name, folder)

    def ignored(self, name: str) -> tuple[str, ...]:
        """The keys of its unit file that have no meaning here: what hardens, limits or orders."""
        return self._read(name).ignored

    def link(self, folder: Path) -> None:
        names = _units_in(folder)
        for name in names:
            self._read(name, folder)
            present = self._target(name)
            if present is not None and present.parent != folder and present.exists():
                raise ServiceFailed(
                    f"cannot link {name} of {folder}: {present} has that name already", hint="give it another name"
                )
        for name in names:
            if self._target(name) != folder / name:
                _link(self._linked / name, folder / name)

    def unlink(self, folder: Path, but: Path | None = None) -> None:
        names = {*_units_in(folder), *(name for name in self.linked() if self._from(name) == folder)}
        for name in names - set(_units_in(but) if but is not None else ()):
            _unmark(self._stopped / name)
            _unmark(self._linked / name)

    def arrange(self, folders: list[Path], held: list[str]) -> None:
        """Nothing: what is known and held is in the device's own memory, which no slot has a copy of."""

    def linked(self) -> list[str]:
        """The names of all that are known."""
        return sorted(path.name for path in _entries(self._linked))

    # --- hold and release ---

    def hold(self, name: str) -> None:
        check_name(name)
        _mark(self._held / name)

    def release(self, name: str) -> None:
        check_name(name)
        _unmark(self._held / name)

    # --- start, stop, reload ---

    def start(self, name: str) -> None:
        check_name(name)
        with self._turn(name) as turn:
            self._start(name, turn)
            self._wait_until_up(name)

    def start_all(self) -> dict[str, ServiceFailed]:
        """At boot: start all that are to run, beside one another. What failed, by name; the others run."""
        failed = {}
        wanted = [name for name in self.linked() if not self._is_marked(self._held, name)]
        wanted = [name for name in wanted if not self._is_marked(self._stopped, name)]
        for name in wanted:
            try:
                with self._turn(name) as turn:
                    self._start(name, turn)
            except ServiceFailed as error:
                failed[name] = error
        for name in (name for name in wanted if name not in failed):
            try:
                self._wait_until_up(name)
            except ServiceFailed as error:
                failed[name] = error
        return failed

    def stop(self, name: str) -> None:
        check_name(name)
        with self._turn(name):
            if self._target(name) is not None:
                _mark(self._stopped / name)
            self._end(name)

    def reload(self, name: str) -> None:
        check_name(name)
        with self._turn(name) as turn:
            known, process = self._look(name)
            if process is None or known.get("status") not in UP:
                self._start(name, turn)
                self._wait_until_up(name)
                return
            self._reload(name, process, int(known["reloads"]))

    def state(self, name: str) -> ServiceState:
        check_name(name)
        known, process = self._look(name)
        if self._target(name) is None and process is None and not known:
            return ServiceState(active=False, words="not there")
        status = str(known.get("status", "stopped"))
        starts = f"{known['run']}.{known['starts']}" if known else ""
        if status in _FINAL:  # its supervisor is gone, or about to go
            why = f" ({known['why']})" if known.get("why") else ""
            pids = () if process is not None else tuple(one.pid for one in self._leftovers(name, known))
            return ServiceState(False, status == "failed", pids, starts, f"{_FINAL[status]}{why}")
        if process is None:
            pids = tuple(one.pid for one in self._leftovers(name, known))
            return ServiceState(False, True, pids, starts, "failed (its supervisor was killed)")
        main = _process(known.get("main"))
        active = status in UP and main is not None and _lives(main)
        pids = tuple(sorted(one.pid for one in read_family(process.pid)))
        text = f": {known['text']}" if known.get("text") else ""
        return ServiceState(active, False, pids, starts, f"{'active' if active else 'inactive'} ({status}){text}")

    def read_log(self, name: str, lines: int) -> list[str]:
        check_name(name)
        last: deque[str] = deque(maxlen=max(lines, 0))
        for path in (self._logs / f"{name}.log.1", self._logs / f"{name}.log"):
            with suppress(FileNotFoundError), path.open(errors="replace") as file:
                last.extend(line.rstrip("\n") for line in file)
        return list(last)

    # --- how ---

    def _start(self, name: str, turn: int) -> None:
        """Have a supervisor run it; whether it comes up is not waited for."""
        if self._is_marked(self._held, name):
            raise ServiceFailed(f"cannot start {name}: it is held", hint="an update is at work on it")
        unit = self._read(name)
        _unmark(self._stopped / name)
        known, process = self._look(name)
        if process is not None and known.get("status") in (*UP, "starting"):
            return
        self._end(name)
        self._launch(name, unit, turn)

    def _launch(self, name: str, unit: Unit, turn: int) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        plan = self._plan(name, unit)
        write_atomic(self._run / f"{name}.plan", json.dumps(plan).encode(), mode=0o600)
        program: list[str | Path] = [sys.executable, "-I", "-S", supervisor.__file__, str(turn), self._run, name]
        try:
            done = run(program, timeout=self._timeout, check=False, pass_fds=[turn])
        except CommandFailed as error:
            raise ServiceFailed(f"cannot start {name}: {error}") from error
        if done.returncode != 0:
            last = done.output.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise ServiceFailed(f"cannot start {name}: its supervisor does not run: {last[0]}")

    def _plan(self, name: str, unit: Unit) -> dict[str, Any]:
        """What the supervisor gets to know: the unit, its environment's files read, and this device's places."""
        environment = dict(unit.environment)
        for file in unit.environment_files:
            path = Path(file.words[0])
            try:
                environment |= parse_environment(path.read_text())
            except (OSError, ValueError) as error:
                if not (file.may_fail and isinstance(error, FileNotFoundError)):
                    raise ServiceFailed(f"cannot start {name}: {path}: {error}") from error
        return asdict(unit) | {
            "environment": list(environment.items()),
            "start_timeout": min(unit.start_timeout, self._timeout),
            "stop_timeout": min(unit.stop_timeout, self._timeout),
            "held": str(self._held / name),
            "log": str(self._logs / f"{name}.log"),
            "log_limit": self._log_bytes,
            "path": DEFAULT_PATH,
        }

    def _wait_until_up(self, name: str) -> None:
        deadline = time.monotonic() + self._timeout + MARGIN_SECONDS
        while True:
            known, process = self._look(name)
            status = known.get("status")
            main = _process(known.get("main"))
            if process is not None and status in UP and main is not None and _lives(main):
                return
            if process is None or status in ("restarting", "failed", "stopped"):
                raise ServiceFailed(_with_last_words(f"cannot start {name}: {known.get('why') or 'it is gone'}", known))
            if time.monotonic() > deadline:
                raise ServiceFailed(_with_last_words(f"cannot start {name}: it is {status} for too long", known))
            time.sleep(POLL_SECONDS)

    def _reload(self, name: str, process: Process, before: int) -> None:
        deadline = time.monotonic() + self._timeout + MARGIN_SECONDS
        send(process, signal.SIGHUP)
        while True:
            known, present = self._look(name)
            if present != process or known.get("status") not in UP:
                why = known.get("why") or "it ended"
                raise ServiceFailed(_with_last_words(f"cannot reload {name}: {why}", known))
            if known["reloads"] > before and known["status"] == "running":
                break
            if time.monotonic() > deadline:
                raise ServiceFailed(_with_last_words(f"cannot reload {name}: it does not come to an end", known))
            time.sleep(POLL_SECONDS)
        if known["reload_error"]:
            raise ServiceFailed(_with_last_words(f"cannot reload {name}: {known['reload_error']}", known))

    def _end(self, name: str) -> None:
        """End its supervisor, which ends all that is below it; then what a killed one left."""
        known, process = self._look(name)
        seconds = min(float(known.get("stop_seconds", self._timeout)), self._timeout)
        if process is not None and send(process, signal.SIGTERM):
            _wait_for_end(process, seconds + supervisor.KILL_SECONDS + MARGIN_SECONDS)
            if _lives(process):
                send(process, signal.SIGKILL)
                _wait_for_end(process, supervisor.KILL_SECONDS)
        self._sweep(name, known, seconds)

    def _sweep(self, name: str, known: dict[str, Any], seconds: float) -> None:
        asked: set[tuple[int, int]] = set()
        killing, killed = time.monotonic() + seconds, 0.0
        while left := self._leftovers(name, known):
            now = time.monotonic()
            if killed and now > killed + supervisor.KILL_SECONDS:
                raise ServiceFailed(f"cannot stop {name}: process {left[0].pid} does not end, not even when killed")
            for process in left:
                if now >= killing:
                    send(process, signal.SIGKILL)
                    killed = killed or now
                elif (process.pid, process.started) not in asked:
                    send(process, signal.SIGTERM)
                asked.add((process.pid, process.started))
            time.sleep(POLL_SECONDS)

    def _leftovers(self, name: str, known: dict[str, Any]) -> list[Process]:
        """What runs without supervisor: its main process, those with its mark, and what is below them; never us."""
        mark = f"{MARK}={self._run / name}".encode()
        main = _process(known.get("main"))
        found = {one for one in read_processes() if (main and one[::2] == main[::2]) or _has_mark(one.pid, mark)}
        for one in list(found):
            found.update(read_family(one.pid))
        return sorted(one for one in found if one.pid not in _own_line())

    def _look(self, name: str) -> tuple[dict[str, Any], Process | None]:
        """What its supervisor wrote last, in this boot, and the supervisor if it lives."""
        known = self._read_state(name)
        process = _process(known.get("supervisor"))
        if process is not None and _lives(process):
            return known, process
        if process is None and (process := self._search(name)) is not None:
            return self._ask(name, process), process
        # the last word of one that ended while we looked
        return self._read_state(name), None

    def _read_state(self, name: str) -> dict[str, Any]:
        """Empty when there is nothing, it is of another boot, or it cannot be read."""
        try:
            known = json.loads((self._run / f"{name}.json").read_bytes())
            shape = {key: type(known[key]) for key in _SHAPE}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return known if shape == _SHAPE and known["boot"] == supervisor.read_boot() else {}

    def _ask(self, name: str, process: Process) -> dict[str, Any]:
        """Have a supervisor whose state cannot be read write it anew; empty when it does not."""
        deadline = time.monotonic() + MARGIN_SECONDS
        send(process, signal.SIGUSR1)
        while not (known := self._read_state(name)) and _lives(process) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return known

    def _search(self, name: str) -> Process | None:
        """The supervisor of the service, by its title, which its starter does not have yet, and its command line."""
        words = [os.fsencode(self._run), name.encode(), b""]
        found = []
        for process in read_processes():
            proc = Path(f"/proc/{process.pid}")
            with suppress(OSError):
                titled = proc.joinpath("comm").read_text(errors="replace").strip() == supervisor.TITLE
                if titled and proc.joinpath("cmdline").read_bytes().split(b"\0")[-3:] == words:
                    found.append(process)
        # between fork and exec its child looks like it
        pids = {process.pid for process in found}
        return next((process for process in found if process.parent not in pids), None)

    def _read(self, name: str, folder: Path | None = None) -> Unit:
        check_name(name)
        if folder is not None and (folder / name).exists():
            return read_unit(folder / name)
        target = self._target(name)
        if target is None:
            raise ServiceFailed(f"cannot use {name}: there is no such service", hint="`link` makes a unit file known")
        return read_unit(target)

    def _target(self, name: str) -> Path | None:
        try:
            return Path(os.readlink(self._linked / name))
        except OSError:
            return None

    def _from(self, name: str) -> Path | None:
        target = self._target(name)
        return target.parent if target is not None else None

    def _is_marked(self, folder: Path, name: str) -> bool:
        return os.path.lexists(folder / name)

    @contextmanager
    def _turn(self, name: str) -> Iterator[int]:
        """One at a time starts, stops or reloads a service. ServiceFailed when another one does not come to an end.

        A new supervisor holds the lock too until it can be found: nobody overlooks that of an otaflow that was killed.
        """
        self._run.mkdir(parents=True, exist_ok=True, mode=0o700)
        deadline = time.monotonic() + 2 * self._timeout + supervisor.KILL_SECONDS
        fd = os.open(self._run / f"{name}.turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ServiceFailed(f"cannot work on {name}: another process is at work on it") from None
                    time.sleep(POLL_SECONDS)
            yield fd
        finally:
            os.close(fd)


_FINAL = {"stopped": "inactive", "failed": "failed"}
_SHAPE = {"boot": str, "supervisor": list, "status": str, "run": str, "starts": int, "reloads": int}


def _process(fields: Any) -> Process | None:
    try:
        return Process(*map(int, fields))
    except (TypeError, ValueError):
        return None


def _lives(process: Process) -> bool:
    present = read_process(process.pid)
    return present is not None and present.started == process.started


def _wait_for_end(process: Process, seconds: float) -> None:
    """Return when the process is gone, at most after `seconds`; its zombie is nobody."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        if _lives(process):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(seconds * 1000)
    finally:
        os.close(fd)


def _has_mark(pid: int, mark: bytes) -> bool:
    with suppress(OSError):
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def _own_line() -> set[int]:
    """We and our ancestors: a service may have called otaflow."""
    line: set[int] = set()
    process = read_process(os.getpid())
    while process is not None and process.pid not in line:
        line.add(process.pid)
        process = read_process(process.parent)
    return line


def _with_last_words(message: str, known: dict[str, Any]) -> str:
    lines = [line.strip() for line in str(known.get("words", "")).splitlines() if line.strip()]
    return f"{message}: {' / '.join(lines[-LAST_LINES:])}" if lines else message


def _units_in(folder: Path) -> list[str]:
    return sorted(path.name for path in _entries(folder) if path.name.endswith(".service"))


def _entries(folder: Path) -> list[Path]:
    # a name that begins with a dot is one that was not finished
    return [path for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []


def _link(path: Path, target: Path) -> None:
    new = path.with_name(f".{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    os.replace(new, path)
    fsync_folder(path.parent)


def _mark(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    fsync_folder(path.parent)


def _unmark(path: Path) -> None:
    if os.path.lexists(path):
        path.unlink(missing_ok=True)
        fsync_folder(path.parent)
