"""Whose process it is, as a table over real processes; and how an application's are ended, and nobody else's."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from otaflow.platform.processes import Found, end_processes, find_processes
from otaflow.platform.supervisor import MARK, read_process

PATIENCE = 60.0
PYTHON = os.path.realpath(sys.executable)
WAITS = "import sys\nsys.stdin.read()\n"
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Place:
    """An application's tree in `app`, other files beside it, and processes that are nobody's children."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = folder / "app"
        self.out = folder / "out"
        self.pids: list[int] = []
        for name in ("app/bin", "app/notes", "app/venv/bin", "app2/bin", "out"):
            (folder / name).mkdir(parents=True)
        for name in ("app/bin/notes", "app2/bin/notes", "out/notes"):
            shutil.copy2(str(shutil.which("sleep")), folder / name)
        for name in ("app/tool.py", "app/notes/__main__.py", "out/tool.py"):
            (folder / name).write_text(WAITS)
        for name in ("app/run.sh", "app/run", "out/run.sh"):
            (folder / name).write_text("#!/bin/sh\nread line\n:\n")
            (folder / name).chmod(0o755)
        (folder / "app/venv/bin/python").symlink_to(PYTHON)
        (folder / "app/log").write_text("a line\n" * 2000)
        (folder / "app/data.json").write_text("{}")
        shutil.copy2(_library(), folder / "app/library.so")
        os.mkfifo(folder / "fifo")

    def start(self, *words: str, cwd: str = "out") -> int:
        """Start a program that reads a pipe which never ends; its parent is gone when this returns."""
        args = [word.format(app=self.app, out=self.out, python=PYTHON) for word in words]
        starter = f'"$@" 0<>"{self.folder}/fifo" >/dev/null 2>"{self.out}/errors" & echo $!'
        done = subprocess.run(
            ["/bin/sh", "-c", starter, "sh", *args],
            cwd=self.folder / cwd,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        pid = int(done.stdout)
        self.pids.append(pid)
        return pid

    def settle(self, pid: int, first: str) -> None:
        """Wait until it is the program, and sleeps."""
        wait_for(lambda: _words(pid)[:1] == [first] and _status(pid) == "S", lambda: (self.out / "errors").read_text())

    def end(self) -> None:
        for pid in self.pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(read_process(pid) for pid in self.pids))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.end()


