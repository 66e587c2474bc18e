"""The deployments' runs in the agent's process, on a real Prefect server."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import Pending, Running, Scheduled

from otaflow.agent.runner import LOST_TRIES, Deployed, Runner

SECONDS = 120.0
ran: list[str] = []
go_on = threading.Event()


@flow(name="runner: repeatable", persist_result=False)
async def repeatable(word: str = "") -> None:
    ran.append(f"repeatable {word}")


@flow(name="runner: once", persist_result=False)
def once(word: str = "") -> None:
    ran.append(f"once {word}")


@flow(name="runner: slow", persist_result=False)
def slow() -> None:
    go_on.wait(SECONDS)
    ran.append("slow")


@flow(name="runner: pressed", persist_result=False)
def pressed(word: str = "") -> None:
    go_on.wait(SECONDS)
    ran.append(f"pressed {word}")


@flow(name="runner: failing", persist_result=False)
async def failing() -> None:
    raise ValueError("no")


@pytest.fixture
def runner(prefect_api: str) -> Iterator[Runner]:
    ran.clear()
    go_on.clear()
    deployed = [
        Deployed(repeatable, "a device", {"word": "hello"}, again=True),
        Deployed(once, "a device"),
        Deployed(failing, "a device"),
        Deployed(slow, "a device", lane="network"),
        Deployed(pressed, "a device", once=True),
    ]
    runner = Runner(deployed, look_seconds=0.1)
    yield runner
    go_on.set()
    assert runner.stop()


def register(runner: Runner) -> dict[str, UUID]:
    """The deployments' ids by flow, before the runner starts."""
    with get_client(sync_client=True) as client:
        runner.known = dict(runner._register(client))
        ids = {one.flow.name.removeprefix("runner: "): id for id, one in runner.known.items()}
        runner.known = {}
    return ids


def make_run(id: UUID, state: Any = None, **more: Any) -> UUID:
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(id, **more)
        if state:
            client.set_flow_run_state(run.id, state, force=True)
    return run.id


def state_of(run: UUID) -> tuple[str, str]:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run).state
    assert state is not None
    return state.name, str(state.message or "")


def wait(what: Callable[[], Any]) -> None:
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_runs_are_executed_in_order(runner: Runner) -> None:
    ids = register(runner)
    first = make_run(ids["repeatable"])
    second = make_run(ids["once"], parameters={"word": "again"})
    third = make_run(ids["failing"])
    runner.start()
    wait(lambda: state_of(third)[0] == "Failed")
    assert (state_of(first)[0], state_of(second)[0]) == ("Completed", "Completed")
    assert ran == ["repeatable hello", "once again"]


def test_a_slow_run_keeps_only_its_own_lane_waiting(runner: Runner) -> None:
    ids = register(runner)
    first = make_run(ids["slow"])
    second = make_run(ids["slow"])
    runner.start()
    wait(lambda: state_of(first)[0] == "Running")
    beside = make_run(ids["once"], parameters={"word": "beside"})
    wait(lambda: state_of(beside)[0] == "Completed")
    assert ran == ["once beside"]
    assert state_of(second)[0] == "Scheduled"
    go_on.set()
    wait(lambda: state_of(second)[0] == "Completed")
    assert ran == ["once beside", "slow", "slow"]


def test_a_button_pressed_twice(runner: Runner) -> None:
    """While its first run goes on, and before that has begun; what is pressed later is another thing."""
    ids = register(runner)
    first, second = (make_run(ids["pressed"], parameters={"word": word}) for word in ("first", "second"))
    runner.start()
    wait(lambda: state_of(second)[0] == "Cancelled")
    other = make_run(ids["once"], parameters={"word": "waits"})
    third = make_run(ids["pressed"], parameters={"word": "third"})
    wait(lambda: state_of(third)[0] == "Cancelled")
    assert "going on" in state_of(third)[1]
    wait(lambda: state_of(first)[0] == "Running")  # a lane tells Prefect a moment after its work began
    assert state_of(other)[0] == "Scheduled"
    go_on.set()
    wait(lambda: state_of(other)[0] == "Completed")
    later = make_run(ids["pressed"], parameters={"word": "later"})
    wait(lambda: state_of(later)[0] == "Completed")
    assert ran == ["pressed first", "once waits", "pressed later"]


def test_what_was_cut_off(runner: Runner) -> None:
    """A poll is executed again; what acts each time anew is closed, and says where to look."""
    ids = register(runner)
    again = make_run(ids["repeatable"], Running())
    pending = make_run(ids["repeatable"], Pending())
    acted = make_run(ids["once"], Running())
    runner.start()
    wait(lambda: state_of(again)[0] == state_of(pending)[0] == "Completed")
    wait(lambda: state_of(acted)[0] == "Crashed")
    assert "history" in state_of(acted)[1]
    assert ran == ["repeatable hello"] * 2


def test_what_prefect_lost_is_made_anew(runner: Runner) -> None:
    """Its database was damaged, or is another one now: without its deployments a device would never be polled again."""
    runner.check_seconds = 0.2
    former = register(runner)
    runner.start()
    wait(lambda: runner.known)
    with get_client(sync_client=True) as client:
        for id in former.values():
            client.delete_deployment(id)
    wait(lambda: runner.known and not set(runner.known) & set(former.values()))
    ids = {one.flow.name.removeprefix("runner: "): id for id, one in runner.known.items()}
    assert ids.keys() == former.keys()
    run = make_run(ids["once"], parameters={"word": "anew"})
    wait(lambda: state_of(run)[0] == "Completed")
    assert ran == ["once anew"]


