"""The transition table is the specification's: its rows are read from docs/spec/ucm-design.md, not copied here."""

import re
from pathlib import Path

import pytest

from otaflow import errors
from otaflow.ucm.states import MEANING, RESTING, State
from otaflow.ucm.table import CLIENT_EVENTS, TABLE

DOCUMENT = Path(__file__).parents[2] / "docs" / "spec" / "ucm-design.md"
SPECIFIED = [state for state in State if state is not State.ROLLING_BACK_FAILED]


def rows() -> list[tuple[str, str, str, str]]:
    """(event, current state, next state, action) of each row; `$EnterState` rows tell what a state does, no way."""
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return [row for row in cells if row[0] != "Event" and not row[0].startswith("$EnterState")]  # type: ignore[misc]


@pytest.mark.parametrize(("event", "state", "following", "action"), rows(), ids=lambda cell: str(cell)[:40])
def test_a_row_of_the_specification_is_in_the_table(event: str, state: str, following: str, action: str) -> None:
    origin = re.search(r" \(from (\w+)\)$", event)
    row = TABLE[State(state), event]
    assert [str(one) for one in row.next] == following.split("/")
    error = re.search(r"ApErr[^:]*: (\w+)", action)
    assert (row.error or "") == (error[1] if error else "")
    if answered := re.search(r"ApErr(?: for)? \(?(\w+)\)?:|^>(\w+)$", action):
        assert row.answer in (answered[1] or answered[2], None) or event.startswith("<")
    assert origin is None or str(row.next[0]) == origin[1]


@pytest.mark.parametrize("state", SPECIFIED)
@pytest.mark.parametrize("event", CLIENT_EVENTS)
def test_every_call_is_answered_in_every_state(state: State, event: str) -> None:
    row = TABLE[state, event]
    assert row.error is None or (row.next == (state,) and hasattr(errors, row.error))


def test_the_one_missing_cell_of_the_specification() -> None:
    given = {(State(state), event) for event, state, _, _ in rows() if event.startswith("<")}
    missing = {(state, event) for state in SPECIFIED for event in CLIENT_EVENTS} - given
    assert missing == {(State.READY, "<Cancel")}
    assert len(given) == 53
    assert TABLE[State.READY, "<Cancel"].error == "OperationNotPermitted"


def test_after_a_failed_rollback_only_a_rollback_is_permitted() -> None:
    permitted = [event for event in CLIENT_EVENTS if not TABLE[State.ROLLING_BACK_FAILED, event].error]
    assert permitted == ["<Rollback"]


def test_every_state_has_a_meaning_and_every_error_a_place() -> None:
    assert MEANING.keys() == set(State)
    assert set(State) > RESTING
    for (state, event), row in TABLE.items():
        if event.startswith("!Processing") or (state is State.PROCESSING and event.startswith("!")):
            assert set(row.next) <= {State.READY, State.IDLE, State.PROCESSING}


@pytest.mark.parametrize(("processed", "following"), [(True, "Ready"), (False, "Idle")])
def test_a_processing_error_depends_on_what_else_is_processed(processed: bool, following: str) -> None:
    assert TABLE[State.PROCESSING, "!InvalidManifest"].resolve(processed=processed) == following
