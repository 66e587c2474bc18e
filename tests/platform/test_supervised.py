"""Services that we run ourselves: what a supervisor owes its service, and what is left when one of us is killed."""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from otaflow.errors import ServiceFailed
from otaflow.platform import supervised, supervisor
from otaflow.platform.lock import DeviceLock
from otaflow.platform.supervised import SupervisedServices
from otaflow.platform.supervisor import expand, read_process, read_processes

PATIENCE = 60.0
NAME = "notes.service"
WAITS = "import sys, time\nsys.stdout.write('up\\n')\ntime.sleep(1000)\n"
NOTIFY = """
import os, socket
def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
        wire.sendto(text.encode(), "\\0" + os.environ["NOTIFY_SOCKET"][1:])
"""
DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


class Rig:
    """Services in a folder; everything that was started below it is ended with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.units = folder / "units"
        self.units.mkdir()
        self.services = self.again()

    def again(self, timeout: float = 30, log_bytes: int = 1 << 20) -> SupervisedServices:
        """What another otaflow sees."""
        return SupervisedServices(self.folder / "services", timeout, self.folder / "logs", log_bytes=log_bytes)

    def link(self, program: str = WAITS, keys: str = "", name: str = NAME) -> None:
        path = self.units / f"{name}.py"
        path.write_text(program)
        (self.units / name).write_text(f'[Service]\nExecStart="{sys.executable}" -u "{path}"\n{keys}\n')
        self.services.link(self.units)

    def known(self, name: str = NAME) -> dict[str, object]:
        known: dict[str, object] = json.loads((self.folder / "services" / "run" / f"{name}.json").read_text())
        return known

    def pid_of(self, who: str, name: str = NAME) -> int:
        return int(self.known(name)[who][0])  # type: ignore[index]

    def pids(self) -> list[int]:
        """All processes that have to do with this folder: supervisors by their words, services by their mark."""
        place = os.fsencode(self.folder / "services" / "run")
        found = []
        for process in read_processes():
            with suppress(OSError):
                words = Path(f"/proc/{process.pid}/cmdline").read_bytes()
                mark = b"OTAFLOW_SERVICE=" + place in Path(f"/proc/{process.pid}/environ").read_bytes()
                if mark or (supervisor.__file__.encode() in words and place in words):
                    found.append(process.pid)
        return found

    def end(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while pids := self.pids():
            assert time.monotonic() < deadline
            for pid in pids:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.end()


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# --- how it runs --------------------------------------------------------------------------------------------------


def test_the_program_has_what_the_unit_says(rig: Rig) -> None:
    (rig.folder / "more.env").write_text('MORE="from a file"\n')
    rig.link(
        "import os, sys, time\n"
        "print(os.getcwd(), os.environ['WORDS'], os.environ['MORE'], sys.argv[1:], oct(os.umask(0)), flush=True)\n"
        "print(sorted(os.environ), os.listdir('/proc/self/fd'), os.getsid(0) == os.getpid(), flush=True)\n"
        "time.sleep(1000)\n"
    )
    path = rig.units / NAME
    text = path.read_text().strip().replace("\n\n", "\n") + ' a "b c" ${WORDS} $WORDS $$HOME 100%%\n'
    path.write_text(
        text + f'WorkingDirectory={rig.folder}\nEnvironment="WORDS=two words"\nUMask=0027\n'
        f"EnvironmentFile={rig.folder}/more.env\nEnvironmentFile=-/nowhere\n"
    )
    rig.services.start(NAME)
    wait_for(lambda: [line.endswith(" True") for line in rig.services.read_log(NAME, 5)] == [False, True])
    first, second = rig.services.read_log(NAME, 5)
    words = "['a', 'b c', 'two words', 'two', 'words', '$HOME', '100%']"
    assert first == f"{rig.folder} two words from a file {words} 0o27"
    # the fourth descriptor is the listing's own
    assert second == "['LANG', 'MORE', 'OTAFLOW_SERVICE', 'PATH', 'WORDS'] ['0', '1', '2', '3'] True"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_it_runs_as_its_user(rig: Rig) -> None:
    os.chmod(rig.folder, 0o755)
    rig.link()
    script = "id -u; id -g; echo $$HOME $$USER; exec sleep 1000"
    (rig.units / NAME).write_text(f"[Service]\nExecStart=/bin/sh -c '{script}'\nUser=nobody\nGroup=daemon\n")
    rig.services.start(NAME)
    wait_for(lambda: len(rig.services.read_log(NAME, 5)) == 3)
    assert rig.services.read_log(NAME, 5)[:2] == ["65534", "1"]
    assert rig.services.read_log(NAME, 5)[2].endswith("nobody")


CANNOT = {
    "no program": ("ExecStart=\nExecStart=/nowhere/x", "No such file"),
    "no folder": ("WorkingDirectory=/nowhere", "No such file"),
    "no user": ("User=nobody-knows-me", "there is no user nobody-knows-me"),
    "no group": ("Group=nobody-knows-us", "there is no group nobody-knows-us"),
    "a program before it fails": ("ExecStartPre=/bin/false", "ExecStartPre /bin/false: exit status 1"),
    "a program before it hangs": ("ExecStartPre=/bin/sleep 1000\nTimeoutStartSec=200ms", "did not end in time"),
}


@pytest.mark.parametrize(("keys", "words"), CANNOT.values(), ids=CANNOT)
def test_what_cannot_be_started_says_why(rig: Rig, keys: str, words: str) -> None:
    rig.link(keys=keys)
    with pytest.raises(ServiceFailed, match=re.escape(words)):
        rig.services.start(NAME)
    wait_for(lambda: rig.pids() == [])
    assert rig.services.state(NAME).failed


def test_an_environment_file_that_is_not_there(rig: Rig) -> None:
    rig.link(keys="EnvironmentFile=/nowhere/x.env")
    with pytest.raises(ServiceFailed, match=r"/nowhere/x\.env"):
        rig.services.start(NAME)
    assert rig.pids() == []


def test_the_folder_may_lack_when_the_unit_says_so(rig: Rig) -> None:
    rig.link(keys="WorkingDirectory=-/nowhere\nExecStartPre=-/bin/false\nExecStartPre=/bin/true")
    rig.services.start(NAME)
    assert rig.services.state(NAME).active


# --- notify -------------------------------------------------------------------------------------------------------


def test_a_service_that_tells_is_up_when_it_said_so(rig: Rig) -> None:
    gate = rig.folder / "gate"
    rig.link(
        f"{NOTIFY}import time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
        "notify('STATUS=all notes read\\nREADY=1')\ntime.sleep(1000)\n",
        "Type=notify",
    )
    starting = threading.Thread(target=rig.services.start, args=(NAME,))
    starting.start()
    try:
        wait_for(lambda: rig.again().state(NAME).pids)
        assert not rig.again().state(NAME).active
    finally:
        gate.touch()
        starting.join()
    state = rig.services.state(NAME)
    assert state.active
    wait_for(lambda: rig.services.state(NAME).words == "active (running): all notes read")


def test_a_service_that_never_tells_fails_with_its_last_words(rig: Rig) -> None:
    for seconds in (1, 4, 16, 64):  # on a slow machine it has no words yet
        rig.link("print('cannot open notes.db', flush=True)\n" + WAITS, f"Type=notify\nTimeoutStartSec={seconds}")
        with pytest.raises(
            ServiceFailed, match=rf"cannot start notes\.service: .*not ready within {seconds} s"
        ) as caught:
            rig.again(timeout=100).start(NAME)
        if str(caught.value).endswith(": cannot open notes.db / up"):
            break
    assert str(caught.value).endswith(": cannot open notes.db / up")
    rig.services.stop(NAME)
    assert rig.pids() == []


def test_a_service_that_ends_before_it_tells(rig: Rig) -> None:
    rig.link("print('no')", "Type=notify")
    with pytest.raises(ServiceFailed, match=r"exit status 0 before it was ready: no"):
        rig.services.start(NAME)


def test_what_a_stranger_tells_does_not_count(rig: Rig) -> None:
    """It knows the address, and is none of the service's processes."""
    rig.link(f"{NOTIFY}import time\nprint(os.environ['NOTIFY_SOCKET'], flush=True)\ntime.sleep(1000)\n", "Type=notify")
    starting = threading.Thread(target=_start_quietly, args=(rig.services,))
    starting.start()
    try:
        wait_for(lambda: rig.services.read_log(NAME, 1))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
            wire.sendto(b"READY=1", "\0" + rig.services.read_log(NAME, 1)[0][1:])
            wire.sendto(b"STATUS=owned", "\0" + rig.services.read_log(NAME, 1)[0][1:])
        assert not rig.again().state(NAME).active
        os.kill(rig.pid_of("supervisor"), signal.SIGTERM)
    finally:
        starting.join()
    assert rig.known()["text"] == ""


