"""At a boot: systemd knows and holds what the journal says, whichever slot it came up from.

Unit files and holds are in `/etc/systemd/system`. Where that is a part of the slots, another slot comes up with what
was there when it was made, and would start a new program before the migration of its data; likewise a main partition
that was brought back. This runs before any service of an application may start (otaflow-recover.service).
"""

from otaflow.platform.applications import UNITS
from otaflow.platform.device import device
from otaflow.ucm.states import State

STOPPED_BY = ("stop_application", "stop_services")
TAKEN_BACK = (State.ROLLING_BACK, State.ROLLING_BACK_FAILED)


def arrange_services() -> None:
    """Make each application's units known that is not stopped for an update, and hold what is. Raises ServiceFailed."""
    here = device()
    stopped = find_stopped()
    held = sorted({service for services in stopped.values() for service in services})
    folders = [here.applications.path(name) / UNITS for name in here.applications.names() if name not in stopped]
    here.services.arrange(folders, held)


def find_stopped() -> dict[str, list[str]]:
    """The packages whose services were stopped by the session, and were not started again: their names, services.

    A start that was begun and not done is none: Verifying begins it again.
    """
    journal = device().journal
    intents = list(journal.open_intents())
    started = {one.memory["name"] for one in intents if one.step == "start_services" and one.done}
    if journal.state in TAKEN_BACK:
        started = set()
    found: dict[str, list[str]] = {}
    for intent in intents:
        if intent.step in STOPPED_BY and intent.memory["name"] not in started:
            found.setdefault(intent.memory["name"], []).extend(intent.memory["services"])
    return found