@pytest.mark.parametrize("said", ["nothing", "no"])
def test_a_run_that_was_taken_and_the_answer_lost(runner: Runner, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has it Pending, where nothing looks for what is due; so also a person's button is not lost."""
    monkeypatch.setattr("otaflow.agent.runner.AWAY_SECONDS", 0.1)
    runner.check_seconds = 0.2
    take, lost = runner._take, []

    def take_and_lose(client: Any, run: Any) -> bool:
        taken = take(client, run)
        if lost:
            return taken
        lost.append(run.id)
        if said == "nothing":
            raise TimeoutError("no answer")
        return False

    runner._take = take_and_lose  # type: ignore[method-assign]
    run = make_run(register(runner)["once"], parameters={"word": "pressed"})
    runner.start()
    wait(lambda: state_of(run)[0] == "Completed")
    assert lost == [run]
    assert ran == ["once pressed"]


def test_a_button_that_was_pressed_again_meanwhile(runner: Runner) -> None:
    """It hung, and the second press did what was wanted: the first one is not executed as well."""
    ids = register(runner)
    overtaken, hanging = make_run(ids["pressed"], Pending()), make_run(ids["once"], Pending())
    with get_client(sync_client=True) as client:
        runner.known = dict(runner._register(client))
        now = time.monotonic()
        runner._taken = {overtaken: now - 10, hanging: now - 10}
        runner._began = {"runner: pressed": now - 5, "runner: once": now - 15}
        runner._take_up(client, runner.known)
    assert (state_of(overtaken)[0], state_of(hanging)[0]) == ("Crashed", "AwaitingRetry")
    runner.start()
    wait(lambda: state_of(hanging)[0] == "Completed")
    assert ran == ["once "]


@pytest.mark.parametrize("fails", [1, 100])
def test_a_run_that_the_engine_could_not_end(runner: Runner, fails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be done again is; what acts each time anew is closed. Not for ever: an API may refuse it each time."""
    tried: list[UUID] = []

    def run_and_fail(flow: Any, **arguments: Any) -> Any:
        run = arguments["flow_run"].id
        tried.append(run)
        if tried.count(run) > fails:
            return run_flow(flow, **arguments)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run, Running(), force=True)
        raise OSError("the API is away")

    monkeypatch.setattr("otaflow.agent.runner.run_flow", run_and_fail)
    ids = register(runner)
    again, acted = make_run(ids["repeatable"]), make_run(ids["once"])
    runner.start()
    wait(lambda: state_of(acted)[0] == "Crashed")
    wait(lambda: state_of(again)[0] in ("Completed", "Crashed"))
    assert ran == (["repeatable hello"] if fails == 1 else [])
    assert tried.count(acted) == 1
    assert tried.count(again) == (2 if fails == 1 else LOST_TRIES + 1)


def test_runs_at_the_start_are_made_once(prefect_api: str) -> None:
    """Also when the registration is done again, because Prefect went away in the middle of it."""
    runner = Runner([Deployed(once, "at the start", {"word": "first"}, at_start=True)])
    with get_client(sync_client=True) as client:
        runner._begin(client)
        runner._begin(client)
        (id,) = runner.known
        due = client.get_scheduled_flow_runs_for_deployments([id], scheduled_before=datetime.now(UTC))
    assert len(due) == 1


def test_a_run_that_was_resumed_is_not_late(runner: Runner) -> None:
    """It was begun by a schedule, and brings the user's answer: the next poll does not replace it."""
    ids = register(runner)
    resumed, older, newer = (make_run(ids["once"], parameters={"word": word}) for word in ("answer", "older", "newer"))
    read = runner._read

    def as_scheduled(client: Any, response: Any) -> Any:
        run = read(client, response)
        return run.model_copy(update={"auto_scheduled": True, "run_count": int(run.id == resumed)})

    runner._read = as_scheduled  # type: ignore[method-assign]
    runner.start()
    wait(lambda: state_of(newer)[0] == "Completed")
    assert (state_of(resumed)[0], state_of(older)[0]) == ("Completed", "Cancelled")
    assert ran == ["once answer", "once newer"]


def test_a_run_of_the_future_waits(runner: Runner) -> None:
    ids = register(runner)
    later: Any = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=1))
    run = make_run(ids["repeatable"], state=None)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, later, force=True)
    now = make_run(ids["once"], parameters={"word": "now"})
    runner.start()
    wait(lambda: state_of(now)[0] == "Completed")
    assert state_of(run)[0] == "Scheduled"
    assert ran == ["once now"]


def test_a_runner_without_prefect_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for an API that is away, and ends at once when it is told to."""
    monkeypatch.setattr("otaflow.agent.runner.get_client", lambda **_: (_ for _ in ()).throw(OSError("away")))
    tried = threading.Event()
    monkeypatch.setattr("otaflow.agent.runner.log", type("Log", (), {"warning": lambda *_: tried.set()}))
    runner = Runner([Deployed(once, "a device")])
    runner.start()
    assert tried.wait(SECONDS)
    assert runner.stop()