def _start_quietly(services: SupervisedServices) -> None:
    with suppress(ServiceFailed):
        services.start(NAME)


# --- ends and starts anew -----------------------------------------------------------------------------------------


def test_a_service_that_flaps_fails_in_the_end(rig: Rig) -> None:
    count = rig.folder / "count"
    rig.link(
        f"open({str(count)!r}, 'a').write('x')\nprint('no database')\nraise SystemExit(3)\n",
        "Restart=on-failure\nRestartSec=10ms",
    )
    # a start limit as for a slow machine
    path = rig.units / NAME
    path.write_text("[Unit]\nStartLimitBurst=3\nStartLimitIntervalSec=1h\n" + path.read_text())
    with suppress(ServiceFailed):
        rig.services.start(NAME)
    wait_for(lambda: rig.services.state(NAME).failed)
    assert rig.services.state(NAME).words == "failed (exit status 3; started too often: 3 times)"
    assert rig.services.state(NAME).starts.endswith(".3")
    assert count.read_text() == "xxx"
    wait_for(lambda: rig.pids() == [])


ENDINGS = {
    # how it ends, the rule, whether it is started again, whether it failed if not
    "no, and it fails": ("raise SystemExit(3)", "no", False, True),
    "no, and it ends": ("", "no", False, False),
    "no, and it ends as the unit says": ("raise SystemExit(143)", "no\nSuccessExitStatus=143", False, False),
    "on-failure, and it ends": ("", "on-failure", False, False),
    "on-failure, and it is killed": ("import os\nos.kill(os.getpid(), 9)", "on-failure", True, False),
    "on-failure, and it is asked to end": ("import os\nos.kill(os.getpid(), 15)", "on-failure", False, False),
    "always, and it ends": ("", "always", True, False),
}


