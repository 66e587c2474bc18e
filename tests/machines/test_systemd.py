"""platform/systemd.py inside a machine whose PID 1 is systemd."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from machine import POWER_OFF, PROJECT, Machine, _places, make_root
from machine_services import ServicesInside
from processes import has_ended

from otaflow.errors import ServiceFailed
from otaflow.platform.systemd import SystemdServices

RUNS = "ExecStart=sleep 100000"
UNITS = Path("/etc/systemd/system")
MASK = "ln -s /dev/null"


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What `condition` gives as soon as it is something."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)
    return value


def show(machine: Machine, name: str, key: str) -> str:
    return machine.check(["systemctl", "show", f"--property={key}", "--value", "--", name]).strip()


# --- unit files -------------------------------------------------------------------------------------------------------


def test_linked_services_start_at_boot(machine: Machine, services: Any, application: Any) -> None:
    name = application.write(RUNS)
    unwanted = application.write(RUNS, name="other.service", install="")
    (application.folder / "README").write_text("no unit\n")
    services.check(name, application.folder)
    assert services.state(name).words == "not there"
    services.link(application.folder)
    services.check(name)
    assert not services.state(name).active, "making it known starts nothing"
    services.start(name)
    machine.reboot()
    assert services.state(name).active
    assert services.state(unwanted).words == "inactive (dead)"
    services.unlink(application.folder)
    assert services.state(name).active, "it is forgotten, not stopped"
    services.stop(name)
    assert services.state(name) == services.state("nothing-like-it.service")
    machine.reboot()
    assert services.state(name).words == "not there"


def test_a_changed_unit_file_counts_when_it_is_linked_again(services: Any, application: Any, machine: Machine) -> None:
    name = application.write("ExecStart=sleep 111")
    services.link(application.folder)
    services.start(name)
    services.stop(name)
    application.write("ExecStart=sleep 222", install="WantedBy=basic.target")
    services.link(application.folder)
    services.link(application.folder)
    services.start(name)
    assert "argv[]=sleep 222 ;" in show(machine, name, "ExecStart")
    assert show(machine, name, "WantedBy") == "basic.target"
    assert show(machine, name, "NeedDaemonReload") == "no"
    services.stop(name)


def test_what_a_power_cut_left_is_made_whole(services: Any, application: Any, machine: Machine) -> None:
    name = application.write(RUNS)
    services.link(application.folder)
    here = machine.path(UNITS)
    whole = (here / name).read_bytes()
    (here / "multi-user.target.wants" / name).unlink()
    (here / name).write_bytes(whole[:60])
    (here / f".{name}.new").write_text("torn")
    services.link(application.folder)
    assert (here / name).read_bytes() == whole
    assert show(machine, name, "WantedBy") == "multi-user.target"
    services.unlink(application.folder)


def test_forgotten_is_what_the_other_version_lacks(services: Any, application: Any, machine: Machine) -> None:
    kept, gone = application.write(RUNS), application.write(RUNS, name="gone.service")
    services.link(application.folder)
    former = application.folder.with_name("former")
    application.folder.rename(former)
    application.folder.mkdir()
    application.write("ExecStart=sleep 333")
    services.link(application.folder)
    for _ in range(2):
        services.unlink(former, but=application.folder)
    services.check(kept)
    assert "argv[]=sleep 333 ;" in show(machine, kept, "ExecStart")
    assert services.state(gone).words == "not there"
    services.unlink(application.folder)
    services.unlink(Path("/nowhere"), but=Path("/nor/here"))


def test_a_unit_of_the_system_is_not_replaced(services: Any, application: Any, machine: Machine) -> None:
    machine.check(["sh", "-c", f"cd {UNITS} && printf '[Service]\\n{RUNS}\\n' >own.service && {MASK} masked.service"])
    machine.check(["systemctl", "daemon-reload"])
    for name in ("systemd-journald.service", "getty@tty1.service", "own.service", "masked.service", "emergency.target"):
        good = application.write(RUNS)
        bad = application.folder / name
        bad.write_text(f"[Unit]\n[Service]\n{RUNS}\n")
        with pytest.raises(ServiceFailed, match=r"the system has a unit of this name, /"):
            services.link(application.folder)
        with pytest.raises(ServiceFailed, match=r"the system has a unit of this name, /"):
            services.check(name, application.folder)
        assert services.state(good).words == "not there", "nothing is half done"
        services.unlink(application.folder)
        assert (machine.path(UNITS) / "own.service").exists()
        bad.unlink()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[Unit]\n", "no section"),
        (f"[Service]\n{RUNS}\n[Install]\nAlias=ssh.service\n", "Alias="),
        (f"[Service]\n{RUNS}\n[Install]\nWantedBy=../../../tmp/x.target\n", "no name of a unit"),
        (f"[Service]\n{RUNS}\n[Install]\nWantedBy=--root=x\n", "no name of a unit"),
        (b"[Service]\nDescription=\xff\n", "UTF-8"),
        (None, "plain file"),
    ],
    ids=["no section", "alias", "path", "option", "binary", "symbolic link"],
)
def test_a_bad_unit_file_is_refused(text: Any, why: str, services: Any, application: Any) -> None:
    path = application.folder / application.name()
    if text is None:
        path.symlink_to("/etc/passwd")
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for refuse in (lambda: services.check(path.name, application.folder), lambda: services.link(application.folder)):
        with pytest.raises(ServiceFailed, match=why):
            refuse()
    assert services.state(path.name).words == "not there"


def test_a_folder_that_systemd_does_not_read_is_refused(machine: Machine, application: Any) -> None:
    application.write(RUNS)
    with pytest.raises(ServiceFailed, match="systemd does not read it") as caught:
        ServicesInside(machine, units="/srv/units").link(application.folder)
    assert str(UNITS) in caught.value.hint


# --- names ------------------------------------------------------------------------------------------------------------

HOSTILE = ["", "-H root@host", "--version.service", "notes", "notes.mount", "*.service", "a/b.service", "../x.service"]
HOSTILE += [
    "a.service b.service",
    "a\n.service",
    f"{'x' * 250}.service",
    "notes.service\n",
    "[a-z].service",
    ".service",
]
CALLS = {
    "check": (),
    "start": (),
    "stop": (),
    "reload": (),
    "state": (),
    "hold": (),
    "release": (),
    "read_log": (5,),
}


@pytest.mark.parametrize("method", CALLS)
def test_a_hostile_name_is_refused(method: str) -> None:
    for name in HOSTILE:
        with pytest.raises(ServiceFailed, match="it is no name of a unit"):
            getattr(SystemdServices(), method)(name, *CALLS[method])


def test_an_unknown_service(services: Any) -> None:
    name = "never-there.service"
    for call in (services.check, services.start, services.reload):
        with pytest.raises(ServiceFailed, match=r"cannot use never-there.service: not there"):
            call(name)
    services.stop(name)
    services.release(name)
    assert services.state(name).words == "not there"
    assert services.read_log(name, 5) == []
    assert not (services.machine.path(UNITS) / f"{name}.d").exists()


@pytest.mark.parametrize(("lines", "why"), [((), "bad-setting"), (("ExecStart=relative/x",), "bad-setting")], ids=str)
def test_a_service_that_systemd_cannot_read(lines: Any, why: str, services: Any, application: Any) -> None:
    name = application.write(*lines)
    services.link(application.folder)
    with pytest.raises(ServiceFailed, match=rf"cannot use {name}: {why} \(.+\)"):
        services.check(name)
    services.unlink(application.folder)


# --- running ----------------------------------------------------------------------------------------------------------


def test_start_and_stop(services: Any, application: Any) -> None:
    name = application.write(
        "ExecStart=sh -c 'echo hello; echo world; sleep 1000 & setsid sleep 1000 & exec sleep 1000'"
    )
    services.link(application.folder)
    services.start(name)
    state = until(lambda: (now := services.state(name)) and len(now.pids) == 3 and now)
    assert (state.active, state.failed, state.words) == (True, False, "active (running)")
    services.start(name)
    assert services.state(name) == state, "nothing happens where it runs"
    assert services.read_log(name, 5) == ["hello", "world"]
    assert services.read_log(name, 1) == ["world"]
    assert services.read_log(name, 0) == []
    services.stop(name)
    services.stop(name)
    stopped = services.state(name)
    assert (stopped.active, stopped.failed, stopped.pids, stopped.words) == (False, False, (), "inactive (dead)")
    services.start(name)
    assert services.state(name).starts not in (state.starts, "")
    services.stop(name)


FAILING = {
    "exit status": (["ExecStart=sh -c 'echo the reason; exit 3'"], r"failed \(exit status 3\).*the reason"),
    "signal": (["ExecStart=sh -c 'kill -SEGV $$$$'"], r"failed \(killed by SIGSEGV\)"),
    "first command": (["ExecStart=sleep 1000", "ExecStartPre=sh -c 'echo no room; exit 4'"], "commands.*no room"),
    "no program": (["ExecStart=/nowhere/to/be/found"], r"exit status 203.*/nowhere/to/be/found"),
    "not ready in time": (["ExecStart=sleep 1000", "TimeoutStartSec=1"], "took longer than its unit permits"),
    "never ready": (["ExecStart=sleep 1000"], "it was not done within 2 s"),
    "on and on": (
        ["ExecStart=sh -c 'exit 5'", "Restart=always", "RestartSec=0"],
        "exit status 5|with error code|again and again",
    ),
    "ends": (["ExecStart=true"], "did not say that it is ready"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_service_that_does_not_start(case: str, machine: Machine, application: Any) -> None:
    lines, why = FAILING[case]
    name = application.write("Type=notify", *lines)
    services = ServicesInside(machine, timeout=2 if case == "never ready" else 60)
    services.link(application.folder)
    for _ in range(2):
        with pytest.raises(ServiceFailed, match=rf"^cannot start {name}: .*{why}") as caught:
            services.start(name)
        assert caught.value.hint == f"look at `journalctl -u {name}`"
    until(lambda: services.state(name).words.startswith(("failed", "inactive")))
    services.stop(name)
    assert not services.state(name).pids
    services.unlink(application.folder)


def test_a_service_whose_requirement_fails(services: Any, application: Any) -> None:
    needed = application.write("Type=oneshot", "ExecStart=false", name="needed.service")
    name = application.write(RUNS, "[Unit]", f"Requires={needed}", f"After={needed}")
    services.link(application.folder)
    with pytest.raises(ServiceFailed, match=rf"cannot start {name}: .*dependency"):
        services.start(name)


def test_a_service_that_ended_well_at_once_did_not_start(services: Any, application: Any) -> None:
    once = application.write("Type=oneshot", "ExecStart=true", name="once.service")
    services.link(application.folder)
    services.start(once)  # a oneshot is done when it is up
    name = application.write("Type=forking", "ExecStart=true")
    services.link(application.folder)
    with pytest.raises(ServiceFailed, match=rf"cannot start {name}: "):
        services.start(name)


def test_starts_tells_that_systemd_started_it_anew(services: Any, application: Any) -> None:
    name = application.write("ExecStart=sleep 3", "Restart=always", "RestartSec=0", "[Unit]", "StartLimitBurst=0")
    services.link(application.folder)
    services.start(name)
    first = services.state(name).starts
    until(lambda: services.state(name).starts != first)
    services.stop(name)


def test_a_service_that_was_started_too_often_may_start(services: Any, application: Any) -> None:
    name = application.write("ExecStart=sh -c 'test -e /run/good && exec sleep 1000'", "Restart=always", "RestartSec=0")
    services.link(application.folder)
    services.machine.run(["systemctl", "start", name])
    until(lambda: services.state(name).failed and not services.state(name).pids)
    services.machine.check(["touch", "/run/good"])
    services.start(name)
    services.stop(name)


def test_a_service_that_ignores_the_signal_is_killed(machine: Machine, application: Any) -> None:
    deaf = "ExecStart=sh -c 'trap \"\" TERM; while :; do sleep 1; done'"
    by_systemd = application.write(deaf, "TimeoutStopSec=1")
    by_us = application.write(deaf, "TimeoutStopSec=infinity", name="deaf.service")
    services, hasty = ServicesInside(machine, timeout=60), ServicesInside(machine, timeout=3)
    services.link(application.folder)
    for name in (by_systemd, by_us):
        services.start(name)
        hasty.stop(name)
        state = services.state(name)
        assert (state.active, state.pids) == (False, ())
    services.unlink(application.folder)


@pytest.mark.parametrize("trap", ["", 'trap "" TERM; '], ids=["ends", "ignores the signal"])
def test_processes_that_a_service_leaves_behind_are_ended(trap: str, services: Any, application: Any) -> None:
    """KillMode=process stops the main process only."""
    rest = f"sh -c '{trap}while :; do sleep 1; done' & exec sleep 1000"
    name = application.write(f'ExecStart=sh -c "{rest}"'.replace('""', '\\"\\"'), "KillMode=process")
    services.link(application.folder)
    services.start(name)
    until(lambda: len(services.state(name).pids) >= 3)
    services.stop(name)
    state = services.state(name)
    assert (state.active, state.pids) == (False, ())


# --- reload -----------------------------------------------------------------------------------------------------------


def test_reload(services: Any, application: Any) -> None:
    flag = services.machine.path("/run/reloads")
    name = application.write(RUNS, "ExecReload=sh -c 'echo again; echo x >>/run/reloads'")
    services.link(application.folder)
    services.reload(name)
    state = services.state(name)
    assert state.active, "it is started where it does not run"
    assert not flag.exists()
    services.reload(name)
    assert flag.read_text() == "x\n"
    assert services.state(name) == state, "it was not started anew"
    services.hold(name)
    services.reload(name)
    assert flag.read_text() == "x\nx\n"
    services.release(name)
    services.stop(name)


def test_a_service_that_cannot_reload_is_started_anew(services: Any, application: Any) -> None:
    name = application.write(RUNS)
    services.link(application.folder)
    services.start(name)
    first = services.state(name)
    services.reload(name)
    assert services.state(name).active
    assert services.state(name).starts != first.starts
    services.hold(name)
    with pytest.raises(ServiceFailed, match=f"cannot restart {name}: it is held"):
        services.reload(name)
    assert services.state(name).active, "it would not have come back"
    services.release(name)
    services.stop(name)


@pytest.mark.parametrize(
    ("command", "why"),
    [("sh -c 'echo bad file; exit 6'", r"one of its commands failed.*bad file"), ("sleep 1000", "not done within 2 s")],
    ids=["fails", "hangs"],
)
def test_a_reload_that_fails(command: str, why: str, machine: Machine, services: Any, application: Any) -> None:
    name = application.write(RUNS, f"ExecReload={command}")
    services.link(application.folder)
    services.start(name)
    with pytest.raises(ServiceFailed, match=rf"cannot reload {name}: .*{why}"):
        ServicesInside(machine, timeout=2 if "sleep" in command else 60).reload(name)
    assert services.state(name).active
    services.stop(name)
    assert not services.state(name).pids


# --- held -------------------------------------------------------------------------------------------------------------


def test_nobody_starts_a_held_service(machine: Machine, services: Any, application: Any) -> None:
    name = application.write(f"ExecStart=sh -c 'touch /srv/{application.number}; exec sleep 1000'", "Restart=always")
    timer = application.write("OnActiveSec=0", f"Unit={name}", name="wake.timer")
    friend = application.write(RUNS, "[Unit]", f"Requires={name}", f"After={name}", name="friend.service")
    socket = application.write(f"ListenStream=/run/{application.number}", name="notes.socket", install="")
    services.link(application.folder)
    trace = Path("/srv", str(application.number))

    def try_all() -> None:
        machine.check(["systemctl", "start", name, timer, friend, socket])
        connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        machine.python(connect, f"/run/{application.number}")

    for _ in range(2):
        services.hold(name)
    try_all()
    with pytest.raises(ServiceFailed, match=f"cannot start {name}: it is held for an update"):
        services.start(name)
    assert services.state(name).words == "held"
    assert services.state(friend).active, "what needs it starts without it"
    # who connects is sent away, and the socket gives up after some tries
    until(lambda: services.state(socket).failed)
    machine.reboot()
    try_all()
    assert not services.state(name).active
    assert not machine.path(trace).exists()
    until(lambda: services.state(socket).failed)
    for _ in range(2):
        services.release(name)
    assert not (machine.path(UNITS) / f"{name}.d").exists()
    assert not services.state(name).active, "it is not started by that"
    until(lambda: services.state(socket).active)
    services.start(name)
    until(machine.path(trace).exists)
    machine.reboot()
    assert services.state(name).active
    services.unlink(application.folder)


def test_a_service_that_runs_goes_on_while_it_is_held(machine: Machine, services: Any, application: Any) -> None:
    name = application.write(RUNS, "Restart=always", "RestartSec=0")
    services.link(application.folder)
    services.start(name)
    state = services.state(name)
    services.hold(name)
    assert services.state(name) == state
    services.start(name)  # nothing happens where it is
    machine.check(["systemctl", "kill", "--signal=KILL", name])
    until(lambda: services.state(name).words == "held")
    services.release(name)
    services.start(name)
    services.stop(name)


def test_an_administrators_own_drop_in_stays(machine: Machine, services: Any, application: Any) -> None:
    name = application.write(RUNS)
    services.link(application.folder)
    folder = machine.path(UNITS) / f"{name}.d"
    folder.mkdir()
    (folder / "own.conf").write_text("[Unit]\nConditionPathExists=\n")
    services.hold(name)
    machine.check(["systemctl", "start", name])
    assert services.state(name).words == "held", "whatever other drop-ins say of conditions"
    services.release(name)
    assert [path.name for path in folder.iterdir()] == ["own.conf"]


# --- at boot ----------------------------------------------------------------------------------------------------------

AT_BOOT = """
import sys
from pathlib import Path
from otaflow.platform.systemd import SystemdServices
services = SystemdServices(timeout=60)
for name in sys.argv[2:]:
    services.release(name)
    services.start(name)
    Path(sys.argv[1], name).write_text(services.state(name).words)
