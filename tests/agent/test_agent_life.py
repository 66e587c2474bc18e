"""The agent's life beside the table: who else may work, how it stops, what several packages and cancels come to."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from agent_rig import SECONDS, Rig, Signed, in_thread, running
from update_world import World, differences

from otaflow import errors, fault
from otaflow.agent import house
from otaflow.client import Client
from otaflow.ucm.states import State

AWAY = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_LOGGING_LEVEL": "CRITICAL"}
"""An API that is not there."""


def command(world: World, *words: str) -> "subprocess.Popen[str]":
    """`otaflow WORDS` as a process of its own, without Prefect's API."""
    return subprocess.Popen(
        [sys.executable, "-c", "from otaflow.cli import main; main()", *words],
        env={**os.environ, **AWAY, "OTAFLOW_CONFIG": str(world.config), "PREFECT_HOME": str(world.folder / "prefect")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_program(client: Client, id: str) -> None:
    """Wait until the package's program has said something."""
    end = time.monotonic() + SECONDS
    while not any("begun" in line["message"] for line in client.get_log(id)):
        assert time.monotonic() < end, client.get_log(id)
        time.sleep(0.01)


def of_the_device(picture: dict[str, Any]) -> dict[str, Any]:
    """Without what the interface keeps beside the update."""
    own = ("cache/", "nvm/packages", "nvm/retention", "nvm/tuf")
    return {name: value for name, value in picture.items() if not name.startswith(own) and name != "cache"}


def test_the_command(trusting: World, signed: Signed) -> None:
    """`otaflow agent` answers without Prefect; nobody else works on its device; SIGTERM ends it, the state stays."""
    agent = command(trusting, "agent")
    try:
        assert agent.stdout is not None
        assert "Idle, answering on" in agent.stdout.readline()
        with Client(trusting.device().config.path(Path("../ucm.sock"))) as client:
            client.process_sw_package(client.transfer(signed.path("good")))
            # not before: the update would be welcome where the agent is still Idle
            second = command(trusting, "agent")
            one_shot = command(trusting, "update", str(signed.path("good")))
            for process in (second, one_shot):
                _, said = process.communicate(timeout=300)
                assert process.returncode != 0
                assert "cannot" in said
                assert "Traceback" not in said
            assert client.current_status()["status"] == "Ready"
        agent.send_signal(signal.SIGTERM)
        _, said = agent.communicate(timeout=300)
        assert agent.returncode == 0
        assert "Traceback" not in said
    finally:
        agent.kill()
        agent.wait()
    assert trusting.device().journal.state is State.READY


def test_sigterm_lets_work_end(trusting: World, signed: Signed, agents: Any) -> None:
    """What is soon done is done; the caller sees the connection end, the next agent the result."""
    agent = agents.start(trusting)
    id = agent.client.transfer(signed.path("good"))
    in_thread(agent.client.process_sw_package, id)
    agent.wait_for("Processing", "Ready")
    assert agent.kill(signal.SIGTERM) == 0
    assert trusting.device().journal.state is State.READY
    agent = agents.start(trusting)
    assert agent.client.current_status()["status"] == "Ready"
    agent.client.revert_processed_sw_packages()
    agent.kill(signal.SIGTERM)


def test_sigterm_undoes_nothing(trusting: World, signed: Signed, agents: Any) -> None:
    """Work that takes too long is left as it is, and taken back by the next agent."""
    before = of_the_device(trusting.picture())
    agent = agents.start(trusting, drain=0.5)
    id = agent.client.transfer(signed.path("slow"))
    agent.client.set_log_level(id, 5)
    in_thread(agent.client.process_sw_package, id)
    agent.wait_for("Processing")
    wait_for_program(agent.client, id)
    assert agent.kill(signal.SIGTERM) == 0
    journal = trusting.device().journal
    assert journal.state is State.PROCESSING
    assert not any(intent.undone for intent in journal.session.intents.values())
    agent = agents.start(trusting)
    agent.wait_for("Idle")
    assert [package["state"] for package in agent.client.get_sw_packages()] == ["kTransferred"]
    agent.kill(signal.SIGTERM)
    assert trusting.resolutions()[-1] == ("1.9.0", "kFailed")
    assert differences(before, of_the_device(trusting.picture())) == {}


def test_cancel_stops_the_program(rig: Rig, trusting: World) -> None:
    before = of_the_device(trusting.picture())
    id = rig.upload("slow")
    rig.client.set_log_level(id, 5)
    processed = in_thread(rig.another_client().process_sw_package, id)
    wait_for_program(rig.client, id)
    with pytest.raises(errors.ServiceBusy):
        rig.client.process_sw_package(id)
    assert 0 <= rig.client.get_sw_process_progress(id) < 100
    rig.client.cancel(id)
    assert rig.state == "Idle"
    assert isinstance(processed.exception(SECONDS), errors.ProcessSwPackageCancelled)
    assert differences(before, of_the_device(trusting.picture())) == {}
    assert [package["state"] for package in rig.client.get_sw_packages()] == ["kTransferred"]


def test_cancelled_and_tried_again(rig: Rig) -> None:
    """Each try has its own end in the history."""
    rig.process()
    id = rig.upload("hanging")
    for _ in range(2):
        rig.holds.hold("copy_active_slot")
        processed = in_thread(rig.another_client().process_sw_package, id)
        rig.holds.wait("copy_active_slot")
        cancelled = in_thread(rig.another_client().cancel, id)
        rig.wait_until_stopped()
        rig.holds.release()
        assert cancelled.result(SECONDS) is None
        assert processed.exception(SECONDS)
        assert rig.state == "Ready"
    rig.client.process_sw_package(id)
    rig.client.activate()
    assert rig.state == "Verifying"
    rig.client.rollback()
    ends = [(record["version"], record["resolution"]) for record in rig.client.get_history()][1:]
    assert sorted(ends) == [
        ("1.10.0", "kActivatedAndRolledBack"),
        ("1.10.0", "kFailed"),
        ("1.10.0", "kFailed"),
        ("1.2.0", "kActivatedAndRolledBack"),
    ]


def test_two_packages_at_once(rig: Rig, trusting: World) -> None:
    rig.process()
    rig.process("next")
    assert rig.client.get_sw_cluster_change_info() == [
        {"name": "demo-system", "version": "1.3.0", "state": "kUpdating"}
    ]
    rig.client.activate()
    rig.wait_for("Activated")
    rig.client.finish()
    assert rig.client.get_sw_cluster_info()[0]["version"] == "1.3.0"
    assert trusting.resolutions()[1:] == [("1.2.0", "kActivated"), ("1.3.0", "kActivated")]
    assert [record["from_version"] for record in trusting.device().history.read()[1:]] == ["1.1.0", "1.2.0"]
    device = trusting.device()
    slot = device.slots.path(device.boot.running())
    assert (slot / "var/1.2.0").is_dir()
    assert (slot / "var/1.3.0").is_dir()
    assert rig.client.get_sw_packages() == []


@pytest.mark.parametrize("way", ["revert", "roll back", "second fails"])
def test_two_packages_or_none(rig: Rig, trusting: World, way: str) -> None:
    before = of_the_device(trusting.picture())
    rig.process()
    if way == "second fails":
        with pytest.raises(errors.ProcessedSoftwarePackageInconsistent):
            rig.process("failing")
        assert rig.state == "Ready"
        device = trusting.device()
        assert device.slots.path(device.spare()).joinpath("var/1.2.0").is_dir()
    else:
        rig.process("next")
    if way == "roll back":
        rig.client.activate()
        rig.wait_for("Activated")
        rig.client.rollback()
        rig.client.finish()
    else:
        rig.client.revert_processed_sw_packages()
    assert rig.state == "Idle"
    assert differences(before, of_the_device(trusting.picture())) == {}
    assert {package["state"] for package in rig.client.get_sw_packages()} == {"kTransferred"}


def test_rollback_stops_the_monitor(rig: Rig, trusting: World) -> None:
    """A health check that never ends does not hold a client's Rollback up."""
    before = of_the_device(trusting.picture())
    rig.process("hanging")
    rig.client.activate()
    rig.client.rollback()
    assert rig.state == "Rolled-back"
    rig.client.finish()
    assert differences(before, of_the_device(trusting.picture())) == {}


def test_rollback_before_the_monitor_began(rig: Rig) -> None:
    """Rollback is asked for between Activate's answer and the monitor's start: nothing is verified any more."""
    rig.process("hanging")
    rig.holds.hold("flip_slot", "done")
    activated = in_thread(rig.another_client().activate)
    rig.holds.wait("flip_slot", "done")
    asked: list[Any] = []

    def ask(event: Any) -> None:
        if event.kind == "state" and event.name == State.VERIFYING and not asked:
            asked.append(rig.agent.rollback())

    from otaflow import progress

    with progress.listening(ask):
        rig.holds.release()
        activated.result(SECONDS)
        asked[0].result(SECONDS)
    assert rig.state == "Rolled-back"
    rig.client.finish()
    assert rig.state == "Idle"


def test_failed_rollback_restarts_the_monitor(rig: Rig, fault_points: Any) -> None:
    rig.reach(State.VERIFYING)
    fault.arm("undo.flip_slot.before", "fail")
    answer = in_thread(rig.another_client().rollback)
    rig.wait_until_stopped()
    rig.holds.release()
    assert isinstance(answer.exception(SECONDS), errors.NotAbleToRollback)
    rig.wait_for("Activated")


def test_rolling_back_failed_and_again(rig: Rig, trusting: World, fault_points: Any) -> None:
    before = of_the_device(trusting.picture())
    fault.arm("undo.flip_slot.before", "fail")
    rig.process("sick")
    rig.client.activate()
    rig.wait_for("RollingBackFailed")
    with pytest.raises(errors.NotAbleToRollback):
        rig.client.rollback()
    assert rig.state == "RollingBackFailed"
    fault.arm("")
    rig.client.rollback()
    rig.client.finish()
    assert differences(before, of_the_device(trusting.picture())) == {}


def test_status_stream_shows_each_state(rig: Rig) -> None:
    seen = []
    stream = rig.another_client().watch()
    seen.append(next(stream)["status"])
    rig.to_activated()
    rig.client.finish()
    while len(seen) < 8:
        seen.append(next(stream)["status"])
    assert seen == ["Idle", "Processing", "Ready", "Activating", "Verifying", "Activated", "Cleaning-Up", "Idle"]


def test_an_agent_answers_although_recovery_fails(trusting: World, signed: Signed, quick: None, agents: Any) -> None:
    agent = agents.start(trusting, "run_update_program.acted:kill")
    with pytest.raises(errors.Offline):
        agent.client.process_sw_package(agent.client.transfer(signed.path("good")))
    agent.kill()
    agent = agents.start(trusting, "undo.copy_active_slot.before:fail")
    assert agent.client.current_status()["status"] == "Processing"
    with pytest.raises(errors.ServiceBusy):
        agent.client.process_sw_package("any")
    agent.kill(signal.SIGTERM)
    with running(trusting, signed) as rig:
        assert rig.state == "Idle"


def test_what_cannot_be_taken_back_ends_in_idle(
    trusting: World, signed: Signed, fault_points: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told; the house-keeping tries again, and gives up in the end."""
    monkeypatch.setattr(house, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(house, "EXPIRE_SECONDS", 0)
    signed.introduce(trusting, "[health]\nclean_ups = 3\n")
    with running(trusting, signed) as rig:
        rig.process("sick")
        rig.client.activate()
        rig.wait_for("Rolled-back")
        fault.arm("undo.copy_active_slot.before", "fail")
        with pytest.raises(errors.GeneralReject, match="cannot take back"):
            rig.client.finish()
        rig.wait_for("Idle")
        assert [record["action"] for record in rig.client.get_history()][1:] == ["Update", "CleanUp"]
        with pytest.raises(errors.GeneralReject, match="cannot take back"):
            rig.client.clean_up()  # after what the worker is still about
        assert [package["state"] for package in rig.client.get_sw_packages()] == ["kTransferred"]
        fault.arm("")
        assert rig.client.clean_up() == []
        assert not list(trusting.device().journal.open_intents())
