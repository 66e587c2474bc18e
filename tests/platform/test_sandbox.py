"""platform/sandbox.py for real: what a program can do, as root and as another user."""

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from otaflow.errors import CommandFailed
from otaflow.platform import sandbox
from otaflow.platform.sandbox import CANCELLED, TIMED_OUT, run_program

rooted = pytest.mark.skipif(not sandbox.enforced(), reason="protection needs root and the right to mount")


class Box:
    """A device's folder, of which one slot may be written, and a script to run in it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "device"
        self.spare = self.root / "slots" / "b"
        self.running = self.root / "slots" / "a"
        self.package = folder / "package"
        self.heard: list[str] = []
        for path in (self.spare, self.running, self.package):
            path.mkdir(parents=True)
        (self.running / "file").write_text("old")

    def run(self, script: str, **options: object) -> int:
        arguments: dict[str, object] = {
            "cwd": self.package,
            "env": {"A": str(self.running), "B": str(self.spare)},
            "timeout": 120,
            "writable": [self.spare, self.package],
            "protected": [self.root],
            "output": self.heard.append,
        }
        return run_program(["sh", "-c", script], **{**arguments, **options})  # type: ignore[arg-type]


@pytest.fixture(params=[pytest.param("enforced", marks=rooted), "plain"])
def box(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    if request.param == "plain":
        monkeypatch.setattr(sandbox, "enforced", lambda: False)
    return Box(tmp_path)


def alive(marker: Path) -> list[int]:
    return [
        process.pid for process in psutil.process_iter(["cmdline"]) if str(marker) in (process.info["cmdline"] or [])
    ]


def test_status_output_environment_and_folder(box: Box) -> None:
    assert box.run('echo "$A"; pwd; echo err >&2; exit 7') == 7
    assert box.heard == [str(box.running), str(box.package), "err"]


def test_the_spare_slot_can_be_written(box: Box) -> None:
    assert box.run('echo new > "$B/file" && echo x > here') == 0
    assert (box.spare / "file").read_text() == "new\n"
    assert (box.package / "here").exists()


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000 {} &",
        'setsid sh -c \'trap "" TERM HUP; sh -c "sleep 1000; :" {}\' &',
        "(setsid sh -c 'sleep 1000; :' {} &) & exec true",
    ],
    ids=["background", "session", "orphan"],
)
def test_no_process_outlives_it(box: Box, script: str) -> None:
    assert box.run(script.replace("sleep 1000 {}", "sh -c 'sleep 1000; :' {}").replace("{}", str(box.package))) == 0
    assert alive(box.package) == []


def test_a_time_limit(box: Box) -> None:
    script = f"setsid sh -c 'sleep 1000; :' {box.package} & echo on; sleep 1000"
    for seconds in (3, 15, 75):  # how long it takes to get so far is the machine's affair
        box.heard.clear()
        assert box.run(script, timeout=seconds) == TIMED_OUT
        if box.heard:
            break
    assert box.heard == ["on"]
    end = time.monotonic() + 60
    while alive(box.package) and time.monotonic() < end:
        time.sleep(0.01)
    assert alive(box.package) == []


def test_cancelling(box: Box) -> None:
    assert box.run("echo on; sleep 1000", cancelled=lambda: bool(box.heard)) == CANCELLED


def test_a_missing_program(box: Box) -> None:
    with pytest.raises(CommandFailed, match="there is no such program"):
        run_program([box.package / "update"], cwd=box.package, env={}, timeout=9, writable=[], protected=[])


@rooted
@pytest.mark.parametrize(
    "attempt",
    [
        'echo new > "$A/file"',
        'rm "$A/file"',
        'mv "$A" "$A.moved"',
        'touch "$A/../../new"',
        'chmod 777 "$A/file"',
        'mount -o remount,rw,bind "$A/../.." && echo new > "$A/file"',
        'umount "$A/../.." && echo new > "$A/file"',
        'unshare --mount sh -c "umount $A/../..; echo new > $A/file"',
        'unshare --user --map-root-user --mount sh -c "mount -o remount,rw,bind $A/../..; echo new > $A/file"',
        'nsenter --mount=/proc/1/ns/mnt sh -c "echo new > $A/file"',
        'echo new > "/proc/1/root$A/file"',
    ],
    ids=lambda text: text.split('"')[0].strip() + text[-12:],
)
def test_the_running_slot_cannot_be_written(tmp_path: Path, attempt: str) -> None:
    box = Box(tmp_path)
    assert box.run(f"{attempt} || exit 3") == 3
    assert os.listdir(box.root) == ["slots"]
    assert sorted(os.listdir(box.root / "slots")) == ["a", "b"]
    assert (box.running / "file").read_text() == "old"
    assert (box.running / "file").stat().st_mode & 0o777 != 0o777


@rooted
@pytest.mark.parametrize("attempt", ["date -s 2001-01-01", "mknod x b 7 0", "kill -0 $OUTSIDE", "mount -t tmpfs x ."])
def test_the_machine_cannot_be_changed(tmp_path: Path, attempt: str) -> None:
    assert Box(tmp_path).run(f"{attempt} || exit 3", env={"OUTSIDE": str(os.getpid())}) == 3


@rooted
def test_updates_need_no_more(tmp_path: Path) -> None:
    box = Box(tmp_path)
    script = """
