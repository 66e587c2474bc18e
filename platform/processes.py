"""Which processes are an application's, and how they are ended; never one that is somebody else's.

`folders` are the application's: its tree, the former tree, its data. A process is the application's when

1. its program lies in them: the executable (also one that was deleted or replaced since), or the name it was called by
   where that is a link to the executable (a virtual environment's `bin/python`);
2. it is an interpreter (python, sh, node, java, …) and its script, its `-m` module or one of its archives lies in them,
   seen from its working directory;
3. it has one of their files open for writing, or mapped as code or as shared writable memory.

It is not, when it only reads there (`less`, `tail -f`, `grep`, a backup), or only works there: a shell after `cd`, an
editor, a terminal multiplexer, a language server. A path in its arguments counts for interpreters alone, and only
where the code stands that they run.

Never: this process, those that started it, and those that it started (health checks, downloads), unless our
supervisor runs them as a service; process 1; kernel threads; zombies. A path counts only where it means the same as
here: for a process of another mount namespace the file must be on the folder's own file system, and under the same
root; of a container that has the same names inside nothing is found.

What we may not look at (another user's process, when we are not root) is not found.
"""

import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from otaflow.platform.supervisor import MARK

if TYPE_CHECKING:
    import psutil

POLL_SECONDS = 0.1
KILL_SECONDS = 10.0  # what was killed may be inside a long call of the kernel
DELETED = " (deleted)"
SHELL = re.compile(r"(ba|da|a|k|z|mk|pdk|fi)?sh")
INTERPRETERS = (
    # what it is called, the options behind which the code itself stands, the options whose value is the next word
    (SHELL, re.compile(r"-[A-Za-z]*[cs][A-Za-z]*"), {"-o", "+o", "-O", "+O"}),
    (re.compile(r"(python|pypy)[0-9.]*"), re.compile(r"-[A-Za-z]*c"), {"-W", "-X", "--check-hash-based-pycs"}),
    (re.compile(r"node|nodejs|bun|deno"), re.compile(r"-e|-p|-pe|--eval|--print"), {"-r", "--require", "--import"}),
    (re.compile(r"java"), None, set[str]()),
    (re.compile(r"(perl|ruby|php|lua|tclsh|guile)[0-9.]*|mono|dotnet|Rscript|gjs"), re.compile(r"-e|-E"), {"-I", "-r"}),
)
ARCHIVES = ("-cp", "-classpath", "--class-path", "-p", "--module-path")
"""Options of java that name folders and archives of code, with `:` between them."""


@dataclass(frozen=True)
class Found:
    """A process of the application: when it started (Unix time), its command line, and why it is taken for it."""

    pid: int
    started: float
    command: str
    why: str


def find_processes(folders: Sequence[Path], *, but: Collection[int] = ()) -> list[Found]:
    """All processes of the application that `folders` belong to, by number; those in `but` are left out."""
    return [found for _, found in _find(folders, but)]


def end_processes(
    folders: Sequence[Path],
    *,
    grace: float,
    but: Collection[int] = (),
    cancelled: Callable[[], bool] | None = None,
) -> list[Found]:
    """End them: SIGTERM, after `grace` seconds SIGKILL, also those that appear meanwhile. What is left: nothing.

    What cannot be ended, or is started again and again, or was there when `cancelled()` became true, is returned.
    """
    asked: set[tuple[int, float]] = set()
    killing, killed = time.monotonic() + grace, 0.0
    while found := _find(folders, but) or _find(folders, but):  # the second look sees what began during the first
        now = time.monotonic()
        if (killed and now > killed + KILL_SECONDS) or (cancelled is not None and cancelled()):
            break
        for process, one in found:
            _send(process, kill=now >= killing, asked=asked, key=(one.pid, one.started))
        killed = killed or (now if now >= killing else 0.0)
        _wait([process for process, _ in found], POLL_SECONDS)
    return [one for _, one in found]


def _send(process: "psutil.Process", *, kill: bool, asked: set[tuple[int, float]], key: tuple[int, float]) -> None:
    """SIGKILL, or SIGTERM once; psutil sees to it that it is still the process that was found."""
    import psutil

    with suppress(psutil.Error):
        if kill:
            process.kill()
        elif key not in asked:
            process.terminate()
    asked.add(key)


def _wait(processes: "list[psutil.Process]", seconds: float) -> None:
    import psutil

    psutil.wait_procs(processes, timeout=seconds)


def _find(folders: Sequence[Path], but: Collection[int]) -> "list[tuple[psutil.Process, Found]]":
    import psutil

    view = _View(folders)
    never = {1, 2, *but, *_own()}
    result = []
    for process in psutil.process_iter():
        if process.pid in never:
            continue
        with suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE or not (why := view.why(process.pid)):
                continue
            command = " ".join(process.cmdline()) or process.name()
            result.append((process, Found(process.pid, process.create_time(), command, why)))
    return sorted(result, key=lambda pair: pair[0].pid)


def _own() -> set[int]:
    """We, our ancestors, and our descendants that are no services."""
    import psutil

    me = psutil.Process()
    ours = {me.pid, *(parent.pid for parent in me.parents())}
    for child in me.children(recursive=True):
        with suppress(OSError):
            if MARK.encode() + b"=" in Path(f"/proc/{child.pid}/environ").read_bytes():
                continue
        ours.add(child.pid)
    return ours


