"""How actions end, for the history: each end once, and alarms about what could not be removed."""

import logging

from otaflow import history
from otaflow.action import NAMES, Action
from otaflow.platform.device import Device
from otaflow.tasks.step import STEPS

log = logging.getLogger("otaflow.ucm")


def record_end(
    device: Device,
    action: Action,
    resolution: str,
    *,
    error: Exception | None = None,
    place: int | None = None,
    backup: str = "",
) -> None:
    """Put the action's end into the history, once. `place`: where it is in the session."""
    session = device.journal.session
    place = session.place(action) if place is None else place
    device.history.add(
        key=f"{session.id}.{place}",
        session=session.id,
        name=action.name,
        version=action.version,
        update_number=action.update_number,
        action=NAMES[action.kind],
        resolution=resolution,
        from_version=str(action.facts.get("from_version", "")),
        error=type(error).__name__ if error else "",
        why=str(error) if error else "",
        backup=backup,
    )


def raise_alarm(device: Device, what: str, error: Exception, *, of: str = "alarm") -> None:
    """Into the log and the history, with all that is left; once for each session and kind `of` alarm."""
    left = ", ".join(STEPS[intent.step].title for intent in device.journal.open_intents())
    why = f"{what}: {error}" + (f"; still to be taken back: {left}" if left else "")
    log.error("%s", why)
    system = device.running_system()
    device.history.add(
        key=f"{device.journal.session.id}.{of}",
        name=system.name,
        version=system.version,
        action="CleanUp",
        resolution=history.FAILED,
        error=type(error).__name__,
        why=why,
    )
