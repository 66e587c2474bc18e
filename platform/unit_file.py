"""Unit files of services, as far as we run them ourselves where there is no systemd (systemd.service, systemd.exec).

Three kinds of keys. Those of `Unit` are honoured. Those that only harden, limit, order or describe are ignored, and
listed in `Unit.ignored`. Any other key in [Service] could change what runs: the file is refused, rather than that
something else runs than its author meant. Specifiers are refused likewise, `%%` excepted.
"""

import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from otaflow.errors import ServiceFailed

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9:_.-]{0,200}\.service")
MAX_BYTES = 1 << 20
TYPES = ("simple", "exec", "notify")
RESTARTS = ("no", "on-failure", "always")
KILL_MODES = ("control-group", "mixed")
FOREVER = float(365 * 86400)

IGNORED = re.compile(
    r"X-.*|Protect.*|Private.*|Restrict.*|Limit.*|SystemCall.*|Capability.*|AmbientCapabilities|NoNewPrivileges"
    r"|ReadWritePaths|ReadOnlyPaths|InaccessiblePaths|ExecPaths|NoExecPaths|LockPersonality|MemoryDenyWriteExecute"
    r"|RemoveIPC|KeyringMode|SecureBits|UtmpIdentifier|ProcSubset|IPAddress.*|DeviceAllow|DevicePolicy|SocketBind.*"
    r"|Nice|OOM.*|CPU.*|Memory.*|Tasks.*|IO.*|StartupCPU.*|StartupIO.*|Slice|Delegate|TimerSlackNSec"
    r"|StandardInput|StandardOutput|StandardError|Syslog.*|Log(Level|RateLimit|Extra|Namespace).*"
    r"|NotifyAccess|WatchdogSec|FailureAction|SuccessAction|SendSIGKILL|SendSIGHUP|FinalKillSignal|GuessMainPID"
)
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")
_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Command:
    """One Exec… line: its words, and whether its failure does not matter (a leading `-`)."""

    words: tuple[str, ...]
    may_fail: bool = False


@dataclass(frozen=True)
class Unit:
    """What a unit file says, times in seconds. `environment` has its files named by `environment_files` not read."""

    start: Command
    before: tuple[Command, ...] = ()
    reload: tuple[Command, ...] = ()
    stop: tuple[Command, ...] = ()
    type: str = "simple"
    folder: str = "/"
    folder_may_lack: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    environment_files: tuple[Command, ...] = ()
    user: str = ""
    group: str = ""
    umask: int = 0o022
    kill_signal: int = int(signal.SIGTERM)
    kill_mode: str = "control-group"
    start_timeout: float = 90.0
    stop_timeout: float = 90.0
    restart: str = "no"
    restart_wait: float = 0.1
    limit_burst: int = 5
    limit_seconds: float = 10.0
    good_exits: tuple[int, ...] = ()
    """Exit statuses that are no failure beside 0; minus the number of a signal."""
    ignored: tuple[str, ...] = ()


def check_name(name: str) -> None:
    """ServiceFailed when `name` cannot be the name of a service's unit file."""
    if not NAME.fullmatch(name) or ".." in name:
        raise ServiceFailed(
            f"cannot use the service {name!r}: this is no name of a unit", hint="it is called NAME.service"
        )


