"""The agent is killed in every state and at every transition; the next one goes on as the design says."""

import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from agent_rig import Signed, in_thread
from update_world import World, differences

from otaflow.client import Client
from otaflow.errors import Offline, UcmError

Ask = Callable[[Client, str], None]


def activate(client: Client, _id: str) -> None:
    client.activate()
    for status in client.watch():
        if status["status"] in ("Activated", "Rolled-back"):
            return


STORIES: dict[str, tuple[str, list[Ask]]] = {
    "finish": ("good", [Client.process_sw_package, activate, lambda client, _: client.finish()]),
    "roll back": ("good", [Client.process_sw_package, activate, lambda client, _: client.rollback()]),
    "revert": ("good", [Client.process_sw_package, lambda client, _: client.revert_processed_sw_packages()]),
    "sick": ("sick", [Client.process_sw_package, activate, lambda client, _: client.finish()]),
    "failing": ("failing", [Client.process_sw_package]),
    "needy": ("needy", [Client.process_sw_package, activate]),
}
POINTS = [
    # story, fault point, the state in which the next agent comes to rest
    ("finish", "<ProcessSwPackage Idle.before", "Idle"),
    ("finish", "<ProcessSwPackage Idle.after", "Idle"),
    ("finish", "copy_active_slot.acted", "Idle"),
    ("finish", "run_update_program.acted", "Idle"),
    ("finish", "$Success ProcessSwPackage Processing.before", "Idle"),
    ("finish", "$Success ProcessSwPackage Processing.after", "Ready"),
    ("finish", "<Activate Ready.before", "Ready"),
    ("finish", "<Activate Ready.after", "Ready"),
    ("finish", "flip_slot.before", "Ready"),
    ("finish", "flip_slot.done", "Activated"),
    ("finish", "$Success Activating.before", "Activated"),
    ("finish", "$Success Activating.after", "Activated"),
    ("finish", "check_health.before", "Activated"),
    ("finish", "$Success Verifying.before", "Activated"),
    ("finish", "$Success Verifying.after", "Activated"),
    ("finish", "<Finish Activated.before", "Activated"),
    ("finish", "<Finish Activated.after", "Idle"),
    ("finish", "remove_temporary.before", "Idle"),
    ("finish", "$Success Finish Cleaning-Up.before", "Idle"),
    ("finish", "$Success Finish Cleaning-Up.after", "Idle"),
    ("roll back", "<Rollback Activated.before", "Activated"),
    ("roll back", "<Rollback Activated.after", "Rolled-back"),
    ("roll back", "undo.flip_slot.acted", "Rolled-back"),
    ("roll back", "$Success Rolling-back.before", "Rolled-back"),
    ("roll back", "$Success Rolling-back.after", "Rolled-back"),
    ("revert", "<RevertProcessedSwPackages Ready.before", "Ready"),
    ("revert", "<RevertProcessedSwPackages Ready.after", "Idle"),
    ("revert", "undo.copy_active_slot.acted", "Idle"),
    ("revert", "$Success RevertProcessedSwPackages Cleaning-Up.before", "Idle"),
    ("revert", "$Success RevertProcessedSwPackages Cleaning-Up.after", "Idle"),
    ("sick", "!Fail Verifying.before", "Rolled-back"),
    ("sick", "!Fail Verifying.after", "Rolled-back"),
    ("sick", "$Success Rolling-back.before", "Rolled-back"),
    ("sick", "<Finish Rolled-back.before", "Rolled-back"),
    ("sick", "<Finish Rolled-back.after", "Idle"),
    ("sick", "$Success Finish Cleaning-Up.before", "Idle"),
    ("failing", "!ProcessedSwPackageInconsistent Processing.before", "Idle"),
    ("failing", "!ProcessedSwPackageInconsistent Processing.after", "Idle"),
    ("needy", "!MissingDependencies Activating.before", "Ready"),
    ("needy", "!MissingDependencies Activating.after", "Ready"),
]