@pytest.mark.parametrize(("program", "rule", "again", "failed"), ENDINGS.values(), ids=ENDINGS)
def test_restart(rig: Rig, program: str, rule: str, again: bool, failed: bool) -> None:
    once = rig.folder / "once"
    rig.link(
        f"import os, time\nif os.path.exists({str(once)!r}): time.sleep(1000)\nopen({str(once)!r}, 'w')\n{program}\n",
        f"Restart={rule}\nRestartSec=10ms",
    )
    with suppress(ServiceFailed):
        rig.services.start(NAME)
    if again:
        wait_for(lambda: rig.services.state(NAME).starts.endswith(".2") and rig.services.state(NAME).active)
    else:
        wait_for(lambda: rig.pids() == [])
        assert rig.services.state(NAME).failed == failed
        assert rig.services.state(NAME).starts.endswith(".1")


def test_what_is_held_is_not_started_anew(rig: Rig) -> None:
    rig.link(keys="Restart=always\nRestartSec=10ms")
    rig.services.start(NAME)
    rig.services.hold(NAME)
    os.kill(rig.pid_of("main"), signal.SIGKILL)
    wait_for(lambda: rig.pids() == [])
    assert rig.services.state(NAME).starts.endswith(".1")


def test_one_that_ignores_sigterm_is_killed(rig: Rig) -> None:
    rig.link(DEAF + WAITS, "TimeoutStopSec=200ms")
    rig.services.start(NAME)
    wait_for(lambda: rig.services.read_log(NAME, 1))
    rig.services.stop(NAME)
    assert rig.pids() == []
    assert not rig.services.state(NAME).active


