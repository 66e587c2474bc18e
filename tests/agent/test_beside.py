"""The methods beside the contract, and the commands and deployed flows that use them where an agent runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from agent_rig import SECONDS, Rig, Signed, in_thread
from update_world import World, differences

from otaflow import errors, through
from otaflow.actions import WAYS, Way
from otaflow.deployments.clean_up import clean_up
from otaflow.deployments.rollback import rollback
from otaflow.ucm.states import State

AWAY = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_LOGGING_LEVEL": "CRITICAL"}
ENDS = {"previous-slot": ("Rollback", "1.0.0"), "snapshot": ("RestoreMain", "1.1.0"), "backup": ("Restore", "1.0.0")}
"""The word of the history for each way back, and what runs then."""


def of_the_device(picture: dict[str, Any]) -> dict[str, Any]:
    """Without what the interface keeps beside the update."""
    own = ("cache/", "nvm/packages", "nvm/retention", "nvm/tuf", "nvm/asking.lock")
    return {name: value for name, value in picture.items() if not name.startswith(own) and name != "cache"}


def to_idle(rig: Rig) -> None:
    """Activate what is processed, and keep it."""
    rig.client.activate()
    rig.wait_for("Activated")
    rig.client.finish()


# --- GoBack -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", WAYS)
def test_a_way_back_goes_through_the_table(rig: Rig, trusting: World, to: Way) -> None:
    home = trusting.device().main / "home/data"
    rig.client.go_back(to)
    assert rig.state == "Ready"
    to_idle(rig)
    assert [event for _, event, _ in rig.transitions()] == [
        "<ProcessSwPackage",
        "$Success ProcessSwPackage",
        "<Activate",
        "$Success",
        "$Success",
        "<Finish",
        "$Success Finish",
    ]
    action, version = ENDS[to]
    assert (trusting.last()["action"], trusting.last()["resolution"]) == (action, "kActivated")
    assert rig.client.get_sw_cluster_info()[0]["version"] == version
    assert ("since" not in home.read_text()) == (to == "snapshot")


@pytest.mark.parametrize("to", WAYS)
@pytest.mark.parametrize("way", ["revert", "roll back", "cancel"])
def test_a_way_back_is_given_up(rig: Rig, trusting: World, to: Way, way: str) -> None:
    before = of_the_device(trusting.picture())
    if way == "cancel":
        rig.holds.hold("back_up_incremental")
        processed = in_thread(rig.another_client().go_back, to)
        rig.holds.wait("back_up_incremental")
        with pytest.raises(errors.InvalidTransferId):
            rig.client.cancel("another")
        answer = in_thread(rig.client.cancel, to)
        rig.wait_until_stopped()
        rig.holds.release()
        assert answer.result(SECONDS) is None
        assert isinstance(processed.exception(SECONDS), errors.ProcessSwPackageCancelled)
    else:
        rig.client.go_back(to)
        if way == "revert":
            rig.client.revert_processed_sw_packages()
        else:
            rig.client.activate()
            rig.client.rollback()
            rig.client.finish()
    assert rig.state == "Idle"
    assert differences(before, of_the_device(trusting.picture())) == {}


REFUSED = {
    State.PROCESSING: errors.ServiceBusy,
    **dict.fromkeys(
        [State.READY, State.ACTIVATING, State.VERIFYING, State.ACTIVATED, State.ROLLING_BACK, State.ROLLED_BACK],
        errors.OperationNotPermitted,
    ),
    State.CLEANING_UP: errors.OperationNotPermitted,
}


@pytest.mark.parametrize("state", REFUSED, ids=str)
def test_what_the_state_forbids(rig: Rig, state: State) -> None:
    id, _ = rig.reach(state)
    before = rig.transitions()
    for to in WAYS:
        with pytest.raises(REFUSED[state]):
            rig.client.go_back(to)
    with pytest.raises(REFUSED[state]):
        rig.client.uninstall(id)
    with pytest.raises(errors.OperationNotPermitted):
        rig.client.clean_up()
    assert (rig.state, rig.transitions()) == (state, before)


def test_nothing_builds_on_a_way_back(rig: Rig) -> None:
    """The slot that the next one would copy is not what will run."""
    rig.client.go_back("snapshot")
    with pytest.raises(errors.OperationNotPermitted, match="cannot go together"):
        rig.client.process_sw_package(rig.upload())
    with pytest.raises(errors.OperationNotPermitted, match="cannot go together"):
        rig.client.go_back("previous-slot")
    assert rig.state == "Ready"


@pytest.mark.parametrize(
    ("to", "backup", "error"),
    [
        ("backup", "none", errors.NothingToRollback),
        ("backup", "../../nvm", errors.NothingToRollback),
        ("snapshot", "none", errors.NothingToRollback),
        ("previous-slot", "0001", errors.OperationNotPermitted),
        ("elsewhere", None, errors.GeneralReject),
    ],
)
def test_a_way_that_leads_nowhere_changes_nothing(rig: Rig, trusting: World, to: str, backup: str, error: Any) -> None:
    before = rig.transitions()
    with pytest.raises(error):
        rig.client.go_back(to, backup)
    assert (rig.state, rig.transitions(), len(trusting.resolutions())) == ("Idle", before, 1)


@pytest.mark.parametrize("to", WAYS)
def test_a_killed_way_back_goes_on(trusting: World, agents: Any, to: Way) -> None:
    step = "restore_main" if to == "snapshot" else "flip_slot"
    agent = agents.start(trusting, f"{step}.done:kill")
    agent.client.go_back(to, unattended=True)
    with pytest.raises(errors.Offline):
        agent.client.activate()
    agent.wait_for("dead")
    agent.kill()
    agent = agents.start(trusting)
    agent.wait_for("Idle")
    assert agent.kill(signal.SIGTERM) == 0
    assert (trusting.last()["action"], trusting.last()["resolution"]) == (ENDS[to][0], "kActivated")


# --- Uninstall --------------------------------------------------------------------------------------------------------


def send(rig: Rig, package: Path) -> str:
    """Send a package without TransferExit."""
    id, size = rig.client.transfer_start(package.stat().st_size)
    content = package.read_bytes()
    for number, start in enumerate(range(0, len(content), size), 1):
        rig.client.transfer_data(id, number, content[start : start + size])
    return id


def test_uninstall(rig: Rig, trusting: World, signed: Signed) -> None:
    rig.process()
    to_idle(rig)
    id = send(rig, signed.path("good"))
    rig.client.uninstall(id)
    assert [package["state"] for package in rig.client.get_sw_packages()] == ["kProcessed"]
    to_idle(rig)
    assert rig.client.get_sw_cluster_info()[0]["version"] == "1.1.0"
    assert rig.client.get_sw_packages() == []
    last = trusting.last()
    assert (last["action"], last["version"], last["from_version"]) == ("Uninstall", "1.1.0", "1.2.0")


def test_uninstall_is_given_up_and_tried_again(rig: Rig, signed: Signed) -> None:
    rig.process()
    to_idle(rig)
    id = send(rig, signed.path("good"))
    for _ in range(2):
        rig.client.uninstall(id)
        rig.client.revert_processed_sw_packages()
        assert [package["state"] for package in rig.client.get_sw_packages()] == ["kTransferred"]


def test_what_cannot_be_uninstalled(rig: Rig, trusting: World, signed: Signed) -> None:
    with pytest.raises(errors.InvalidTransferId):
        rig.client.uninstall("none")
    with pytest.raises(errors.IncompatibleDelta, match=r"1\.1\.0 is installed"):
        rig.client.uninstall(send(rig, signed.path("good")))
    with pytest.raises(errors.AuthenticationFailed):
        rig.client.uninstall(send(rig, trusting.packages.make("1.1.0", number=1)))
    with pytest.raises(errors.InsufficientData):
        rig.client.uninstall(rig.client.transfer_start(100).id)
    assert rig.state == "Idle"
    assert len(trusting.resolutions()) == 1


# --- CleanUp ----------------------------------------------------------------------------------------------------------


def age(world: World) -> None:
    """Let all backups' time be over."""
    device = world.device()
    for path in device.backups.folder.glob("*/entry.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"time": "2020-01-01T00:00:00.000Z"}))
    for _ in range(5):
        device.boots.note_restart()


def test_clean_up(rig: Rig, trusting: World) -> None:
    assert rig.client.clean_up() == []
    age(trusting)
    assert rig.client.clean_up() == [entry.id for entry in trusting.device().backups]
    assert rig.client.clean_up() == []


# --- the commands and the deployed flows ------------------------------------------------------------------------------


def otaflow(world: World, *words: str) -> str:
    """What `otaflow WORDS` says, where it ends well."""
    environment = {**os.environ, **AWAY, "OTAFLOW_CONFIG": str(world.config)}
    done = subprocess.run(
        [sys.executable, "-c", "from otaflow.cli import main; main()", *words],
        env=environment | {"PREFECT_HOME": str(world.folder / "prefect")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_use_the_agent(trusting: World, signed: Signed, agents: Any) -> None:
    agent = agents.start(trusting)
    otaflow(trusting, "update", str(signed.path("good")))
    assert "installed 1.1.0" in otaflow(trusting, "update", "--down", str(signed.path("good")))
    assert "runs 1.2.0" in otaflow(trusting, "rollback")
    assert "runs 1.2.0" in otaflow(trusting, "rollback", "--snapshot")
    oldest = next(iter(trusting.device().backups)).id
    answer = json.loads(otaflow(trusting, "rollback", "--backup", oldest, "--json"))
    assert (answer["done"], answer["status"]["ucm_state"]) == (["1.0.0"], "Idle")
    assert json.loads(otaflow(trusting, "clean-up", "--json")) == {"removed": []}
    assert "runs 1.0.0, Idle" in otaflow(trusting, "resume")
    assert [record["action"] for record in trusting.device().history.read()[1:]] == [
        "Update",
        "Uninstall",
        "Rollback",
        "RestoreMain",
        "Restore",
    ]
    agent.kill(signal.SIGTERM)


def test_the_deployed_flows_use_the_agent(rig: Rig, trusting: World) -> None:
    config = str(trusting.config)
    assert rollback.fn("previous slot", config=config) == "1.0.0"
    assert rollback.fn("snapshot", config=config) == "1.0.0"
    assert rollback.fn("backup", next(iter(trusting.device().backups)).id, config=config) == "1.0.0"
    assert clean_up.fn(config=config) == []
    assert rig.state == "Idle"


def test_rollback_ends_a_session_of_a_client(rig: Rig, trusting: World) -> None:
    rig.to_activated()
    through.go_back(rig.client, trusting.device(), "previous-slot")
    assert (rig.state, trusting.resolutions()[-1]) == ("Idle", ("1.2.0", "kActivatedAndRolledBack"))


@pytest.mark.parametrize(("package", "told"), [("good", ""), ("sick", "sick")])
def test_resume_waits_for_the_agent(rig: Rig, trusting: World, package: str, told: str) -> None:
    rig.reach(State.VERIFYING, package)
    resumed = in_thread(through.resume, rig.another_client(), trusting.device())
    with pytest.raises(TimeoutError):
        resumed.result(0.2)
    rig.holds.release()
    assert told in resumed.result(SECONDS)
    assert bool(told) == bool(resumed.result(SECONDS))
    assert rig.state == ("Rolled-back" if told else "Activated")