"""


def test_a_start_while_the_system_boots_waits_for_nothing_that_waits_for_it(
    machine: Machine, services: Any, application: Any
) -> None:
    free = application.write(RUNS, name="free.service")
    after = application.write(RUNS, "[Unit]", f"After={application.name('early.service')}", name="after.service")
    far = application.write(RUNS, "[Unit]", "After=multi-user.target", name="far.service", install="")
    names = [free, after, far]
    services.link(application.folder)
    for name in names:
        services.hold(name)
    script = application.folder / "at-boot.py"
    script.write_text(AT_BOOT)
    early = application.write(
        "Type=oneshot",
        f"ExecStart={sys.executable} -B {script} {application.folder} {' '.join(names)}",
        "[Unit]",
        f"Before=multi-user.target {after}",
        name="early.service",
    )
    services.link(application.folder)
    machine.reboot()
    assert show(machine, early, "Result") == "success", services.read_log(early, 20)
    words = [(application.folder / name).read_text() for name in names]
    assert words == ["active (running)", "inactive (queued)", "inactive (queued)"]
    for name in names:
        until(lambda name=name: services.state(name).active)  # type: ignore[misc]
    services.unlink(application.folder)


def test_arranged_is_what_the_device_has_and_holds(services: Any, application: Any, machine: Machine) -> None:
    """As after a boot from a slot that was made when other applications, and other updates, were there."""
    kept, gone = application.write(RUNS), application.write(RUNS, name="gone.service")
    stopped = application.write(RUNS, name="stopped.service")
    services.link(application.folder)
    services.hold(kept)
    for name in (gone, stopped):
        (application.folder / name).unlink()
    new = application.write(RUNS, name="new.service")
    application.write("ExecStart=sleep 444")
    for _ in range(2):
        services.arrange([application.folder], [stopped])
    assert "argv[]=sleep 444 ;" in show(machine, kept, "ExecStart")
    assert services.state(gone).words == "not there"
    assert services.state(stopped).words == "held"
    assert not (machine.path(UNITS) / f"{kept}.d").exists()
    until(lambda: services.state(new).active)  # a boot has not counted it
    assert not services.state(kept).active
    services.start(kept)
    services.arrange([], [])
    assert [services.state(name).words for name in (gone, stopped)] == ["not there"] * 2
    until(lambda: not services.state(kept).active)


# --- the contract of all adapters -------------------------------------------------------------------------------------


def test_the_contract_of_services(machine: Machine) -> None:
    contract = PROJECT / "tests" / "support" / "contract_on_systemd.py"
    options = ["-q", "--durations=5", "-p", "no:cacheprovider", "--noconftest", "--tb=short", f"--rootdir={PROJECT}"]
    status, output = machine.run([sys.executable, "-B", "-m", "pytest", *options, contract], timeout=300)
    print(output)
    assert status == 0
    assert " passed" in output


# --- the machine itself -----------------------------------------------------------------------------------------------


def test_without_systemd_the_error_says_so(tmp_path: Path) -> None:
    if Path("/run/systemd/system").exists():
        pytest.skip("this machine has systemd")
    with pytest.raises(ServiceFailed, match="cannot ask systemd: ") as caught:
        SystemdServices().state("notes.service")
    assert "processes" in caught.value.hint


def test_the_machine_cannot_harm_this_one(machine: Machine) -> None:
    """Neither a command nor a service inside has the right to set the clock, to load modules, to end the system."""
    for caps in (machine.check(["cat", "/proc/self/status"]), machine.check(["cat", "/proc/1/status"])):
        have = int(caps.split("CapBnd:")[1].split()[0], 16)
        assert not have & (1 << 16 | 1 << 25), "CAP_SYS_MODULE, CAP_SYS_TIME"
    assert not int(machine.check(["cat", "/proc/self/status"]).split("CapBnd:")[1].split()[0], 16) & 1 << 22


def test_a_machine_dies_with_its_test(new_machine: Callable[..., Machine], tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from machine import Machine, make_root\n"
        "machine = Machine(make_root(Path(sys.argv[2]) / 'root')); machine.boot(); print(machine.pid, flush=True)\n"
        "time.sleep(1000)"
    )
    support = PROJECT / "tests" / "support"
    other = subprocess.Popen([sys.executable, "-c", code, support, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        init = psutil.Process(int(other.stdout.readline()))
        assert init.name() == "systemd"
    finally:
        other.kill()
        other.communicate()
    until(lambda: has_ended(init.pid))
    assert f"otaflow-{other.pid}" not in Path("/proc/mounts").read_text()


def test_a_machine_that_is_killed_has_what_was_written(new_machine: Callable[..., Machine]) -> None:
    machine = new_machine()
    machine.boot()
    machine.check(["sh", "-c", "echo kept >/srv/file"])
    init = machine.pid
    machine.kill()
    machine.kill()
    assert has_ended(init)
    assert machine.path("/srv/file").read_text() == "kept\n"
    machine.boot()
    assert machine.run(["cat", "/srv/file"]) == (0, "kept\n")
    machine.ask_for(POWER_OFF)
    assert machine.wait_off() == 0
    assert not _places(machine.name)
    assert os.listdir(machine.root / "usr") == []


@pytest.mark.btrfs
def test_a_machine_boots_the_slot_that_it_is_given(
    new_machine: Callable[..., Machine], btrfs_tmp: Path, tmp_path: Path
) -> None:
    """Slots are btrfs subvolumes; the one that runs makes the other one, and asks for the restart."""
    first, second = btrfs_tmp / "a", btrfs_tmp / "b"
    subprocess.run(["btrfs", "-q", "subvolume", "create", first], check=True)
    machine = Machine(make_root(first), shares={btrfs_tmp: "/slots"})
    try:
        machine.boot()
        machine.check(["btrfs", "subvolume", "snapshot", "/slots/a", "/slots/b"])
        machine.check(["sh", "-c", "echo second >/slots/b/etc/hostname"])
        machine.root = second
        machine.reboot()
        assert machine.check(["cat", "/proc/sys/kernel/hostname"]) == "second\n"
        machine.check(["btrfs", "subvolume", "delete", "/slots/a"])
        assert not first.exists()
    finally:
        machine.stop()