def test_one_that_multiplies_leaves_nothing(rig: Rig) -> None:
    rig.link(
        f"{DEAF}import os, time\n"
        "for _ in range(5):\n    if os.fork() == 0:\n        os.setsid()\n        os.fork()\n"
        "        os.environ.clear()\n        break\n"
        "print('up', flush=True)\ntime.sleep(1000)\n",
        "TimeoutStopSec=200ms",
    )
    rig.services.start(NAME)
    wait_for(lambda: len(rig.services.state(NAME).pids) == 11)
    rig.services.stop(NAME)
    assert rig.pids() == []


def test_what_a_fallen_main_process_left_is_ended(rig: Rig) -> None:
    rig.link("import os, time\nif os.fork():\n    os._exit(1)\nos.setsid()\n" + WAITS)
    with suppress(ServiceFailed):
        rig.services.start(NAME)
    wait_for(lambda: rig.services.state(NAME).failed)
    wait_for(lambda: rig.pids() == [])


def test_mixed_asks_the_main_process_only(rig: Rig) -> None:
    said = rig.folder / "said"
    rig.link(
        "import os, signal, sys, time\n"
        f"def end(*_):\n    open({str(said)!r}, 'a').write(role + ' ')\n    sys.exit()\n"
        "signal.signal(signal.SIGINT, end)\nrole = 'main' if os.fork() else 'child'\n" + WAITS,
        "KillMode=mixed\nKillSignal=SIGINT",
    )
    rig.services.start(NAME)
    wait_for(lambda: rig.services.read_log(NAME, 5) == ["up", "up"])
    rig.services.stop(NAME)
    assert said.read_text() == "main "


def test_execstop_runs_first(rig: Rig) -> None:
    rig.link(keys=f"ExecStop=/bin/sh -c 'echo bye $MAINPID >> {rig.folder}/said'")
    rig.services.start(NAME)
    main = rig.pid_of("main")
    rig.services.stop(NAME)
    assert (rig.folder / "said").read_text() == f"bye {main}\n"


def test_a_reload_that_kills_is_told(rig: Rig) -> None:
    """SIGHUP, where the unit says nothing, and a program that has no use for it."""
    rig.link()
    rig.services.start(NAME)
    with suppress(ServiceFailed):
        rig.services.reload(NAME)
    wait_for(lambda: "SIGHUP" in rig.services.state(NAME).words)
    assert not rig.services.state(NAME).active


# --- boots --------------------------------------------------------------------------------------------------------


def crash(rig: Rig) -> SupervisedServices:
    """All processes are gone at once, and another boot begins."""
    rig.end()
    for path in (rig.folder / "services" / "run").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "another"}))
    return rig.again()


def test_a_boot_starts_what_is_to_run(rig: Rig) -> None:
    for name in ("runs.service", "held.service", "stopped.service", "fails.service"):
        rig.link(name=name, keys="ExecStartPre=/bin/false" if name.startswith("fails") else "")
    rig.services.hold("held.service")
    rig.services.start("stopped.service")
    rig.services.stop("stopped.service")
    for _ in range(2):
        services = crash(rig)
        assert not services.state("runs.service").active
        assert list(services.start_all()) == ["fails.service"]
        active = {name for name in services.linked() if services.state(name).active}
        assert active == {"runs.service"}
    assert services.start_all().keys() == {"fails.service"}


def test_a_boot_starts_again_what_was_stopped_and_started(rig: Rig) -> None:
    rig.link()
    rig.services.start(NAME)
    rig.services.stop(NAME)
    rig.services.start(NAME)
    services = crash(rig)
    assert services.start_all() == {}
    assert services.state(NAME).active


def test_a_boot_starts_nothing_that_was_unlinked(rig: Rig) -> None:
    rig.link()
    rig.services.unlink(rig.units)
    assert rig.services.start_all() == {}
    assert rig.pids() == []


def test_a_unit_file_that_is_gone(rig: Rig) -> None:
    rig.link()
    (rig.units / NAME).unlink()
    assert "there is no unit file" in str(rig.services.start_all()[NAME])
    rig.services.unlink(rig.units)
    assert rig.services.linked() == []


def test_a_name_that_another_application_has(rig: Rig) -> None:
    rig.link()
    other = rig.folder / "other"
    other.mkdir()
    (other / "a.service").write_text("[Service]\nExecStart=/bin/true\n")
    (other / NAME).write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(ServiceFailed, match="has that name already"):
        rig.services.link(other)
    assert rig.services.linked() == [NAME]