def wait_for(what: Callable[[], object], say: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, f"it did not happen: {say()}"
        time.sleep(0.02)


def _library() -> str:
    """A library that every Python has loaded."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(line.split(None, 5)[5] for line in lines if "/libm.so" in line or "/libm-" in line)


def _words(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    return []


def _status(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def found(place: Place, *, but: tuple[int, ...] = ()) -> dict[int, str]:
    return {one.pid: one.why for one in find_processes([place.app], but=but)}


MAPS = "import mmap, sys\nwith open('{app}/log', 'r+b') as f: m = mmap.mmap(f.fileno(), 0, {how})\nsys.stdin.read()"
OPENS = "import sys\nf = open('{app}/log', '{how}')\nsys.stdin.read()"
LOADS = "import ctypes, sys\nctypes.CDLL('{app}/library.so')\nsys.stdin.read()"

THEIRS = {
    # the program, where it works, and why it is the application's
    "its binary": (["{app}/bin/notes", "1000"], "out", "its program is {app}/bin/notes"),
    "its binary, called otherwise": (["./bin/notes", "1000"], "app", "its program is {app}/bin/notes"),
    "its script, by its first line": (["{app}/run"], "out", "its program is {app}/run"),
    "its script in a shell": (["sh", "{app}/run.sh"], "out", "its program is {app}/run.sh"),
    "its script in a shell, with options": (
        ["sh", "-eu", "-o", "noglob", "run.sh"],
        "app",
        "its program is {app}/run.sh",
    ),
    "its script in python": (["{python}", "{app}/tool.py"], "out", "its program is {app}/tool.py"),
    "its script, with options": (
        ["{python}", "-B", "-W", "ignore", "-E", "-s", "../app/tool.py", "x"],
        "out",
        "its program is {app}/tool.py",
    ),
    "its package, by the folder's name": (["{python}", "{app}/notes"], "out", "its program is {app}/notes"),
    "its module, found where it works": (["{python}", "-m", "notes"], "app", "its program is {app}/notes/__main__.py"),
    "its own python": (["{app}/venv/bin/python", "-c", WAITS], "out", "its program is {app}/venv/bin/python"),
    "a file open for writing": (["{python}", "-c", OPENS.replace("{how}", "a")], "out", "it has {app}/log open"),
    "a file open for both": (["{python}", "-c", OPENS.replace("{how}", "r+")], "out", "it has {app}/log open"),
    "shared memory": (["{python}", "-c", MAPS.replace("{how}", "mmap.MAP_SHARED")], "out", "it has {app}/log open"),
    "its code, loaded": (["{python}", "-c", LOADS], "out", "it has {app}/library.so open"),
}

OTHERS = {
    "a shell after cd": (["sh"], "app"),
    "a shell that one types in": (["sh", "-i"], "app"),
    "a shell with a command about it": (["sh", "-c", "read line; : {app}/run.sh"], "app"),
    "a shell with its text as argument": (["sh", "-s", "{app}/run.sh"], "app"),
    "a shell with another script": (["sh", "{out}/run.sh", "{app}/run.sh"], "app"),
    "tail -f": (["tail", "-f", "{app}/log"], "out"),
    "cat": (["cat", "-", "{app}/log"], "app"),
    "sleep that works there": (["sleep", "1000"], "app"),
    "python that works there": (["{python}", "-i", "-q"], "app"),
    "python that reads a file": (["{python}", "-c", OPENS.replace("{how}", "r")], "app"),
    "python that maps a file to read it": (
        ["{python}", "-c", MAPS.replace("{how}", "mmap.MAP_PRIVATE, mmap.PROT_READ").replace("r+b", "rb")],
        "out",
    ),
    "python with its script as argument": (["{python}", "{out}/tool.py", "{app}/tool.py"], "app"),
    "python with code, and its script as argument": (["{python}", "-c", WAITS, "{app}/tool.py"], "app"),
    "python with another module": (["{python}", "-m", "http.server", "--bind", "127.0.0.1", "0"], "app"),
    "python with a name that is there too": (["{python}", "{out}/tool.py", "-m", "notes"], "app"),
    "a name that begins like it": (["{app}2/bin/notes", "1000"], "app2"),
    "another program of its name": (["{out}/notes", "1000"], "app"),
}


def first_of(words: list[str], place: Place) -> str:
    """How the process calls itself: for a script, its interpreter."""
    return "/bin/sh" if words == ["{app}/run"] else words[0].format(app=place.app, out=place.out, python=PYTHON)


@pytest.mark.parametrize(("words", "cwd", "why"), THEIRS.values(), ids=THEIRS)
def test_what_is_the_applications(place: Place, words: list[str], cwd: str, why: str) -> None:
    pid = place.start(*words, cwd=cwd)
    place.settle(pid, first_of(words, place))
    wait_for(lambda: found(place) == {pid: why.format(app=place.app)}, lambda: str(found(place)))
    assert found(place, but=(pid,)) == {}
    assert end_processes([place.app], grace=PATIENCE) == []
    wait_for(lambda: read_process(pid) is None)


@pytest.mark.parametrize(("words", "cwd"), OTHERS.values(), ids=OTHERS)
def test_what_is_somebody_elses(place: Place, words: list[str], cwd: str) -> None:
    pid = place.start(*words, cwd=cwd)
    place.settle(pid, first_of(words, place))
    assert found(place) == {}
    assert end_processes([place.app], grace=0) == []
    assert read_process(pid) is not None


def test_one_whose_program_was_deleted(place: Place) -> None:
    pid = place.start("{app}/bin/notes", "1000")
    place.settle(pid, f"{place.app}/bin/notes")
    (place.app / "bin/notes").unlink()
    assert found(place) == {pid: f"its program is {place.app}/bin/notes"}


def test_one_whose_program_was_replaced(place: Place) -> None:
    pid = place.start("{app}/bin/notes", "1000")
    place.settle(pid, f"{place.app}/bin/notes")
    os.replace(place.out / "notes", place.app / "bin/notes")
    assert found(place) == {pid: f"its program is {place.app}/bin/notes"}


def test_one_whose_tree_was_moved(place: Place) -> None:
    pid = place.start("{app}/bin/notes", "1000")
    place.settle(pid, f"{place.app}/bin/notes")
    former = place.folder / "former"
    place.app.rename(former)
    assert [one.pid for one in find_processes([place.app, former])] == [pid]


def test_a_folder_that_is_a_link(place: Place) -> None:
    pid = place.start("{app}/bin/notes", "1000")
    place.settle(pid, f"{place.app}/bin/notes")
    (place.folder / "link").symlink_to(place.app)
    assert [one.pid for one in find_processes([place.folder / "link"])] == [pid]


def test_a_folder_that_is_not_there(place: Place) -> None:
    assert find_processes([place.folder / "nowhere"]) == []
    assert find_processes([]) == []
    assert end_processes([], grace=0) == []


def test_what_is_known_of_it(place: Place) -> None:
    pid = place.start("{app}/bin/notes", "1000")
    place.settle(pid, f"{place.app}/bin/notes")
    [one] = find_processes([place.app])
    assert one == Found(pid, one.started, f"{place.app}/bin/notes 1000", f"its program is {place.app}/bin/notes")
    assert one.started <= time.time() + 1


def test_our_own_children_are_left_alone_unless_they_are_services(place: Place) -> None:
    children = [
        subprocess.Popen([place.app / "bin/notes", "1000"], env=environment, stdin=subprocess.DEVNULL)
        for environment in ({}, {MARK: "/x/notes.service"})
    ]
    try:
        for child in children:
            place.settle(child.pid, str(place.app / "bin/notes"))
        assert list(found(place)) == [children[1].pid]
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_who_called_us_is_left_alone(place: Place) -> None:
    """The application itself asks: it, and what runs it, are our ancestors; its other processes are not."""
    ask = (
        "from pathlib import Path\nfrom otaflow.platform.processes import find_processes\n"
        "print([one.pid for one in find_processes([Path(PLACE)])])"
    )
    other = place.start("{app}/bin/notes", "1000")
    place.settle(other, f"{place.app}/bin/notes")
    (place.app / "ask.py").write_text(
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {ask.replace('PLACE', repr(str(place.app)))!r}], check=True)\n"
    )
    done = subprocess.run([sys.executable, place.app / "ask.py"], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == f"[{other}]\n"


def test_zombies_do_not_count(place: Place) -> None:
    code = "import subprocess, sys\nc = subprocess.Popen(['{app}/bin/notes', '0'])\nsys.stdin.read()"
    pid = place.start("{python}", "-c", code)
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_for(lambda: [_status(int(child)) for child in children.read_text().split()] == ["Z"])
    assert found(place) == {}


@ROOT
def test_a_namespace_of_its_own_is_seen_through(place: Place) -> None:
    """As systemd gives it to a service with PrivateTmp=: the same files, under the same root."""
    pid = place.start("unshare", "--mount", "{app}/bin/notes", "1000")
    place.settle(pid, f"{place.app}/bin/notes")
    assert found(place) == {pid: f"its program is {place.app}/bin/notes"}


@ROOT
@pytest.mark.parametrize(
    "words", ["{app}/bin/notes 1000", "{python} {app}/tool.py", "sh -c 'exec 3>>{app}/log; read x'"]
)
def test_another_namespace_may_have_other_files_under_that_name(place: Place, words: str) -> None:
    """As in a container: what it calls {app} is a file system of its own."""
    script = (
        "mount -t tmpfs none {app} && mkdir {app}/bin && cp {out}/notes {app}/bin && cp {out}/tool.py {app} &&"
        f" echo x > {{out}}/ready && exec {words}"
    )
    pid = place.start("unshare", "--mount", "sh", "-c", script.replace("{python}", PYTHON))
    wait_for((place.out / "ready").exists)
    wait_for(lambda: "mount" not in " ".join(_words(pid)[2:3]))
    wait_for(lambda: _status(pid) == "S")
    assert found(place) == {}


@ROOT
def test_what_we_may_not_look_at_is_no_error(place: Place) -> None:
    pid = place.start("{app}/bin/notes", "1000")
    place.settle(pid, f"{place.app}/bin/notes")
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            os._exit(len(find_processes([place.app])) + len(end_processes([place.app], grace=0)))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_process(pid) is not None


# --- ending -------------------------------------------------------------------------------------------------------

SAYS = "import os, signal, sys, time\n{handler}\nopen('{ready}', 'w')\nwhile True: time.sleep(1)\n"


def start_tool(place: Place, handler: str) -> int:
    """An application's program with something to say to SIGTERM."""
    ready = place.out / f"ready-{len(place.pids)}"
    (place.app / "tool.py").write_text(SAYS.replace("{handler}", handler).replace("{ready}", str(ready)))
    pid = place.start("{python}", "{app}/tool.py")
    wait_for(ready.exists)
    return pid


def test_one_that_ends_when_it_is_asked(place: Place) -> None:
    handler = (
        f"def end(*_):\n    open({str(place.out / 'said')!r}, 'a').write('bye')\n    sys.exit()\nsignal.signal(15, end)"
    )
    pid = start_tool(place, handler)
    assert end_processes([place.app], grace=PATIENCE) == []
    wait_for(lambda: read_process(pid) is None)
    assert (place.out / "said").read_text() == "bye"


def test_one_that_does_not_is_killed(place: Place) -> None:
    pid = start_tool(place, "signal.signal(15, signal.SIG_IGN)")
    assert end_processes([place.app], grace=0.2) == []
    wait_for(lambda: read_process(pid) is None)


def test_one_that_is_stopped_is_killed(place: Place) -> None:
    pid = start_tool(place, "")
    os.kill(pid, signal.SIGSTOP)
    assert end_processes([place.app], grace=0.2) == []
    wait_for(lambda: read_process(pid) is None)


def test_those_that_appear_meanwhile(place: Place) -> None:
    """Asked to end, it leaves a successor in another session, several times."""
    handler = (
        "left = 5\ndef end(*_):\n    global left\n    left -= 1\n"
        "    if left and os.fork() == 0:\n        os.setsid()\n        return\n    os._exit(0)\nsignal.signal(15, end)"
    )
    start_tool(place, handler)
    assert end_processes([place.app], grace=PATIENCE) == []
    assert found(place) == {}


def test_only_its_own_are_ended(place: Place) -> None:
    other = place.start("sh", cwd="app")
    place.settle(other, "sh")
    spared = place.start("{app}/bin/notes", "1000")
    place.settle(spared, f"{place.app}/bin/notes")
    doomed = start_tool(place, "")
    assert end_processes([place.app], grace=PATIENCE, but=[spared]) == []
    assert read_process(doomed) is None
    assert read_process(other) is not None
    assert read_process(spared) is not None


def test_a_cancel_leaves_them(place: Place) -> None:
    pid = start_tool(place, "signal.signal(15, signal.SIG_IGN)")
    left = end_processes([place.app], grace=PATIENCE, cancelled=lambda: True)
    assert [one.pid for one in left] == [pid]
    assert read_process(pid) is not None