set -e
mkdir src; echo x > src/file; chown 12:34 src/file; chmod 4755 src/file
cp -a src/. "$B"
setcap cap_net_raw+ep "$B/file"
getcap "$B/file"
"""
    assert box.run(script) == 0, box.heard
    assert box.heard[-1].endswith("cap_net_raw=ep")
    assert (box.spare / "file").stat().st_uid == 12


@rooted
def test_protected_inside_writable_and_files_not_there(tmp_path: Path) -> None:
    box = Box(tmp_path)
    script = 'touch "$A/../new" && ! touch "$A/new"'
    nothing = box.root / "none"
    assert box.run(script, writable=[box.root, nothing], protected=[box.running, nothing]) == 0


@rooted
def test_the_root_file_system_can_be_protected(tmp_path: Path) -> None:
    box = Box(tmp_path)
    script = 'touch "$B/new" && ! touch "$A/new" && ! touch /otaflow-test-file'
    assert box.run(script, protected=[Path("/"), box.root]) == 0, box.heard
    if os.stat(tmp_path).st_dev == os.stat("/").st_dev:  # else the slots are on another one
        assert box.run(script, protected=[Path("/")]) == 0, box.heard


@rooted
def test_what_is_mounted_inside_a_protected_folder_is_protected_too(tmp_path: Path) -> None:
    box = Box(tmp_path)
    slots = box.root / "slots"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", slots], check=True)
    try:
        for path in (box.running, box.spare):
            path.mkdir()
        assert box.run('echo new > "$B/file"') == 0
        assert box.run('echo new > "$A/file"') != 0
        assert "Read-only" in box.heard[-1]
        assert not (box.running / "file").exists()
    finally:
        subprocess.run(["umount", slots], check=True)


@rooted
def test_nothing_stays_mounted(tmp_path: Path) -> None:
    Box(tmp_path).run("true")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@rooted
def test_it_dies_with_us(tmp_path: Path, start_python) -> None:
    code = """
import sys
from pathlib import Path
from otaflow.platform.sandbox import run_program
folder = Path(sys.argv[1])
script = "(setsid sh -c 'sleep 1000; :' " + sys.argv[1] + " &) ; echo on; sleep 1000"
run_program(["sh", "-c", script], cwd=folder, env={}, timeout=60, writable=[], protected=[folder],
            output=lambda line: print(line, flush=True))
"""
    process = start_python(code, tmp_path)
    assert process.stdout.readline() == "on\n"
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while alive(tmp_path) and time.monotonic() < end:
        time.sleep(0.01)
    assert alive(tmp_path) == []


WITHOUT_ROOT = """
import os, sys
from pathlib import Path
from otaflow.platform.sandbox import enforced, run_program
# now, with everything imported: the interpreter may be in a folder that others cannot read
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
assert not enforced()
folder = Path(sys.argv[1])
heard = []
script = "setsid sh -c 'sleep 1000; :' " + sys.argv[1] + " & id -u; touch file; exit 5"
print(run_program(["sh", "-c", script], cwd=folder, env={}, timeout=60, writable=[folder], protected=[folder / "none"],
                  output=heard.append), heard)
"""


def test_without_root(nobody_tmp: Path, start_python) -> None:
    process = start_python(WITHOUT_ROOT, nobody_tmp)
    assert process.communicate(timeout=60)[0] == "5 ['65534']\n"
    assert (nobody_tmp / "file").exists()
    assert alive(nobody_tmp) == []
