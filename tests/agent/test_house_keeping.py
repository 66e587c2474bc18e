"""What the agent's house-keeping does by itself: once a day what is over goes, whatever happens in between."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from update_world import World

from otaflow.agent import house
from otaflow.agent.again import TRIES, Again
from otaflow.agent.house import House
from otaflow.service import Ucm
from otaflow.transfer.store import Transfers
from otaflow.ucm.states import State

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def make_house(world: World) -> tuple[House, list[Any]]:
    """The house of a device that was just started, and what its worker is asked to do."""
    device = world.device()
    asked: list[Any] = []
    worker: Any = type("Asked", (), {"submit": lambda _, work: asked.append(work)})()
    return House(Ucm(device), Transfers(device.cache / "transfers", timeout_seconds=60), worker, None), asked


def test_what_is_stuck_is_tried_again_less_and_less_often(world: World) -> None:
    """Also over restarts of the agent, each of which makes one try by itself."""
    ucm = Ucm(world.device())
    ucm.device.journal.transition("<ProcessSwPackage", State.PROCESSING, action=world.up().record())
    again, waits, now = Again(ucm), [], 0.0
    for tick in range(0, 40 * 3600, 60):
        if tick == 6 * 3600:
            again = Again(Ucm(world.device()))
        if again.is_due(tick):
            waits.append(int(tick - now) // 60)
            again.begin(tick)
            again.end(OSError("no room"))
            now = tick
    assert waits[:6] == [1, 2, 4, 8, 16, 32]
    assert set(waits[6:]) - {60} <= {60 + minute for minute in range(60)}  # the one across the restart
    assert len(waits) == TRIES
    alarms = [one for one in world.device().history.read() if one["action"] == "CleanUp"]
    assert [(one["error"], "failed 3 times: no room" in one["why"]) for one in alarms] == [("OSError", True)]


@pytest.mark.parametrize(
    ("after", "due"),
    [(timedelta(hours=1), False), (timedelta(hours=25), True), (timedelta(days=-3), True)],
    ids=["the same day", "the next day", "the clock was set back"],
)
def test_once_a_day_also_over_restarts(world: World, after: timedelta, due: bool) -> None:
    first, asked = make_house(world)
    first._retain(NOW)
    first._retain(NOW + timedelta(minutes=1))
    assert len(asked) == 1
    again, asked = make_house(world)
    again._retain(NOW + after)
    assert len(asked) == int(due)


def test_what_it_remembers_is_damaged(world: World) -> None:
    one, asked = make_house(world)
    (one.ucm.device.nvm / "retention").write_bytes(b"\xff nonsense")
    one._retain(NOW)
    assert len(asked) == 1


def test_it_outlives_a_full_disk(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(house, "LOOK_SECONDS", 0)
    one, _ = make_house(world)
    calls: list[float] = []

    def look(now: float) -> None:
        calls.append(now)
        if len(calls) > 1:
            one.end()
        raise OSError("No space left on device")

    monkeypatch.setattr(one, "_look", look)
    with caplog.at_level(logging.ERROR):
        one.thread.start()
        one.thread.join(60)
    assert len(calls) == 2
    assert "cannot keep house" in caplog.text
