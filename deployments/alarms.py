"""The automations of a device, which `otaflow up` makes on its server: no poll for a while, and rolled back.

Each starts the deployment `report` with what is the matter, and that run ends as Alarm: red in the list and on the
dashboard. A person adds actions of his own to them in Prefect's UI (a notification, say); they stay.
"""

from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from otaflow.config import Config

POLLS = 3
"""How many polls in a row may be missing."""
CHANGED = {"name", "description", "enabled", "tags", "trigger", "actions", "actions_on_trigger", "actions_on_resolve"}
"""What the server lets one change."""
LEAST = timedelta(seconds=10)
"""Prefect's least for what does not happen."""


def make_alarms(client: SyncPrefectClient, config: Config, report: UUID) -> None:
    """Make the device's automations, or bring their triggers up to date. `report` is its deployment of that name."""
    for wanted in describe_alarms(config, report):
        found = client.read_automations_by_name(wanted.name)
        if not found:
            client.create_automation(wanted)
        elif found[0].trigger != wanted.trigger:
            kept = AutomationCore.model_validate(found[0].model_dump(include=CHANGED))
            client.update_automation(found[0].id, kept.model_copy(update={"trigger": wanted.trigger}))


def describe_alarms(config: Config, report: UUID) -> Iterator[AutomationCore]:
    """What the device's automations are when they are new."""
    device = config.device.name
    resource = ResourceSpecification.model_validate({"prefect.resource.id": f"otaflow.device.{device}"})
    yield AutomationCore(
        name=f"{device}: no poll",
        description=f"No poll of {device} has ended for several intervals.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=resource,
            expect={"otaflow.poll.ended"},
            threshold=1,
            within=longest_silence(config),
        ),
        actions=[_run(report, f"{device} does not look for updates any more", tell=True)],
    )
    yield AutomationCore(
        name=f"{device}: rolled back",
        description=f"An update of {device} did not prove itself healthy: the former system runs again.",
        trigger=EventTrigger(posture=Posture.Reactive, match=resource, expect={"otaflow.update.rolled-back"}),
        actions=[_run(report, {"__prefect_kind": "jinja", "template": "{{ event.payload.text }}"}, tell=False)],
    )


def longest_silence(config: Config) -> timedelta:
    """How long no poll may have ended: some of them, their jitter, and the time that one takes."""
    interval = timedelta(minutes=config.poll.interval_minutes)
    return max(LEAST, POLLS * interval + timedelta(minutes=config.poll.jitter_minutes))


def _run(report: UUID, alarm: object, *, tell: bool) -> RunDeployment:
    return RunDeployment(source="selected", deployment_id=report, parameters={"alarm": alarm, "tell": tell})
