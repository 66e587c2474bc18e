"""The transition table is the specification's: its rows are read from docs/spec/ucm-design.md, not copied here."""

import re
from pathlib import Path

import pytest
from update_world import World

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


def test_ready_is_entered_with_something_processed_only() -> None:
    """Why NothingToRevert is out of reach.

    A success brings a processed package along, a failed processing ends in Ready only where another one is processed,
    and every other way into Ready began there.
    """
    ways = {(state, event) for (state, event), row in TABLE.items() if State.READY in row.next and state != State.READY}
    brings = {(State.PROCESSING, "$Success ProcessSwPackage")}
    depends = {way for way in ways if TABLE[way].next == (State.READY, State.IDLE)}
    returns = {way for way in ways if way[0] is State.ACTIVATING or "RevertProcessedSwPackages" in way[1]}
    assert ways == brings | depends | returns
    into = {State.ACTIVATING: "<Activate", State.CLEANING_UP: "<RevertProcessedSwPackages"}
    for state, event in returns:
        origins = {origin for (origin, asked), row in TABLE.items() if asked == into[state] and state in row.next}
        assert origins - {state} == {State.READY}, event


@pytest.mark.parametrize("kind", ["directories"])
def test_nothing_to_revert_is_answered_all_the_same(world: World) -> None:
    """A journal that says Ready with nothing processed, which this otaflow never writes; a package leads out of it."""
    with world.ucm() as ucm:
        ucm.journal.transition("<ProcessSwPackage", State.PROCESSING, action=world.up().record())
        ucm.journal.transition("!GeneralReject", State.READY)
        with pytest.raises(errors.NothingToRevert):
            ucm.revert()
        assert ucm.state is State.READY
        assert ucm.journal.session.transitions[-1]["event"] == "!NothingToRevert (for RevertProcessedSwPackages)"
        with pytest.raises(errors.PackageInconsistent):
            ucm.process(world.up(world.folder / "none"))
        assert ucm.state is State.IDLE


@pytest.mark.parametrize(("processed", "following"), [(True, "Ready"), (False, "Idle")])
def test_a_processing_error_depends_on_what_else_is_processed(processed: bool, following: str) -> None:
    assert TABLE[State.PROCESSING, "!InvalidManifest"].resolve(processed=processed) == following
