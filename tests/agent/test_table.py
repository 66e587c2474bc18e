"""The specification's table, line by line, through the interface, on a real device."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from agent_rig import SECONDS, Rig, in_thread
from specification import SpecRow, read_rows

from otaflow import errors, fault, progress
from otaflow.client import Client
from otaflow.ucm.states import State
from otaflow.ucm.table import CLIENT_EVENTS

ROWS = read_rows()
CALLS = [row for row in ROWS if row.event.startswith("<")]
CALLS.append(SpecRow("<Cancel", "Ready", "Ready", ">ApErr: OperationNotPermitted"))
CALLS += [
    SpecRow(event, "RollingBackFailed", "RollingBackFailed", ">ApErr: OperationNotPermitted")
    for event in CLIENT_EVENTS
    if event != "<Rollback"
]
CALLS.append(SpecRow("<Rollback", "RollingBackFailed", "Rolling-back", "State change"))
"""The specification's 53 lines of calls, and the rules of the design for what it leaves open."""

MOMENTS = {
    "Processing": ("extract_package", "step"),
    "Activating": ("check_dependencies", "step"),
    "Rolling-back": ("flip_slot", "undo"),
    "Cleaning-Up": ("remove_temporary", "step"),
}
"""Where the work of each state is held, so that the state can be seen."""


def call(client: Client, event: str, id: str) -> Any:
    """Make the call that the event is."""
    method = event.removeprefix("<")
    return client.call(method, **({"id": id} if method in ("Cancel", "ProcessSwPackage") else {}))


def fail_to_roll_back(rig: Rig) -> str:
    """A sick system whose automatic rollback fails."""
    fault.arm("undo.flip_slot.before", "fail")
    id = rig.process("sick")
    rig.client.activate()
    rig.wait_for("RollingBackFailed")
    fault.arm("")
    return id


def test_54_cells() -> None:
    cells = {(row.state, row.event) for row in CALLS}
    assert len(CALLS) == len(cells) == 60
    assert cells == {(state, event) for state in State for event in CLIENT_EVENTS}


@pytest.mark.parametrize("row", CALLS, ids=lambda row: f"{row.state} {row.event}")
def test_call(rig: Rig, row: SpecRow, fault_points: Any) -> None:
    """Each call in each state: the next state and the answer."""
    if row.state == "RollingBackFailed":
        id, pending = fail_to_roll_back(rig), None
    else:
        id, pending = rig.reach(State(row.state))
    if row.state not in ("Idle", "Processing") and row.event == "<ProcessSwPackage":
        id = rig.upload("next" if row.state != "RollingBackFailed" else "failing")
    assert rig.state == row.state
    before = rig.transitions()
    if row.error:
        with pytest.raises(errors.UcmError) as refused:
            call(rig.client, row.event, id)
        assert refused.value.name == row.error
        assert (rig.state, rig.transitions()) == (row.next, before)
        return
    if row.next != row.state:
        rig.holds.hold(*MOMENTS[row.next])
    answer = in_thread(call, rig.another_client(), row.event, id)
    if row.event == "<Cancel":  # it is answered when the processing has stopped
        rig.holds.release()
        assert answer.result(SECONDS) == {}
        assert pending is not None
        assert isinstance(pending.exception(SECONDS), errors.ProcessSwPackageCancelled)
        assert rig.state == "Idle"
        return
    rig.wait_for(row.next)
    assert not answer.done()
    assert rig.transitions()[0 if row.state == "Idle" else len(before)] == (row.state, row.event, row.next)
    rig.holds.release()
    assert answer.result(SECONDS) == {}


# --- what comes of the work -----------------------------------------------------------------------------------------


def succeed_processing(rig: Rig) -> None:
    rig.process()


def succeed_cancel(rig: Rig) -> None:
    id, pending = rig.reach(State.PROCESSING)
    answer = in_thread(rig.client.cancel, id)
    rig.holds.release()
    answer.result(SECONDS)
    assert pending is not None
    pending.exception(SECONDS)


