"""Services run by systemd, asked through `systemctl` and `journalctl`.

Not over D-Bus: `systemctl`, as root, speaks to PID 1 itself and needs no bus, so it works before `dbus.service` does
and when that is what is broken; `run` bounds it in time, and nothing is loaded for it. What D-Bus would tell better,
why a job failed, is in the unit's properties (`Result`, `ExecMainStatus`) and in the journal.

* Unit files are **copied** into `units`, not linked: systemd reads units before it mounts anything, so a link into an
  application's tree would lead nowhere at boot when that tree is on a partition of its own. The first line of a copy
  says that it is one.
* A service is **held** by a drop-in with a condition that is never met. It outlives restarts, and whatever asks for the
  service (a person, a boot, a socket, a timer, another unit) gets nothing; units that want it start without it.
* **While the system boots** a unit that is ordered after our own waits for us: `start` then returns, and the boot
  starts the unit when we are through.
"""

import logging
import os
import re
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from otaflow.errors import CommandFailed, ServiceFailed
from otaflow.files import fsync_folder, write_atomic
from otaflow.platform.protocols import ServiceState
from otaflow.platform.run import TIMED_OUT, Completed, run
from otaflow.platform.systemd_units import (
    HOLD_FILE,
    SUFFIXES,
    UnitFile,
    is_arranged,
    list_copies,
    list_held,
    read_units,
)

log = logging.getLogger("otaflow.systemd")

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9:_.\\@-]*\.(?:service|socket|timer|target)")
HOLD = """# Written by otaflow, which holds this unit during an update, and removed by it.
[Unit]
ConditionPathExists=/dev/null/held-by-otaflow
"""
ASK_SECONDS = 30
END_SECONDS = 10
POLL_SECONDS = 0.05
LOG_LINES = 5
NOT_RUN = "641257651c1b4ec9a8624d7a40a9e1e7"  # systemd could not run a program (SD_MESSAGE_SPAWN_FAILED)
CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")
PROPERTIES = (
    *("LoadState", "LoadError", "ActiveState", "SubState", "Type", "Result", "ReloadResult", "ConditionResult"),
    *("ExecMainStatus", "NRestarts", "InvocationID", "ExecMainStartTimestampMonotonic", "ControlGroup", "Job"),
    *("CanReload", "TriggeredBy"),
)
RESULTS = {
    "timeout": "it took longer than its unit permits",
    "watchdog": "its watchdog was not fed",
    "start-limit-hit": "it was started too often",
    "resources": "systemd could not make what it needs",
    "protocol": "it did not say that it is ready",
    "oom-kill": "the memory was used up",
}


