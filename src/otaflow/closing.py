"""Putting off the closing of an application, whoever says so: the interface, or `otaflow app defer`."""

from datetime import UTC, datetime
from typing import Any

from otaflow.platform.device import Device
from otaflow.policy.closing import Closing, Request
from otaflow.policy.memory import Memory
from otaflow.policy.moments import as_moment
from otaflow.ucm.states import State


def defer(device: Device, name: str) -> dict[str, Any]:
    """Put it off by `applications.defer_seconds`; `{"secondsLeft", "defersLeft"}` as of then.

    Raises OperationNotPermitted: nobody asked it to close, the update has priority, or that was done often enough.
    """
    journal = device.journal
    session = journal.session.id if journal.state is State.ACTIVATING else ""
    request = Closing(device.nvm).defer(name, session, device.config.applications.defer_seconds)
    return {"secondsLeft": round(_seconds_left(device, request), 1), "defersLeft": request.most - request.defers}


def _seconds_left(device: Device, request: Request) -> float:
    """Of the whole time that the application has, which began with its message; by a clock that may have been set."""
    inbox = Memory(device.nvm, device.config.notices.inbox_size).inbox
    messages = inbox.read(request.message - 1) if request.message else []
    if not messages or messages[0].id != request.message:
        return request.seconds
    gone = (datetime.now(UTC) - as_moment(messages[0].time)).total_seconds()
    return max(0.0, request.seconds - max(0.0, gone))