class _View:
    """The folders, as we see them, and the question whether a process uses what is in them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        # a link on the way to a folder is followed: /proc names the real paths only
        self._folders = sorted({os.path.realpath(folder) for folder in folders})
        self._devices = {folder: _device(folder) for folder in self._folders}
        self._namespace = _link("/proc/self/ns/mnt")
        self._root = _identity("/")

    def why(self, pid: int) -> str:
        """Why the process is the application's; empty if it is not, or cannot be looked at."""
        proc = f"/proc/{pid}"
        program = _link(f"{proc}/exe")
        if not program:
            return ""  # a kernel thread, or not ours to see
        same = _link(f"{proc}/ns/mnt") == self._namespace
        if not same and _identity(f"{proc}/root") != self._root:
            return ""
        if self._has(program, None if same else f"{proc}/exe"):
            return f"its program is {_bare(program)}"
        if _identity(f"{proc}/root") == self._root and (script := self._script(proc, _bare(program), same)):
            return f"its program is {script}"
        return self._use(proc, same)

    def _has(self, path: str, seen_as: str | None) -> bool:
        """Whether `path` lies in a folder; what `seen_as` leads to must be on the folder's own file system then."""
        path = _bare(path)
        for folder in self._folders:
            if path.startswith(f"{folder}/") or path == folder:
                # a subvolume below the folder is a device of its own
                there = _device(seen_as) if seen_as is not None else -1
                return seen_as is None or (there is not None and there in (self._devices[folder], _device(path)))
        return False

    def _script(self, proc: str, program: str, same: bool) -> str:
        """The file of the folders that the process runs although its executable lies elsewhere."""
        words = Path(f"{proc}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
        if not words:
            return ""
        folder = _bare(_link(f"{proc}/cwd"))
        called = _join(folder, words[0]) if "/" in words[0] else ""
        # the name may be a link; that it leads to the executable shows that it was not made up
        if called and self._has(called, _through(proc, called, same)) and os.path.realpath(called) == program:
            return called
        for candidate in filter(None, _code(os.path.basename(program), words)):
            path = _join(folder, candidate)
            # a relative name may also have been found on a search path; an absolute one may be gone by now
            if not candidate.startswith("/") and not os.path.lexists(path):
                continue
            for place in (path, os.path.realpath(path)):
                if self._has(place, _through(proc, place, same)):
                    return place
        return ""

    def _use(self, proc: str, same: bool) -> str:
        """Which file of the folders it writes, or has mapped so that it runs it or changes it."""
        for fd in os.listdir(f"{proc}/fd"):
            path = _link(f"{proc}/fd/{fd}")
            if self._has(path, None if same else f"{proc}/fd/{fd}") and _is_written(proc, fd):
                return f"it has {_bare(path)} open"
        for mode, path in _mappings(proc):
            runs_or_changes = "x" in mode or ("w" in mode and "s" in mode)
            if runs_or_changes and self._has(path, _through(proc, _bare(path), same)):
                return f"it has {_bare(path)} open"
        return ""


def _code(program: str, words: list[str]) -> Iterator[str]:
    """The files that hold the code which an interpreter runs, as its command line names them."""
    if program == "busybox":  # one program for the shell and for `tail`
        words = words[1:] if os.path.basename(words[0]) == program else words
        program = os.path.basename(words[0]) if words else ""
    for called, code, valued in INTERPRETERS:
        if called.fullmatch(program):
            if program == "java":
                yield from _java(words[1:])
            else:
                yield from _script_of(words[1:], code, valued, modules=program.startswith("py"))


def _script_of(words: list[str], code: re.Pattern[str] | None, valued: set[str], *, modules: bool) -> Iterator[str]:
    """The first word that is no option, or the files that a module's name stands for."""
    rest = iter(words)
    for word in rest:
        if code is not None and code.fullmatch(word):
            return
        if modules and re.fullmatch("-[A-Za-z]*m", word):
            module = next(rest, "")
            if all(part.isidentifier() for part in module.split(".")):
                yield from (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__main__.py")
            return
        if word in valued:
            next(rest, "")
        elif word and word[0] not in "-+":
            yield word
            return


def _java(words: list[str]) -> Iterator[str]:
    """The archive of `-jar`, and what the search paths name."""
    rest = iter(words)
    for word in rest:
        if word == "-jar":
            yield next(rest, "")
            return
        if word in ARCHIVES:
            yield from (part.removesuffix("*") for part in next(rest, "").split(":") if part)
        elif not word.startswith("-"):
            return


def _is_written(proc: str, fd: str) -> bool:
    try:
        text = Path(f"{proc}/fdinfo/{fd}").read_text()
    except OSError:
        return False  # closed meanwhile
    found = re.search(r"^flags:\s*([0-7]+)", text, re.MULTILINE)
    return found is not None and int(found[1], 8) & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)


def _mappings(proc: str) -> Iterator[tuple[str, str]]:
    """Mode (`r-xp`) and path of each mapping of a file."""
    for line in Path(f"{proc}/maps").read_text(errors="surrogateescape").splitlines():
        parts = line.split(None, 5)
        if len(parts) == 6 and parts[5].startswith("/"):
            yield parts[1], parts[5]


def _join(folder: str, path: str) -> str:
    return os.path.normpath(os.path.join(folder or "/", path))


def _through(proc: str, path: str, same: bool) -> str | None:
    """Where the process finds `path`, for a look at it; None when it sees what we see."""
    return None if same else f"{proc}/root{path}"


def _bare(path: str) -> str:
    return path.removesuffix(DELETED)


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _device(path: str) -> int | None:
    found = _identity(path)
    return found[0] if found else None