def lose_cancel(rig: Rig) -> None:
    """The last step is done when Cancel comes."""
    id = rig.upload()
    rig.holds.hold("run_update_program", "done")
    processed = in_thread(rig.another_client().process_sw_package, id)
    rig.holds.wait("run_update_program", "done")
    answer = in_thread(rig.client.cancel, id)
    rig.wait_until_stopped()
    rig.holds.release()
    processed.result(SECONDS)
    assert rig.state == "Ready"
    answer.result(SECONDS)


def process_on_a_full_disk(rig: Rig) -> None:
    id = rig.upload("next")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("otaflow.tasks.package.os.statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=4096))
        rig.client.process_sw_package(id)


def cancel_another(rig: Rig) -> None:
    rig.reach(State.PROCESSING, "next")
    rig.client.cancel("another")


def cancelled(rig: Rig) -> None:
    id, pending = rig.reach(State.PROCESSING, "next")
    answer = in_thread(rig.another_client().cancel, id)
    rig.wait_until_stopped()
    rig.holds.release()
    assert pending is not None
    answer.result(SECONDS)
    pending.result(SECONDS)


def activate(rig: Rig) -> None:
    rig.reach(State.READY)
    rig.holds.hold("check_running_slot")
    rig.client.activate()


def activate_badly(rig: Rig) -> None:
    rig.reach(State.READY)
    fault.arm("flip_slot.before", "fail")
    rig.client.activate()


def activate_nothing(rig: Rig) -> None:
    """What was processed is gone."""
    import shutil

    rig.reach(State.READY)
    for folder in (rig.world.root / "cache" / "extracted").iterdir():
        shutil.rmtree(folder)
    rig.client.activate()


def activate_needy(rig: Rig) -> None:
    rig.process("needy")
    rig.client.activate()


def finish(rig: Rig) -> None:
    rig.to_activated()
    rig.client.finish()
    assert rig.client.get_sw_cluster_info() == [{"name": "demo-system", "version": "1.2.0", "state": "kPresent"}]


def revert(rig: Rig) -> None:
    rig.reach(State.READY)
    rig.client.revert_processed_sw_packages()


def revert_badly(rig: Rig) -> None:
    rig.reach(State.READY)
    fault.arm("undo.copy_active_slot.before", "fail")
    rig.client.revert_processed_sw_packages()


def roll_back(rig: Rig) -> None:
    rig.to_activated()
    rig.client.rollback()


def roll_back_badly(rig: Rig) -> None:
    rig.to_activated()
    fault.arm("undo.flip_slot.before", "fail")
    rig.client.rollback()


def roll_back_verifying_badly(rig: Rig) -> None:
    rig.reach(State.VERIFYING)
    fault.arm("undo.flip_slot.before", "fail")
    answer = in_thread(rig.another_client().rollback)
    rig.wait_until_stopped()
    rig.holds.go_on_to("check_running_slot")
    answer.result(SECONDS)


def lose_the_former_system(rig: Rig) -> None:
    """The slot that would start again holds no system any more."""
    device = rig.world.device()
    (device.slots.path(device.spare()) / ".otaflow.json").unlink()


def roll_back_to_nothing(rig: Rig) -> None:
    rig.to_activated()
    lose_the_former_system(rig)
    rig.client.rollback()


def roll_back_to_nothing_verifying(rig: Rig) -> None:
    rig.reach(State.VERIFYING)
    lose_the_former_system(rig)
    answer = in_thread(rig.another_client().rollback)
    rig.wait_until_stopped()
    rig.holds.go_on_to("check_running_slot")
    answer.result(SECONDS)


def pass_verification(rig: Rig) -> None:
    rig.to_activated()


def fail_verification(rig: Rig) -> None:
    rig.process("sick")
    rig.holds.hold("flip_slot", "undo")
    rig.client.activate()
    rig.holds.wait("flip_slot", "undo")


OUTCOMES: dict[tuple[str, str], Callable[[Rig], None]] = {
    ("Processing", "$Success ProcessSwPackage"): succeed_processing,
    ("Processing", "$Success Cancel"): succeed_cancel,
    ("Processing", "!CancelFailed (for Cancel)"): lose_cancel,
    ("Processing", "!InsufficientMemory"): process_on_a_full_disk,
    ("Processing", "!InvalidManifest"): lambda rig: rig.process("foreign") and None,
    ("Processing", "!InvalidTransferId (for Cancel)"): cancel_another,
    ("Processing", "!InvalidTransferId (for ProcessSwPackage)"): lambda rig: rig.client.process_sw_package("none"),
    ("Processing", "!ProcessedSwPackageInconsistent"): lambda rig: rig.process("failing") and None,
    ("Processing", "!ProcessSwPackageCancelled"): cancelled,
    ("Activating", "$Success"): activate,
    ("Activating", "!ErrorDuringActivation"): activate_badly,
    ("Activating", "!ErrorNoValidProcessing"): activate_nothing,
    ("Activating", "!MissingDependencies"): activate_needy,
    ("Cleaning-Up", "$Success Finish"): finish,
    ("Cleaning-Up", "$Success RevertProcessedSwPackages"): revert,
    ("Cleaning-Up", "!NotAbleToRevertPackages (for RevertProcessedSwPackages)"): revert_badly,
    ("Rolling-back", "$Success"): roll_back,
    ("Rolling-back", "!NotAbleToRollback (from Activated)"): roll_back_badly,
    ("Rolling-back", "!NotAbleToRollback (from Verifying)"): roll_back_verifying_badly,
    ("Rolling-back", "!NothingToRollback (from Activated)"): roll_back_to_nothing,
    ("Rolling-back", "!NothingToRollback (from Verifying)"): roll_back_to_nothing_verifying,
    ("Verifying", "$Success"): pass_verification,
    ("Verifying", "!Fail"): fail_verification,
}
NEVER = {
    ("Cleaning-Up", "!NothingToRevert (for RevertProcessedSwPackages)"): "Ready is entered with a processed package",
}
"""Lines of the specification that nothing here can bring about (tests/service/test_ucm_table.py shows why)."""

INNER = {(row.state, row.event): row for row in ROWS if row.event[0] in "$!" and "EnterState" not in row.event}


def test_every_line_is_tried() -> None:
    assert INNER.keys() == OUTCOMES.keys() | NEVER.keys()


TRIED = [
    (cell, others)
    for cell, row in INNER.items()
    if cell in OUTCOMES
    for others in ([False, True] if "/" in row.next else [False])
]


@pytest.mark.parametrize(
    ("cell", "others"), TRIED, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ["", "another"][value]
)
def test_outcome(rig: Rig, cell: tuple[str, str], others: bool, fault_points: Any) -> None:
    """Each success and each error of the work: the next state and the answer; with another processed package, too."""
    row = INNER[cell]
    if others:
        rig.process()
    following = row.next.split("/")[0 if others else -1]
    happened: list[tuple[str, str]] = []

    def hear(event: progress.Event) -> None:
        if event.kind == "event":
            happened.append((event.facts["state"], event.name))

    with progress.listening(hear):
        try:
            OUTCOMES[cell](rig)
            answer = ""
        except errors.UcmError as error:
            answer = error.name
    assert answer == row.error
    if row.event.endswith("Cancel)") or row.event == "$Success Cancel":
        assert happened == [("Processing", "<Cancel"), cell]
        if cell[1] != "!InvalidTransferId (for Cancel)":
            return  # where it goes on then is what comes of the processing
    if cell == ("Verifying", "!Fail"):
        rig.holds.release()
        rig.wait_for("Rolled-back")
    else:
        assert rig.state == following
    if row.event != "!InvalidTransferId (for Cancel)":
        assert (row.state, row.event, following) in rig.transitions()