def test_a_unit_that_cannot_be_used_links_nothing(rig: Rig) -> None:
    (rig.units / "a.service").write_text("[Service]\nExecStart=/bin/true\n")
    (rig.units / "b.service").write_text("[Service]\nType=forking\nExecStart=/bin/true\n")
    with pytest.raises(ServiceFailed, match=r"cannot use b\.service"):
        rig.services.link(rig.units)
    assert rig.services.linked() == []


def test_the_keys_without_meaning_are_listed(rig: Rig) -> None:
    rig.link(keys="ProtectSystem=strict\nMemoryMax=1G")
    assert rig.services.ignored(NAME) == ("ProtectSystem", "MemoryMax")


# --- kills --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deaf", [False, True], ids=["it listens", "it ignores SIGTERM"])
@pytest.mark.parametrize("act", ["start", "stop"])
def test_a_killed_supervisor_leaves_nothing_that_runs_twice(rig: Rig, act: str, deaf: bool) -> None:
    rig.link((DEAF if deaf else "") + "import os\nif os.fork() == 0: os.setsid()\n" + WAITS, "TimeoutStopSec=200ms")
    rig.services.start(NAME)
    wait_for(lambda: rig.services.read_log(NAME, 5) == ["up", "up"])
    before = {*rig.pids()}
    os.kill(rig.pid_of("supervisor"), signal.SIGKILL)
    wait_for(lambda: rig.services.state(NAME).failed)
    assert "supervisor was killed" in rig.services.state(NAME).words
    services = rig.again()
    getattr(services, act)(NAME)
    assert not before & {*rig.pids()}
    assert services.state(NAME).active == (act == "start")
    assert len(rig.pids()) in ((0,) if act == "stop" else (2, 3))


def test_what_a_killed_supervisor_left_is_seen(rig: Rig) -> None:
    rig.link(DEAF + WAITS)
    rig.services.start(NAME)
    wait_for(lambda: rig.services.read_log(NAME, 1))
    main = rig.pid_of("main")
    os.kill(rig.pid_of("supervisor"), signal.SIGKILL)
    wait_for(lambda: rig.services.state(NAME).failed)
    assert rig.services.state(NAME).pids == (main,)


STARTER = """
import sys, time
from pathlib import Path
from otaflow.platform.supervised import SupervisedServices
services = SupervisedServices(Path(sys.argv[1]), 30, Path(sys.argv[2]))
services.start("notes.service")
print("started", flush=True)
time.sleep(1000)
"""


def test_a_service_outlives_who_started_it(rig: Rig, start_python: Callable[..., Any]) -> None:
    rig.link()
    starter = start_python(STARTER, rig.folder / "services", rig.folder / "logs")
    assert starter.stdout.readline() == "started\n"
    starter.kill()
    starter.wait()
    state = rig.services.state(NAME)
    assert state.active
    rig.services.start(NAME)
    assert rig.services.state(NAME) == state


def test_a_starter_that_is_killed_at_any_moment_does_no_harm(rig: Rig, start_python: Callable[..., Any]) -> None:
    rig.link()
    for wait in range(6):
        starter = start_python(STARTER, rig.folder / "services", rig.folder / "logs")
        time.sleep(0.05 * wait)
        starter.kill()
        starter.wait()
        rig.services.start(NAME)
        assert rig.services.state(NAME).active
        assert len(rig.services.state(NAME).pids) == 1
        rig.services.stop(NAME)
        assert rig.pids() == []