class SystemdServices:
    """The services of this machine's systemd; needs root.

    `units` is the folder where unit files go, one that systemd reads. `timeout` bounds each start, stop and reload.
    """

    def __init__(self, units: Path = Path("/etc/systemd/system"), timeout: float = 90) -> None:
        self.units = units
        self.timeout = timeout

    def check(self, name: str, folder: Path | None = None) -> None:
        _check_name(name)
        if folder is not None and (folder / name).exists():
            self._check_units([unit for unit in read_units(folder) if unit.name == name])
            return
        self._require(name)

    # --- unit files ---------------------------------------------------------------------------------------------------

    def link(self, folder: Path) -> None:
        units = read_units(folder)
        self._check_units(units)
        self.units.mkdir(parents=True, exist_ok=True)
        for unit in units:
            if not _has(self.units / unit.name, unit.text):
                write_atomic(self.units / unit.name, unit.text)
            self._want(unit)
        fsync_folder(self.units)
        self._reload_systemd()

    def unlink(self, folder: Path, but: Path | None = None) -> None:
        kept = _unit_names(but) if but is not None else set()
        for name in sorted(_unit_names(folder) - kept):
            if UnitFile.is_copy(self.units / name):
                self._drop_links(name, set())
                (self.units / name).unlink()
        if self.units.exists():
            fsync_folder(self.units)
            self._reload_systemd()

    def _check_units(self, units: list[UnitFile]) -> None:
        """ServiceFailed when one of them would take the place of another unit of the system."""
        places = [Path(place) for place in self._ask("show", "--property=UnitPath", "--value").output.split()]
        if self.units not in places:
            raise ServiceFailed(
                f"cannot make services known in {self.units}: systemd does not read it",
                hint="set [services] units to one of " + ", ".join(map(str, places)),
            )
        for unit in units:
            _check_name(unit.name)
            for wanting in unit.wanted:
                _check_name(wanting.rpartition(".")[0])
            # an instance (`getty@tty1.service`) is the system's when its template (`getty@.service`) is
            template = re.sub(r"@.+(?=\.)", "@", unit.name)
            for path in (place / name for place in places for name in {unit.name, template}):
                if (path.exists() or path.is_symlink()) and not UnitFile.is_copy(path):
                    raise ServiceFailed(
                        f"cannot use {unit.source}: the system has a unit of this name, {path}",
                        hint="an application's services need names of their own",
                    )

    def _want(self, unit: UnitFile) -> None:
        """Have the unit started with what its [Install] section names, and with nothing else."""
        self._drop_links(unit.name, unit.wanted)
        for wanting in sorted(unit.wanted):
            link = self.units / wanting / unit.name
            link.parent.mkdir(exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(f"../{unit.name}")
            fsync_folder(link.parent)

    def _drop_links(self, name: str, but: set[str]) -> None:
        for kind in ("wants", "requires"):
            for link in self.units.glob(f"*.{kind}/*"):
                if link.name == name and link.parent.name not in but and link.is_symlink():
                    link.unlink()
                    fsync_folder(link.parent)

    def arrange(self, folders: list[Path], held: list[str]) -> None:
        if is_arranged(self.units, folders, held):
            return
        for name in sorted({*list_held(self.units)} - {*held}):
            self.release(name)
        for name in held:  # before anything is known anew
            self.hold(name)
        known, before = {name for folder in folders for name in _unit_names(folder)}, list_copies(self.units)
        for name in sorted(before - known):
            self._forget(name)
        for folder in folders:
            try:
                self.link(folder)
            except ServiceFailed as error:  # the others are known all the same
                log.warning("%s", error)
                continue
            for unit in read_units(folder):
                if unit.wanted and unit.name not in before | {*held}:  # the boot has counted what it starts already
                    self._ask("start", "--no-block", "--", unit.name, check=False)

    def _forget(self, name: str) -> None:
        """Have neither the present boot nor a later one start what no application has."""
        self._ask("stop", "--no-block", "--", name, check=False)
        self._drop_links(name, set())
        (self.units / name).unlink()
        fsync_folder(self.units)
        self._reload_systemd()

    # --- held ---------------------------------------------------------------------------------------------------------

    def hold(self, name: str) -> None:
        _check_name(name)
        path = self._hold_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        fsync_folder(self.units)
        write_atomic(path, HOLD.encode())
        self._reload_systemd()

    def release(self, name: str) -> None:
        _check_name(name)
        path = self._hold_path(name)
        path.unlink(missing_ok=True)
        if path.parent.exists():
            fsync_folder(path.parent)
            with suppress(OSError):  # something else is in it
                path.parent.rmdir()
            fsync_folder(self.units)
        self._reload_systemd()
        self._listen_again(name)

    def _hold_path(self, name: str) -> Path:
        return self.units / f"{name}.d" / HOLD_FILE

    def _is_held(self, name: str) -> bool:
        return self._hold_path(name).exists()

    def _listen_again(self, name: str) -> None:
        """A socket that could not start the held service for a client has given up; it listens again."""
        for trigger in self._show(name)["TriggeredBy"].split():
            shown = self._show(trigger)
            if shown["ActiveState"] == "failed" and shown["Result"] == "trigger-limit-hit":
                self._ask("reset-failed", "--", trigger, check=False)
                self._ask("start", "--no-block", "--", trigger, check=False)

    # --- running ------------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        if _is_active(self._require(name)):
            return
        self._refuse_held("start", name)
        self._ask("reset-failed", "--", name, check=False)  # we do not count as one of its restarts
        began = time.time()
        try:
            if self._job("start", name, began):
                self._check_up(name, began)
        except ServiceFailed:
            # nobody may find it up later, nor see it tried on and on
            self._ask("stop", "--no-block", "--", name, check=False)
            raise

    def stop(self, name: str) -> None:
        _check_name(name)
        shown = self._show(name)
        if shown["ActiveState"] in ("inactive", "failed") and not shown["Job"] and not _pids(shown):
            return
        try:
            self._systemctl("stop", "--", name, timeout=self.timeout)
        except CommandFailed as error:
            if error.returncode != TIMED_OUT:
                raise self._failure("stop", name, _first_line(error)) from error
            log.warning("%s did not stop within %g s and is killed", name, self.timeout)
        self._end_rest(name)

    def reload(self, name: str) -> None:
        shown = self._require(name)
        if not _is_active(shown):
            self.start(name)
            return
        if shown["CanReload"] == "yes":
            self._job("reload", name, time.time())
            return
        self._refuse_held("restart", name)
        self.stop(name)
        self.start(name)

    def state(self, name: str) -> ServiceState:
        _check_name(name)
        shown = self._show(name)
        marks = (shown["InvocationID"], shown["NRestarts"], shown["ExecMainStartTimestampMonotonic"])
        tried = shown["SubState"] == "auto-restart" and shown["Result"] != "success"
        return ServiceState(
            active=_is_active(shown),
            failed=shown["ActiveState"] == "failed" or tried,
            pids=_pids(shown),
            starts="-".join(marks) if shown["InvocationID"] else "",
            words="held" if self._is_held(name) and shown["ActiveState"] == "inactive" else _words(shown),
        )

    def read_log(self, name: str, lines: int) -> list[str]:
        _check_name(name)
        return self._read_log(name, lines) if lines > 0 else []

    def _refuse_held(self, verb: str, name: str) -> None:
        if self._is_held(name):
            raise ServiceFailed(
                f"cannot {verb} {name}: it is held for an update",
                hint="it is released when the update is over; `otaflow status` says whether one is going on",
            )

    def _require(self, name: str) -> dict[str, str]:
        """The properties of a unit that can be used."""
        _check_name(name)
        shown = self._show(name)
        if shown["LoadState"] != "loaded" and not _is_active(shown):
            raise ServiceFailed(f"cannot use {name}: {_words(shown)}", hint=f"look at `systemctl status {name}`")
        return shown

    def _job(self, verb: str, name: str, since: float) -> bool:
        """Have systemd do it; False when it can be done only after our own unit has been started."""
        try:
            if self._is_booting():
                self._systemctl(verb, "--no-block", "--", name, timeout=ASK_SECONDS)
                return self._follow_boot(verb, name, since)
            self._systemctl(verb, "--", name, timeout=self.timeout)
        except CommandFailed as error:
            if error.returncode == TIMED_OUT:
                self._cancel(name)
                raise self._failure(verb, name, f"it was not done within {self.timeout:g} s", since) from error
            shown = self._show(name)
            result = shown["ReloadResult" if verb == "reload" else "Result"]
            why = _words(shown) if result != "success" else _first_line(error)
            if verb == "start" and shown["NRestarts"] not in ("", "0"):
                why = "it ends again and again"  # systemd tries it already once more, and has forgotten how it ended
            raise self._failure(verb, name, why, since) from error
        return True

    def _follow_boot(self, verb: str, name: str, since: float) -> bool:
        """Wait for the job of `name`, unless it waits for us. ServiceFailed when it takes too long, or failed."""
        deadline = time.monotonic() + self.timeout
        while (shown := self._show(name))["Job"]:
            if self._waits_for_us(shown["Job"]):
                log.info("%s starts when %s is through", name, _own_unit())
                return False
            if time.monotonic() > deadline:
                self._cancel(name)
                raise self._failure(verb, name, f"it was not done within {self.timeout:g} s", since)
            time.sleep(POLL_SECONDS)
        if verb == "reload" and shown["ReloadResult"] != "success":
            raise self._failure(verb, name, _words(shown), since)
        return True

    def _waits_for_us(self, job: str) -> bool:
        """Whether the job comes after the one that started our own unit, however many others are between them."""
        unit, blocked, current = _own_unit(), dict[str, set[str]](), ""
        reached: list[str] = []
        for line in self._ask("list-jobs", "--after", "--no-legend", "--full").output.splitlines():
            if found := re.search(r"blocking job (\d+) ", line):
                blocked.setdefault(current, set()).add(found[1])
            elif len(words := line.split()) >= 2:
                current = words[0]
                reached += [current] if words[1] == unit else []
        seen: set[str] = set()
        while reached:
            seen.add(one := reached.pop())
            reached += blocked.get(one, set()) - seen
        return job in seen

    def _is_booting(self) -> bool:
        return self._ask("is-system-running", check=False).output.strip() in ("initializing", "starting")

    def _check_up(self, name: str, since: float) -> None:
        shown = self._show(name)
        done = shown["ActiveState"] == "inactive" and shown["Result"] == "success" and shown["ConditionResult"] == "yes"
        if not _is_active(shown) and not (done and shown["Type"] == "oneshot"):
            raise self._failure("start", name, "it ended at once" if done else _words(shown), since)

    def _end_rest(self, name: str) -> None:
        """End what still runs of it: a service may leave processes behind, or not stop when it is told to."""
        for number in ("KILL",) if self._show(name)["ActiveState"] == "deactivating" else ("TERM", "KILL"):
            if not _pids(self._show(name)):
                break
            self._ask("kill", f"--signal={number}", "--kill-whom=all", "--", name, check=False)
            self._wait_end(name)
        shown = self._show(name)
        if pids := _pids(shown):
            raise self._failure("stop", name, f"processes that cannot be killed: {', '.join(map(str, pids))}")
        self._wait_end(name)

    def _wait_end(self, name: str) -> None:
        """Wait until no process is left, and systemd knows it; END_SECONDS at most."""
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            shown = self._show(name)
            if not _pids(shown) and shown["ActiveState"] not in ("deactivating", "active"):
                return
            time.sleep(POLL_SECONDS)

    def _cancel(self, name: str) -> None:
        if job := self._show(name)["Job"]:
            self._ask("cancel", "--", job, check=False)

    # --- systemd ------------------------------------------------------------------------------------------------------

    def _show(self, name: str) -> dict[str, str]:
        """The unit's properties; "" for those that its kind does not have."""
        output = self._ask("show", f"--property={','.join(PROPERTIES)}", "--", name).output
        shown = dict.fromkeys(PROPERTIES, "")
        for key, _, value in (line.partition("=") for line in output.splitlines()):
            if key in shown:
                shown[key] = value
        return shown

    def _reload_systemd(self) -> None:
        try:
            self._systemctl("daemon-reload", timeout=max(self.timeout, ASK_SECONDS))
        except CommandFailed as error:
            raise ServiceFailed(f"cannot have systemd read its units anew: {_first_line(error)}") from error

    def _ask(self, *words: str, check: bool = True) -> Completed:
        """`systemctl` for what is done at once."""
        try:
            return self._systemctl(*words, timeout=ASK_SECONDS, check=check)
        except CommandFailed as error:
            hint = error.hint or "without systemd as PID 1, set [services] kind to processes"
            raise ServiceFailed(f"cannot ask systemd: {_first_line(error)}", hint=hint) from error

    def _systemctl(self, *words: str, timeout: float, check: bool = True) -> Completed:
        return run(["systemctl", "--no-pager", "--no-ask-password", *words], timeout=timeout, check=check)

    def _failure(self, verb: str, name: str, why: str, since: float = 0) -> ServiceFailed:
        """The error, with what the service said since then (Unix time)."""
        said: list[str] = []
        if since:
            with suppress(ServiceFailed):
                said = self._read_log(name, LOG_LINES, f"--since=@{since:.6f}")
        words = f"; its last words: {' / '.join(said)}" if said else ""
        return ServiceFailed(f"cannot {verb} {name}: {why}{words}", hint=f"look at `journalctl -u {name}`")

    def _read_log(self, name: str, lines: int, *options: str) -> list[str]:
        # by unit, as its name is known of a process that is gone already; its invocation is not
        match = [f"_SYSTEMD_UNIT={name}", "+", f"UNIT={name}", f"MESSAGE_ID={NOT_RUN}"]
        words = ["journalctl", "--no-pager", "--quiet", "--all", "--output=cat", f"--lines={lines}", *options]
        try:
            # what a service wrote just before its end may still be on its way
            run(["journalctl", "--sync"], timeout=ASK_SECONDS, check=False)
            output = run([*words, *match], timeout=ASK_SECONDS).output
        except CommandFailed as error:
            raise ServiceFailed(f"cannot read the journal: {_first_line(error)}", hint=error.hint) from error
        return ["".join(c if c.isprintable() else " " for c in line) for line in output.splitlines()][-lines:]


def _check_name(name: str) -> None:
    """A name goes into paths and commands: no option, no pattern, no folder."""
    if not NAME.fullmatch(name) or len(name) > 255:
        raise ServiceFailed(
            f"cannot use the service {name!r}: it is no name of a unit",
            hint=f"a name such as notes.service, ending in {', '.join(SUFFIXES)}",
        )


def _unit_names(folder: Path) -> set[str]:
    """The names of the unit files in `folder`; a folder that is not there has none."""
    return {path.name for path in folder.glob("*") if path.suffix in SUFFIXES and NAME.fullmatch(path.name)}


def _has(path: Path, content: bytes) -> bool:
    with suppress(OSError):
        return not path.is_symlink() and path.read_bytes() == content
    return False


def _is_active(shown: Mapping[str, str]) -> bool:
    return shown["ActiveState"] in ("active", "reloading")


def _words(shown: Mapping[str, str]) -> str:
    """What the unit does, for people."""
    if shown["LoadState"] == "not-found" and shown["ActiveState"] == "inactive":
        return "not there"
    if shown["LoadState"] not in ("loaded", "not-found"):
        said = re.search(r'"(.*)"', shown["LoadError"])
        return f"{shown['LoadState']} ({said[1]})" if said else shown["LoadState"]
    state = "queued" if shown["Job"] and shown["ActiveState"] == "inactive" else shown["SubState"]
    for key in ("Result", "ReloadResult"):
        if shown[key] not in ("", "success"):
            return f"{shown['ActiveState']} ({_ending(shown[key], shown['ExecMainStatus'])})"
    return f"{shown['ActiveState']} ({state})"


def _ending(result: str, status: str) -> str:
    """How a service ended: `result` is systemd's word, `status` its main process's."""
    number = int(status or 0)
    if result in ("signal", "core-dump"):
        with suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
    if result == "exit-code":
        return f"exit status {number}" if number else "one of its commands failed"
    return RESULTS.get(result, result)


def _pids(shown: Mapping[str, str]) -> tuple[int, ...]:
    """The processes in the unit's control group and those below it."""
    if not shown["ControlGroup"].strip("/"):
        return ()
    found: set[int] = set()
    for top in CGROUPS:
        # os.walk: of a group that is just going it finds nothing, where Path.rglob raises
        for folder, _, _ in os.walk(Path(top, shown["ControlGroup"].lstrip("/"))):
            with suppress(OSError):
                found.update(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
    return tuple(sorted(found - {0}))  # 0: a process that is not in our namespace


def _own_unit() -> str:
    """The service that this process belongs to; "" for a process that a person started."""
    found = re.findall(r"/([^/\n]+\.service)", Path("/proc/self/cgroup").read_text())
    return str(found[-1]) if found else ""


def _first_line(error: CommandFailed) -> str:
    """What systemctl said; further lines say where else to look."""
    said = error.output.strip().splitlines()
    return said[0] if said else str(error)
