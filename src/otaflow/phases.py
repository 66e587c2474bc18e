"""Which story prepares an action, and which one makes it what starts next; each with its parameters."""

from typing import Any

from otaflow.action import Action
from otaflow.flows.activate import activate_backup, activate_slot, activate_snapshot, activate_update
from otaflow.flows.phase import Phase
from otaflow.flows.process import Processed, process, process_application, process_removal
from otaflow.flows.restore import restore_backup, restore_previous_slot, restore_snapshot
from otaflow.parts import Part
from otaflow.platform.device import Device
from otaflow.tasks.slots import kept_name

ACTIVATIONS: dict[str, Phase[..., None]] = {
    "previous-slot": activate_slot,
    "backup": activate_backup,
    "snapshot": activate_snapshot,
}


def choose_processing(device: Device, action: Action) -> tuple[Phase[..., Processed], dict[str, Any]]:
    """What prepares `action`; a system builds on what the session has in the spare slot already."""
    spare = device.spare()
    session = device.journal.session
    accepted = bool(action.facts.get("accepted"))
    kept = kept_name()
    match action.kind:
        case "install" | "update":
            return process_application, {
                "package": action.package,
                "name": action.name,
                "kept": kept,
                "accepted": accepted,
            }
        case "remove":
            return process_removal, {"name": action.name, "kept": kept}
        case "previous-slot":
            return restore_previous_slot, {"spare": spare}
        case "backup":
            return restore_backup, {"backup": action.backup, "spare": spare}
        case "snapshot":
            return restore_snapshot, {"backup": action.backup}
        case _:
            return process, {
                "package": action.package,
                "direction": action.kind,
                "version": action.version,
                "update_number": action.update_number,
                "base": spare
                if any(session.actions[p].of_system for p in session.processed)
                else device.boot.running(),
                "spare": spare,
                "accepted": accepted,
            }


def choose_activation(
    processed: list[tuple[Action, Processed]], parts: list[Part]
) -> tuple[Phase[..., None], dict[str, Any]]:
    """What makes all of the session run next; of several systems the last one, which builds on those before it."""
    systems = [(action, result) for action, result in processed if action.of_system]
    if systems and systems[-1][0].kind in ACTIVATIONS:
        return ACTIVATIONS[systems[-1][0].kind], {"processed": systems[-1][1]}
    return activate_update, {
        "processed": systems[-1][1] if systems else None,
        # What is taken back needs nothing any more.
        "folders": [result["folder"] for action, result in processed if action.kind in ("up", "install", "update")],
        "parts": parts,
    }