def tell(client: Client, signed: Signed, story: str) -> str:
    """Do what the story says, until the agent dies; the package's id."""
    kind, calls = STORIES[story]
    id = client.transfer(signed.path(kind))
    with suppress(Offline, UcmError):
        for call in calls:
            call(client, id)
    return id


def of_the_device(picture: dict[str, Any]) -> dict[str, Any]:
    """Without what the interface keeps beside the update: transfers and their logs, when the house was kept."""
    own = ("cache/", "nvm/packages", "nvm/retention", "nvm/tuf")
    return {name: value for name, value in picture.items() if not name.startswith(own) and name != "cache"}


def to_idle(client: Client, state: str) -> None:
    """Give up, or finish, whatever is left."""
    if state == "Ready":
        client.revert_processed_sw_packages()
    elif state == "Activated":
        client.rollback()
        client.finish()
    elif state == "Rolled-back":
        client.finish()
    assert client.current_status() == {"status": "Idle", "session": None}


@pytest.mark.parametrize(("story", "point", "rests"), POINTS, ids=[f"{one[0]}-{one[1]}" for one in POINTS])
def test_killed_at(trusting: World, signed: Signed, agents: Any, story: str, point: str, rests: str) -> None:
    before = of_the_device(trusting.picture())
    agent = agents.start(trusting, f"{point}:kill")
    id = tell(agent.client, signed, story)
    agent.wait_for("dead")
    assert agent.kill() == -signal.SIGKILL

    agent = agents.start(trusting)
    agent.wait_for(rests)
    client = agent.client
    states = {package["id"]: package["state"] for package in client.get_sw_packages()}
    if rests == "Idle" and story != "finish":
        assert states == {id: "kTransferred"}
    if rests == "Ready":
        assert states == {id: "kProcessed"}
        with pytest.raises(UcmError):
            client.rollback()
    finished = rests == "Idle" and client.get_sw_cluster_info()[0]["version"] == "1.2.0"
    to_idle(client, rests)
    assert agent.kill(signal.SIGTERM) == 0
    if finished:
        assert story == "finish"
        assert trusting.resolutions()[-1] == ("1.2.0", "kActivated")
        return
    assert differences(before, of_the_device(trusting.picture())) == {}


STATES: dict[str, tuple[str, list[Ask], str]] = {
    "Idle": ("good", [], "Idle"),
    "Processing": ("slow", [], "Idle"),
    "Ready": ("good", [Client.process_sw_package], "Ready"),
    "Verifying": ("hanging", [Client.process_sw_package, lambda client, _: client.activate()], "Verifying"),
    "Activated": ("good", [Client.process_sw_package, activate], "Activated"),
    "Rolled-back": ("sick", [Client.process_sw_package, activate], "Rolled-back"),
}
"""Those in which an agent can be killed from outside; in the others it is by itself, above."""


@pytest.mark.parametrize("state", STATES)
def test_killed_in(trusting: World, signed: Signed, agents: Any, state: str) -> None:
    kind, calls, rests = STATES[state]
    before = of_the_device(trusting.picture())
    agent = agents.start(trusting)
    client = agent.client
    id = client.transfer(signed.path(kind))
    for call in calls:
        call(client, id)
    if state == "Processing":
        in_thread(agent.client.process_sw_package, id)
    agent.wait_for(state)
    agent.kill()
    agent = agents.start(trusting)
    agent.wait_for(rests)
    client = agent.client
    if rests == "Verifying":
        client.rollback()
        rests = "Rolled-back"
    to_idle(client, rests)
    assert agent.kill(signal.SIGTERM) == 0
    assert differences(before, of_the_device(trusting.picture())) == {}


def test_rolling_back_failed_survives(trusting: World, signed: Signed, agents: Any) -> None:
    agent = agents.start(trusting, "undo.flip_slot.before:fail")
    client = agent.client
    client.process_sw_package(client.transfer(signed.path("sick")))
    client.activate()
    agent.wait_for("RollingBackFailed")
    agent.kill()
    agent = agents.start(trusting)
    agent.wait_for("RollingBackFailed")
    agent.client.rollback()
    to_idle(agent.client, "Rolled-back")
    agent.kill(signal.SIGTERM)
