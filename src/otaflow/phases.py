"""Which story prepares an action, and which one makes it what starts next; each with its parameters."""

from typing import Any

from otaflow.action import Action
from otaflow.flows.activate import activate_backup, activate_slot, activate_snapshot, activate_update
from otaflow.flows.phase import Phase
from otaflow.flows.process import Processed, process
from otaflow.flows.restore import restore_backup, restore_previous_slot, restore_snapshot
from otaflow.platform.device import Device

ACTIVATIONS: dict[str, Phase[..., None]] = {
    "up": activate_update,
    "down": activate_update,
    "previous-slot": activate_slot,
    "backup": activate_backup,
    "snapshot": activate_snapshot,
}


def choose_processing(device: Device, action: Action) -> tuple[Phase[..., Processed], dict[str, Any]]:
    """What prepares `action` in the spare slot; it builds on what the session has in there already."""
    spare = device.spare()
    match action.kind:
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
                "base": spare if device.journal.session.processed else device.boot.running(),
                "spare": spare,
            }


def choose_activation(processed: list[tuple[Action, Processed]]) -> tuple[Phase[..., None], dict[str, Any]]:
    """What makes the session's last action the system that starts next; it builds on those before it."""
    action, last = processed[-1]
    parameters: dict[str, Any] = {"processed": last}
    if action.kind in ("up", "down"):
        # What is taken back needs nothing any more.
        parameters["folders"] = [result["folder"] for one, result in processed if one.kind == "up"]
    return ACTIVATIONS[action.kind], parameters
