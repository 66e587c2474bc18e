"""After a restart or a kill: what was going on is finished or taken back (design: recovery at boot)."""

from otaflow import errors, history
from otaflow.action import Action
from otaflow.ends import record_end
from otaflow.service import Ucm
from otaflow.tasks.step import compensate
from otaflow.trial import has_given_way, must_recover, settle_boot
from otaflow.ucm.states import State


def recover(ucm: Ucm, *, verifies: bool = True) -> bool:
    """Put the device in order; returns whether there was anything to do.

    With `verifies` false a system on trial is left to who comes later. Raises what failed on the way, after the device
    is in order.
    """
    if not must_recover(ucm.device):
        return False
    ucm.device.stop_work.clear()
    unattended = ucm.journal.session.unattended
    match ucm.state:
        case State.PROCESSING:
            _take_back_processing(ucm)
        case State.ACTIVATING:
            _finish_activation(ucm)
        case State.ROLLING_BACK:
            ucm.work_rollback()
        case State.ROLLING_BACK_FAILED if unattended:
            ucm.rollback()
        case State.CLEANING_UP:
            ucm.work_clean_up()
        case State.ACTIVATED if has_given_way(ucm.device):
            _take_back_activated(ucm)
    settle_boot(ucm.device)
    if ucm.state is State.VERIFYING and not verifies:
        return True
    if unattended:
        carry_on(ucm)
    elif ucm.state is State.VERIFYING:
        ucm.verify()
    return True


def carry_on(ucm: Ucm) -> None:
    """Bring an unattended session to its end: what nobody activated is given up, a trial is made, its outcome kept."""
    if ucm.state is State.READY:
        ucm.give_up(errors.ProcessSwPackageCancelled("it was interrupted before its activation"))
    ucm.go_on()


def _take_back_activated(ucm: Ucm) -> None:
    """Verified, but it did not start again, and the former system runs: data and applications go back to it, too."""
    boot = ucm.device.boot
    why = f"slot {boot.target()} was healthy, and did not start again: slot {boot.running()} runs"
    for action, _ in ucm.processed():
        record_end(ucm.device, action, history.VERIFICATION_FAILED, error=errors.HealthCheckFailed(why))
    ucm.rollback()


def _take_back_processing(ucm: Ucm) -> None:
    session = ucm.journal.session
    compensate(lambda intent: intent.action == session.current)
    stopped = errors.ProcessSwPackageCancelled("the processing was interrupted: a power cut, or its process was ended")
    record_end(ucm.device, session.actions[-1], history.FAILED, error=stopped)
    ucm.fire("!ProcessSwPackageCancelled", error=str(stopped))


def _finish_activation(ucm: Ucm) -> None:
    """Flipped: the trial follows. Not flipped: everything of the activation is taken back."""
    actions = ucm.processed()
    journal, boot = ucm.journal, ucm.device.boot
    flipped = all(journal.is_done(*_decisive_step(action)) for action, _ in actions)
    target = boot.target()
    started = boot.running() == target and any(
        processed["target"] == target and action.kind != "snapshot" for action, processed in actions if action.of_system
    )
    if flipped or started:
        # The counter as it was before the flip: what starts after it is a start into the target, or a fallback.
        ucm.fire("$Success", boots=journal.session.boots_at(State.ACTIVATING))
        return
    compensate(lambda intent: intent.phase == "activate")
    ucm.fire("!ErrorDuringActivation", error="the activation was interrupted")
    # No end yet: an unattended session is given up, and recorded, from Ready; a client may activate again.


def _decisive_step(action: Action) -> tuple[str, str]:
    """The step that makes the action what runs next, and its key."""
    match action.kind:
        case "install" | "update":
            return "replace_files", action.name
        case "remove":
            return "remove_application", action.name
    return "restore_main" if action.kind == "snapshot" else "flip_slot", ""
