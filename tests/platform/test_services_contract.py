"""What every adapter of Services promises (platform/protocols.py). An adapter joins by a line in ADAPTERS.

A unit's program is a script of sh, so that it runs on any machine. Nothing is timed: what must happen is waited for.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from otaflow.errors import ServiceFailed
from otaflow.platform.protocols import Services
from otaflow.platform.services_fake import FakeServices
from otaflow.platform.supervised import SupervisedServices

PATIENCE = 60.0
NAME = f"otaflow-test-{os.getpid()}.service"
OTHER = f"otaflow-other-{os.getpid()}.service"
WAITS = "exec sleep 1000"


class Rig(NamedTuple):
    """An adapter, and a folder for unit files and programs."""

    services: Services
    units: Path

    def write(self, script: str = WAITS, *, name: str = NAME, keys: str = "") -> None:
        """Write the unit `name`, whose program is `script`."""
        program = self.units / f"{name}.sh"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        (self.units / name).write_text(f"[Service]\nExecStart=/bin/sh {program}\n{keys}\n")

    def link(self, script: str = WAITS, *, name: str = NAME, keys: str = "") -> None:
        """Write the unit and make it known."""
        self.write(script, name=name, keys=keys)
        self.services.link(self.units)


def make_fake(folder: Path) -> Services:
    return FakeServices()


def make_supervised(folder: Path) -> Services:
    return SupervisedServices(folder / "services", 30, folder / "logs")


ADAPTERS: list[tuple[str, Callable[[Path], Services]]] = [("fake", make_fake), ("supervised", make_supervised)]
REAL = [pytest.param(make, id=name) for name, make in ADAPTERS if name != "fake"]


def rig_of(make: Callable[[Path], Services], folder: Path) -> Iterator[Rig]:
    units = folder / "units"
    units.mkdir()
    services = make(folder)
    try:
        yield Rig(services, units)
    finally:
        for name in (NAME, OTHER):
            services.stop(name)
            services.release(name)
        services.unlink(units)


@pytest.fixture(params=[pytest.param(make, id=name) for name, make in ADAPTERS])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    yield from rig_of(request.param, tmp_path)


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """An adapter that runs programs."""
    yield from rig_of(request.param, tmp_path)


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# --- all of them --------------------------------------------------------------------------------------------------


def test_it_is_started_and_stopped(rig: Rig) -> None:
    rig.link()
    assert not rig.services.state(NAME).active
    rig.services.start(NAME)
    state = rig.services.state(NAME)
    assert state.active
    assert not state.failed
    assert state.pids
    assert state.starts
    assert "active" in state.words
    rig.services.stop(NAME)
    state = rig.services.state(NAME)
    assert (state.active, state.failed, state.pids) == (False, False, ())


def test_what_is_done_is_not_done_again(rig: Rig) -> None:
    rig.link()
    rig.services.stop(NAME)
    rig.services.start(NAME)
    first = rig.services.state(NAME)
    rig.services.start(NAME)
    rig.services.link(rig.units)
    assert rig.services.state(NAME) == first
    rig.services.stop(NAME)
    rig.services.stop(NAME)


def test_another_start_has_another_mark(rig: Rig) -> None:
    rig.link()
    rig.services.start(NAME)
    first = rig.services.state(NAME).starts
    assert rig.services.state(NAME).starts == first
    rig.services.stop(NAME)
    rig.services.start(NAME)
    assert rig.services.state(NAME).starts != first


def test_one_that_is_not_there(rig: Rig) -> None:
    assert not rig.services.state(NAME).active
    rig.services.stop(NAME)
    for act in (rig.services.start, rig.services.reload, rig.services.check):
        with pytest.raises(ServiceFailed):
            act(NAME)


def test_check_looks_in_the_folder_too(rig: Rig) -> None:
    rig.write()
    with pytest.raises(ServiceFailed):
        rig.services.check(NAME)
    rig.services.check(NAME, rig.units)
    rig.services.link(rig.units)
    rig.services.check(NAME)


def test_what_is_held_is_not_started(rig: Rig) -> None:
    rig.link()
    rig.services.hold(NAME)
    rig.services.hold(NAME)
    for act in (rig.services.start, rig.services.reload):
        with pytest.raises(ServiceFailed):
            act(NAME)
    assert not rig.services.state(NAME).active
    rig.services.release(NAME)
    rig.services.release(NAME)
    assert not rig.services.state(NAME).active
    rig.services.start(NAME)
    assert rig.services.state(NAME).active


def test_what_runs_is_not_stopped_by_a_hold(rig: Rig) -> None:
    rig.link()
    rig.services.start(NAME)
    rig.services.hold(NAME)
    assert rig.services.state(NAME).active
    rig.services.stop(NAME)
    assert not rig.services.state(NAME).active


def test_reload_starts_what_does_not_run(rig: Rig) -> None:
    rig.link()
    rig.services.reload(NAME)
    assert rig.services.state(NAME).active


def test_unlink_forgets_but_what_the_other_has(rig: Rig, tmp_path: Path) -> None:
    rig.write(name=OTHER)
    rig.link()
    new = tmp_path / "new"
    new.mkdir()
    (new / OTHER).write_text((rig.units / OTHER).read_text())
    rig.services.unlink(rig.units, but=new)
    rig.services.check(OTHER)
    with pytest.raises(ServiceFailed):
        rig.services.check(NAME)
    rig.services.unlink(rig.units)
    rig.services.unlink(rig.units)
    with pytest.raises(ServiceFailed):
        rig.services.check(OTHER)


def test_what_is_forgotten_can_still_be_stopped(rig: Rig) -> None:
    rig.link()
    rig.services.start(NAME)
    rig.services.unlink(rig.units)
    rig.services.stop(NAME)
    assert not rig.services.state(NAME).active


@pytest.mark.parametrize("name", ["notes", "../notes.service", "a/b.service", ""])
def test_a_name_that_is_none(rig: Rig, name: str) -> None:
    with pytest.raises(ServiceFailed):
        rig.services.check(name)


# --- those that run programs --------------------------------------------------------------------------------------


def test_stop_leaves_none_of_its_processes(real: Rig) -> None:
    real.link(
        f"sleep 1000 &\n(setsid sh -c 'trap : TERM; while :; do sleep 1; done' &)\n{WAITS}", keys="TimeoutStopSec=1"
    )
    real.services.start(NAME)
    wait_for(lambda: len(real.services.state(NAME).pids) >= 3)
    pids = real.services.state(NAME).pids
    real.services.stop(NAME)
    assert [pid for pid in pids if runs(pid)] == []


def test_a_program_that_there_is_not(real: Rig) -> None:
    (real.units / NAME).write_text("[Service]\nType=exec\nExecStart=/nowhere/notes\n")
    real.services.link(real.units)
    with pytest.raises(ServiceFailed, match="cannot start"):
        real.services.start(NAME)
    assert not real.services.state(NAME).active
    assert real.services.state(NAME).failed


def test_one_that_falls_is_failed_and_says_why(real: Rig) -> None:
    real.link("echo the last words\nexit 3", keys="Type=exec")
    with suppress(ServiceFailed):
        real.services.start(NAME)
    wait_for(lambda: real.services.state(NAME).failed)
    assert not real.services.state(NAME).active
    assert "3" in real.services.state(NAME).words
    wait_for(lambda: "the last words" in " ".join(real.services.read_log(NAME, 10)))


def test_one_that_is_started_anew_by_itself_shows_it(real: Rig) -> None:
    real.link(WAITS, keys="Restart=always\nRestartSec=10ms")
    real.services.start(NAME)
    first = real.services.state(NAME)
    os.kill(first.pids[0], 9)
    wait_for(lambda: real.services.state(NAME).active and real.services.state(NAME).starts != first.starts)


def test_reload_reaches_the_program(real: Rig, tmp_path: Path) -> None:
    said = real.units / "reloaded"
    real.link(
        f"trap 'echo yes >> {said}' HUP\ntouch {said}\nwhile :; do sleep 0.1; done",
        keys="ExecReload=/bin/kill -HUP $MAINPID",
    )
    real.services.start(NAME)
    wait_for(said.exists)
    before = real.services.state(NAME)
    real.services.reload(NAME)
    wait_for(said.read_text)
    assert real.services.state(NAME).starts == before.starts


def test_a_reload_that_fails(real: Rig) -> None:
    real.link(keys="ExecReload=/bin/false")
    real.services.start(NAME)
    with pytest.raises(ServiceFailed, match="cannot reload"):
        real.services.reload(NAME)
    assert real.services.state(NAME).active


def test_the_unit_file_of_the_present_version_counts(real: Rig) -> None:
    real.link("echo one\n" + WAITS)
    real.services.start(NAME)
    wait_for(lambda: real.services.read_log(NAME, 1) == ["one"])
    real.services.stop(NAME)
    real.link("echo two\n" + WAITS)
    real.services.start(NAME)
    wait_for(lambda: "two" in real.services.read_log(NAME, 1)[-1:])
