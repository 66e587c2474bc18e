"""Every step and every transition has its fault points, whatever else it does: found in the two tables, and reached."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import otaflow.service  # loads every step
from otaflow import fault
from otaflow.errors import OtaflowError
from otaflow.journal import Journal
from otaflow.tasks import step
from otaflow.ucm.states import State
from otaflow.ucm.table import TABLE

CHANGES = [(state, event) for (state, event), row in TABLE.items() if row.resolve(processed=True) is not state]
UNDONE = sorted(name for name, one in step.STEPS.items() if one.take_back)


@pytest.fixture
def reached() -> Iterator[list[str]]:
    """The points that were reached."""
    names: list[str] = []
    fault.trace(names.append)
    yield names
    fault.trace(None)


@pytest.fixture
def here(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device of nothing but a journal."""
    device = SimpleNamespace(journal=Journal(tmp_path / "journal"), stop_work=SimpleNamespace(is_set=lambda: False))
    monkeypatch.setattr(step, "device", lambda: device)
    monkeypatch.setattr(step, "sync_device", lambda device: None)
    return device


@pytest.mark.parametrize("name", sorted(step.STEPS))
def test_each_step_has_its_points(here: Any, reached: list[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(step.STEPS[name], "do", lambda: None)
    step.STEPS[name].run()
    assert reached == [f"{name}.before", f"{name}.acted", f"{name}.done"]


@pytest.mark.parametrize("name", UNDONE)
def test_each_undo_has_its_points(here: Any, reached: list[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(step.STEPS[name], "take_back", lambda: None)
    here.journal.transition("<ProcessSwPackage", State.PROCESSING)
    step.STEPS[name].revert(here.journal.intend(name, "", {}))
    assert reached == [f"undo.{name}.before", f"undo.{name}.acted", f"undo.{name}.done"]


@pytest.mark.parametrize(("state", "event"), CHANGES, ids=lambda value: str(value))
def test_each_transition_has_its_points(here: Any, reached: list[str], state: State, event: str) -> None:
    ucm = otaflow.service.Ucm(here)
    here.journal.state = state
    here.journal.session.processed.append(0)
    ucm.fire(event)
    assert reached == [f"{event} {state}.before", f"{event} {state}.after"]


@pytest.mark.parametrize("how", ["raise", "fail"])
def test_a_fault_is_raised_once_or_always(how: str) -> None:
    fault.arm("here", how)
    try:
        for fails in (True, how == "fail"):
            if fails:
                with pytest.raises(fault.FaultInjected, match="at here"):
                    fault.point("here")
            else:
                fault.point("here")
        fault.point("there")
    finally:
        fault.arm("")


def test_no_such_fault() -> None:
    with pytest.raises(OtaflowError, match="'flood' is none of raise, fail, kill, cut"):
        fault.arm("here", "flood")


def test_off_a_point_is_one_comparison() -> None:
    fault.arm("")
    assert fault.point.__code__.co_names == ("_asked", "_reach")
    assert not fault._asked


def test_a_cut_stands_still_until_the_power_goes(tmp_path: Any) -> None:
    told = tmp_path / "told"
    os.mkfifo(told)
    code = "import otaflow.fault as fault; fault.point('first'); fault.point('here'); print('went on')"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "OTAFLOW_FAULT": "here:cut", "OTAFLOW_FAULT_CUT": str(told)},
    )
    assert told.read_text() == "here\n"
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    process.kill()
    assert process.communicate()[0] == b""
    assert process.returncode == -signal.SIGKILL
