"""Prefect's engine does not wait for the API: what it says of a phase's run is told behind its back, in order."""

import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType

from otaflow.config import parse
from otaflow.flows.phase import phase
from otaflow.flows.session import ASKS, PrefectRuns
from otaflow.platform.device import Device, using

SECONDS = 180.0


@phase("count", reverts=False)
def count(fails: bool) -> int:
    """A phase without a step."""
    if fails:
        raise ValueError("as it was told")
    return 3


@pytest.fixture
def device(tmp_path: Path) -> Device:
    device = Device(parse({"device": {"name": "d", "model": "m", "root": "device"}}, tmp_path / "otaflow.toml"))
    device.nvm.mkdir(parents=True)
    return device


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What Prefect's API is asked: thread and path."""
    found: list[tuple[str, str]] = []
    send, asend = PrefectHttpxSyncClient.send, PrefectHttpxAsyncClient.send

    def note(request: Any) -> None:
        found.append((threading.current_thread().name, f"{request.method} {request.url.path}"))

    def noting(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        note(request)
        return send(self, request, *args, **kwargs)

    async def anoting(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        note(request)
        return await asend(self, request, *args, **kwargs)

    monkeypatch.setattr(PrefectHttpxSyncClient, "send", noting)
    monkeypatch.setattr(PrefectHttpxAsyncClient, "send", anoting)
    return found


def wait_until_told(runs: PrefectRuns) -> None:
    end = time.monotonic() + SECONDS
    while runs.behind():
        assert time.monotonic() < end
        time.sleep(0.01)


def states(run: UUID) -> list[str]:
    with get_client(sync_client=True) as client:
        found = sorted(client.read_flow_run_states(run), key=lambda state: state.timestamp)
        return [str(state.name) for state in found]


def test_a_phase_asks_for_its_run_and_for_nothing_else(
    device: Device, prefect_api: str, asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A canary: a newer engine that asks more makes every call of a client wait."""
    begun: list[UUID] = []
    with using(device):
        runs = PrefectRuns(device)
        begin = runs.telling.begin_phase

        def noting(*arguments: Any) -> Any:
            run = begin(*arguments)
            begun.append(run.id)
            return run

        monkeypatch.setattr(runs.telling, "begin_phase", noting)
        assert runs.run(count, {"fails": False}) == 3
        wait_until_told(runs)
        asked.clear()
        assert runs.run(count, {"fails": False}) == 3
        mine = [path for thread, path in asked if thread in (threading.current_thread().name, ASKS)]
        assert mine == ["POST /api/flow_runs/"]
        with pytest.raises(ValueError, match="as it was told"):
            runs.run(count, {"fails": True})
        wait_until_told(runs)
        runs.close()
    assert states(begun[-1]) == ["Pending", "Running", "Failed"]
    assert list(device.journal.phase_runs) == []


def test_a_run_that_was_cut_off_is_closed(device: Device, prefect_api: str) -> None:
    """Also one of a former process, and while this one goes on with others."""
    with using(device):
        runs = PrefectRuns(device)
        run = runs.telling.begin_phase(count, {"fails": False})
        runs.client.set_flow_run_state(run.id, State(type=StateType.RUNNING), force=True)
        runs.close()
        assert list(device.journal.phase_runs) == [str(run.id)]
        again = PrefectRuns(Device(device.config))
        again.run(count, {"fails": False})
        wait_until_told(again)
        again.close()
    assert states(run.id) == ["Pending", "Running", "Crashed"]
    assert list(Device(device.config).journal.phase_runs) == []