def read_unit(path: Path) -> Unit:
    """Read the unit file at `path`. ServiceFailed says what in it cannot be used, and in which line."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except FileNotFoundError as error:
        raise ServiceFailed(f"cannot use {path.name}: there is no unit file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceFailed(f"cannot use {path.name}: {path}: {error}") from error
    if len(content) > MAX_BYTES:
        raise ServiceFailed(f"cannot use {path.name}: {path} has more than {MAX_BYTES} bytes")
    return parse_unit(text, path.name)


def parse_unit(text: str, name: str) -> Unit:
    """The unit that `text` describes; `name` is for messages. ServiceFailed as in `read_unit`."""
    reader = _Reader()
    try:
        for number, section, key, value in _read_lines(text):
            try:
                reader.take(section, key, value)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
        return reader.finish()
    except ValueError as error:
        raise ServiceFailed(
            f"cannot use {name}: {error}", hint="without systemd, otaflow runs a subset of its units"
        ) from error


def parse_span(text: str) -> float:
    """Seconds of `90`, `500ms`, `1min 30s`, `infinity`. ValueError."""
    if text == "infinity":
        return FOREVER
    seconds = 0.0
    rest = text
    while rest:
        found = _SPAN.match(rest)
        if not found or found[2] not in _SECONDS:
            raise ValueError(f"{text!r} is no time span")
        seconds += float(found[1]) * _SECONDS[found[2]]
        rest = rest[found.end() :].lstrip()
    if not text:
        raise ValueError("a time span is missing")
    return min(seconds, FOREVER)


def parse_environment(text: str) -> Iterator[tuple[str, str]]:
    """The assignments of an environment file: one a line, quotes around the value. ValueError."""
    for line in text.splitlines():
        if not line.strip() or line.lstrip()[0] in "#;":
            continue
        key, equals, value = line.strip().partition("=")
        if not equals:
            raise ValueError(f"{line.strip()!r} is no NAME=value")
        yield _variable(key.strip()), "".join(shlex.split(value)) if value[:1] in ("'", '"') else value.strip()


def _read_lines(text: str) -> Iterator[tuple[int, str, str, str]]:
    """Number of the line, section, key and value of each assignment; a backslash at the end continues a line."""
    section, whole, first = "", "", 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        bare = line.strip()
        if bare[:1] in ("#", ";"):
            continue
        whole, first = (f"{whole} {bare}".strip(), first) if whole else (bare, number)
        if bare.endswith("\\") and not bare.endswith("\\\\"):
            whole = whole[:-1].rstrip()
            continue
        if whole.startswith("[") and whole.endswith("]"):
            section = whole[1:-1]
        elif whole:
            key, equals, value = whole.partition("=")
            if not equals:
                raise ValueError(f"line {first}: {whole!r} is no KEY=value")
            yield first, section, key.strip(), value.strip()
        whole = ""


class _Reader:
    """Takes one assignment after another; an empty value resets what a list key had."""

    def __init__(self) -> None:
        self._exec: dict[str, list[Command]] = {"ExecStart": [], "ExecStartPre": [], "ExecReload": [], "ExecStop": []}
        self._environment: dict[str, str] = {}
        self._files: list[Command] = []
        self._good: list[int] = []
        self._values: dict[str, str] = {}
        self._ignored: list[str] = []

    def take(self, section: str, key: str, value: str) -> None:
        if section == "Unit" and key in ("StartLimitBurst", "StartLimitIntervalSec"):
            self._values[key] = value
        elif section != "Service" or IGNORED.fullmatch(key):
            if key not in ("Description", "Documentation", "WantedBy", "Alias"):
                self._ignored.append(key)
        elif key in self._exec:
            self._take_command(self._exec[key], _plain(value))
        elif key == "Environment":
            self._take_environment(_plain(value))
        elif key == "EnvironmentFile":
            path = _plain(value)
            self._files = [*self._files, Command((_absolute(path.removeprefix("-")),), path[:1] == "-")] if path else []
        elif key == "SuccessExitStatus":
            self._good = [*self._good, *map(_exit_status, value.split())] if value else []
        elif key in _SINGLE:
            self._values[key] = _plain(value)
        else:
            raise ValueError(f"{key}= is not supported here")

    def finish(self) -> Unit:
        values = self._values
        if len(self._exec["ExecStart"]) != 1:
            raise ValueError(f"it has {len(self._exec['ExecStart'])} ExecStart= and must have one")
        folder = values.get("WorkingDirectory", "")
        user = values.get("User", "")
        span = values.get("TimeoutSec", "90")
        return Unit(
            start=self._exec["ExecStart"][0],
            before=tuple(self._exec["ExecStartPre"]),
            reload=tuple(self._exec["ExecReload"]),
            stop=tuple(self._exec["ExecStop"]),
            type=_one_of("Type", values.get("Type") or "simple", TYPES),
            folder=_folder(folder.removeprefix("-")) if folder else "/",
            folder_may_lack=folder.startswith("-"),
            environment=tuple(self._environment.items()),
            environment_files=tuple(self._files),
            user=user,
            group=values.get("Group", ""),
            umask=int(values.get("UMask") or "0022", 8),
            kill_signal=_signal(values.get("KillSignal") or "SIGTERM"),
            kill_mode=_one_of("KillMode", values.get("KillMode") or "control-group", KILL_MODES),
            # 0 is no limit for a start, and at once for a stop
            start_timeout=parse_span(values.get("TimeoutStartSec", span)) or FOREVER,
            stop_timeout=parse_span(values.get("TimeoutStopSec", span)),
            restart=_one_of("Restart", values.get("Restart") or "no", RESTARTS),
            restart_wait=parse_span(values.get("RestartSec", "100ms")),
            limit_burst=int(values.get("StartLimitBurst", "5")),
            limit_seconds=parse_span(values.get("StartLimitIntervalSec", "10")),
            good_exits=tuple(self._good),
            ignored=tuple(dict.fromkeys(self._ignored)),
        )

    def _take_command(self, commands: list[Command], value: str) -> None:
        if not value:
            commands.clear()
            return
        may_fail = value.startswith("-")
        value = value.removeprefix("-")
        if value[:1] in ("@", ":", "+", "!", "|"):
            raise ValueError(f"the prefix {value[0]!r} of a program is not supported here")
        words = shlex.split(value)
        if ";" in words:
            raise ValueError("several programs in one line (;) are not supported here")
        if not words or not words[0]:
            raise ValueError("a program is missing")
        commands.append(Command(tuple(words), may_fail))

    def _take_environment(self, value: str) -> None:
        if not value:
            self._environment.clear()
        for word in shlex.split(value):
            key, equals, content = word.partition("=")
            if not equals:
                raise ValueError(f"{word!r} is no NAME=value")
            self._environment[_variable(key)] = content


_SINGLE = {
    "Type",
    "WorkingDirectory",
    "User",
    "Group",
    "UMask",
    "KillSignal",
    "KillMode",
    "TimeoutSec",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "Restart",
    "RestartSec",
}


def _plain(value: str) -> str:
    """`value` with `%%` as `%`; ValueError for any other specifier."""
    for found in re.finditer(r"%(.?)", value):
        if found[1] != "%":
            raise ValueError(f"the specifier {found[0]!r} is not supported here")
    if "\0" in value:
        raise ValueError("it holds a NUL")
    return value.replace("%%", "%")


def _one_of(key: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{key}={value} is not supported here, but {', '.join(known)}")
    return value


def _variable(key: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
        raise ValueError(f"{key!r} is no name of a variable")
    return key


def _folder(value: str) -> str:
    return value if value == "~" else _absolute(value)


def _absolute(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f"{value!r} is no absolute path")
    return value


def _signal(value: str) -> int:
    try:
        if value.isdigit():
            return int(signal.Signals(int(value)))
        return int(signal.Signals["SIG" + value.removeprefix("SIG")])
    except (ValueError, KeyError):
        raise ValueError(f"{value!r} is no signal") from None


def _exit_status(value: str) -> int:
    if value.isdigit() and int(value) < 256:
        return int(value)
    return -_signal(value)