def test_a_supervisor_does_not_hold_the_devices_lock(rig: Rig) -> None:
    rig.link()
    with DeviceLock(rig.folder / "lock"):
        rig.services.start(NAME)
    with DeviceLock(rig.folder / "lock"):
        assert rig.services.state(NAME).active
    for who in ("supervisor", "main"):
        for path in Path(f"/proc/{rig.pid_of(who)}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                assert os.readlink(path) != str(rig.folder / "lock")


def test_two_starts_at_once_start_it_once(rig: Rig) -> None:
    rig.link()
    threads = [threading.Thread(target=rig.again().start, args=(NAME,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rig.services.state(NAME).starts.endswith(".1")
    assert len(rig.pids()) == 2


def test_another_process_of_its_number_is_left_alone(rig: Rig, start_python: Callable[..., Any]) -> None:
    """The numbers were used again: the record names a living process, with another start."""
    rig.link()
    rig.services.start(NAME)
    stranger = start_python("import time\nprint('up', flush=True)\ntime.sleep(1000)")
    assert stranger.stdout.readline() == "up\n"
    process = read_process(stranger.pid)
    assert process is not None
    rig.end()
    path = rig.folder / "services" / "run" / f"{NAME}.json"
    other = [process.pid, process.parent, process.started - 1]
    path.write_text(json.dumps(rig.known() | {"supervisor": other, "main": other}))
    assert not rig.services.state(NAME).active
    rig.services.stop(NAME)
    rig.services.start(NAME)
    rig.services.stop(NAME)
    assert read_process(process.pid) == process


DAMAGES = {
    "empty": b"",
    "no text": b"\xff\x00\xfe",
    "no record": b"[1, 2]",
    "half": b'{"boot": "x", "super',
    "other types": b'{"boot": 1, "supervisor": 7, "status": [], "run": "", "starts": "x", "reloads": 0}',
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record(rig: Rig, damage: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "MARGIN_SECONDS", 60.0)  # in which a supervisor writes its record anew
    rig.link()
    rig.services.start(NAME)
    before = rig.services.state(NAME)
    path = rig.folder / "services" / "run" / f"{NAME}.json"
    path.write_bytes(damage)
    assert rig.services.state(NAME) == before
    path.write_bytes(damage)
    rig.services.start(NAME)
    assert rig.services.state(NAME) == before
    path.write_bytes(damage)
    rig.services.stop(NAME)
    assert rig.pids() == []


def test_a_damaged_record_of_a_killed_supervisor(rig: Rig) -> None:
    rig.link(DEAF + WAITS, "TimeoutStopSec=100ms")
    rig.services.start(NAME)
    wait_for(lambda: rig.services.read_log(NAME, 1))
    os.kill(rig.pid_of("supervisor"), signal.SIGKILL)
    wait_for(lambda: rig.services.state(NAME).failed)
    (rig.folder / "services" / "run" / f"{NAME}.json").write_bytes(b"{")
    rig.again(timeout=1).stop(NAME)
    assert rig.pids() == []


# --- the log ------------------------------------------------------------------------------------------------------


def test_the_log_is_bounded(rig: Rig) -> None:
    rig.services = rig.again(log_bytes=100_000)  # more than the 64 KiB that it may take from the program at once
    rig.link("for n in range(50_000): print(f'line {n:05}')\n" + WAITS)
    rig.services.start(NAME)
    wait_for(lambda: rig.services.read_log(NAME, 1) == ["up"])
    sizes = [path.stat().st_size for path in (rig.folder / "logs").iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 100_000
    assert rig.services.read_log(NAME, 3) == ["line 49998", "line 49999", "up"]
    assert rig.services.read_log(NAME, 0) == []


def test_one_that_writes_without_end_can_be_stopped(rig: Rig) -> None:
    rig.services = rig.again(log_bytes=10_000)
    rig.link("while True: print('x' * 1000)", "Type=notify\nTimeoutStartSec=1")
    with pytest.raises(ServiceFailed, match="not ready within 1 s"):
        rig.services.start(NAME)
    rig.link("while True: print('x' * 1000)")
    rig.services.start(NAME)
    rig.services.stop(NAME)
    assert rig.pids() == []


WORDS = {
    "plain": ["plain"],
    "$A": ["1", "2"],
    "${A}b": ["1 2b"],
    "a$A": ["a$A"],
    "$$A": ["$A"],
    "$NO": [],
    "${NO}": [""],
}


@pytest.mark.parametrize(("word", "words"), WORDS.items(), ids=WORDS)
def test_variables(word: str, words: list[str]) -> None:
    assert expand(word, {"A": "1 2"}) == words


def test_the_supervisor_needs_the_standard_library_only() -> None:
    text = Path(supervisor.__file__).read_text()
    modules = set(re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE))
    assert modules <= sys.stdlib_module_names
