"""Random calls of several clients at once: nothing ever happens that is not in the table."""

import itertools
import random
import threading
from typing import Any

import pytest
from agent_rig import Rig, Signed, running
from update_world import World

from otaflow import errors
from otaflow.errors import UcmError
from otaflow.ucm.states import State
from otaflow.ucm.table import CLIENT_EVENTS, TABLE

CLIENTS, CALLS = 4, 40
METHODS = [event.removeprefix("<") for event in CLIENT_EVENTS]
OWN = {
    "ProcessSwPackage": {"InvalidTransferId", "OldVersion", "ProcessedSoftwarePackageInconsistent"},
    "Activate": {"MissingDependencies"},
    "Cancel": {"InvalidTransferId", "CancelFailed"},
    "Rollback": {"NotAbleToRollback"},
    "RevertProcessedSwPackages": {"NotAbleToRevertPackages"},
    "Finish": set[str](),
}
"""With what a call may be refused beside what the table answers at once."""
LIKELY = {"Idle": "ProcessSwPackage", "Ready": "Activate", "Activated": "Finish", "Rolled-back": "Finish"}


def allowed_errors(method: str) -> set[str]:
    """Every error that some state answers the call with, at once or later."""
    at_once = {row.error for (_, event), row in TABLE.items() if event == f"<{method}" and row.error}
    later = {"ProcessSwPackageCancelled"} if method == "ProcessSwPackage" else set()
    return at_once | later | OWN[method]


def call_at_random(rig: Rig, seed: int, ids: list[str], wrong: list[str]) -> None:
    """One client: calls by chance, more often the one that leads on."""
    chance = random.Random(seed)
    with rig.another_client() as client:
        for _ in range(CALLS):
            state = client.current_status()["status"]
            method = LIKELY.get(state, "") if chance.random() < 0.5 else ""
            method = method or chance.choice(METHODS)
            fields = {"id": chance.choice([*ids, "unknown"])} if method in ("ProcessSwPackage", "Cancel") else {}
            try:
                client.call(method, **fields)
            except UcmError as error:
                if error.name not in allowed_errors(method):
                    wrong.append(f"{method} in {state}: {error.name}: {error}")
            except errors.OtaflowError as error:
                wrong.append(f"{method}: {error}")


@pytest.mark.parametrize("seed", range(4))
def test_random_calls(trusting: World, signed: Signed, quick: None, seed: int) -> None:
    with running(trusting, signed) as rig:
        ids = [rig.upload(kind) for kind in ("good", "next", "sick", "needy", "failing", "hanging")]
        taken: list[tuple[str, str, str]] = []
        journal = rig.agent.ucm.journal
        transition = journal.transition

        def watched(event: str, to: State, **facts: Any) -> Any:
            taken.append((str(journal.state), event, str(to)))
            return transition(event, to, **facts)

        journal.transition = watched  # type: ignore[method-assign]
        wrong: list[str] = []
        clients = [
            threading.Thread(target=call_at_random, args=(rig, seed * 100 + n, ids, wrong)) for n in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join(120)
        assert not any(client.is_alive() for client in clients)
        assert wrong == []
        assert len(taken) > 10
        assert taken[0][0] == "Idle"
        for before, after in itertools.pairwise(taken):
            assert before[2] == after[0]
        for origin, event, to in taken:
            row = TABLE[State(origin), event]
            assert State(to) in row.next, (origin, event, to)
            assert not (event.startswith("<") and row.error), (origin, event, to)
        settle(rig)


def settle(rig: Rig) -> None:
    """The device is still one that can be brought to Idle, and updated no less than before."""
    state = rig.wait_for("Idle", "Ready", "Activated", "Rolled-back", "RollingBackFailed", "Verifying")
    if state == "Ready":
        rig.client.revert_processed_sw_packages()
    elif state in ("Verifying", "Activated", "RollingBackFailed"):
        rig.client.rollback()
    if rig.state in ("Rolled-back",):
        rig.client.finish()
    assert rig.state == "Idle"
