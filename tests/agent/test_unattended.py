"""Sessions that nobody attends: the command that began one may be gone, the machine may restart in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from agent_rig import SECONDS, Rig, Signed, running
from update_world import World, differences

from otaflow import fault
from otaflow.agent import again, house
from otaflow.errors import GeneralReject, MissingDependencies
from otaflow.ucm.states import State

AWAY = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_LOGGING_LEVEL": "CRITICAL"}


def command(world: World, *words: str) -> "subprocess.Popen[str]":
    """`otaflow WORDS` as a process of its own, without Prefect's API."""
    return subprocess.Popen(
        [sys.executable, "-c", "from otaflow.cli import main; main()", *words],
        env={**os.environ, **AWAY, "OTAFLOW_CONFIG": str(world.config), "PREFECT_HOME": str(world.folder / "prefect")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def of_the_device(picture: dict[str, Any]) -> dict[str, Any]:
    """Without what the interface keeps beside the update, and which machine start it is."""
    own = ("cache/", "nvm/packages", "nvm/retention", "nvm/tuf", "nvm/running.json", "nvm/asking.lock", "restarts")
    return {name: value for name, value in picture.items() if not name.startswith(own) and name not in ("cache", "nvm")}


class Machine:
    """A machine that really restarts: its restart command says that it goes down, `boot` lets it come up."""

    def __init__(self, world: World, signed: Signed) -> None:
        self.world = world
        self.restarts = world.folder / "restarts"
        signed.introduce(world, f'[boot]\nrestart = ["sh", "-c", "echo >> {self.restarts}"]\n')

    def wait_for_restart(self, count: int) -> None:
        end = time.monotonic() + SECONDS
        while not self.restarts.exists() or len(self.restarts.read_text()) < count:
            assert time.monotonic() < end, "it was never restarted"
            time.sleep(0.01)

    def boot(self) -> None:
        """Another start of the machine: what the kernel says of the last one is over."""
        for name in ("boots.json", "running.json"):
            path = self.world.device().nvm / name
            path.write_text(json.dumps(json.loads(path.read_text()) | {"boot_id": "an earlier start"}))


@pytest.fixture
def machine(world: World, signed: Signed) -> Machine:
    return Machine(world, signed)


@pytest.mark.parametrize(
    ("package", "ends", "starts"), [("good", ("1.2.0", "kActivated"), 1), ("sick", ("1.4.0", "kVerificationFailed"), 2)]
)
def test_it_goes_on_after_each_restart(
    machine: Machine, signed: Signed, agents: Any, package: str, ends: tuple[str, str], starts: int
) -> None:
    world = machine.world
    before = of_the_device(world.picture())
    agent = agents.start(world)
    id = agent.client.transfer(signed.path(package))
    agent.client.process_sw_package(id, unattended=True)
    agent.client.activate()
    for start in range(starts):
        machine.wait_for_restart(start + 1)
        agent.kill()
        machine.boot()
        agent = agents.start(world)
    agent.wait_for("Idle")
    end = time.monotonic() + SECONDS
    while left := agent.client.get_sw_packages():  # nobody is there who would delete it
        assert time.monotonic() < end, left
        time.sleep(0.01)
    assert agent.kill(signal.SIGTERM) == 0
    assert world.resolutions()[1:] == [ends]
    if package == "good":
        assert world.device().running_system().version == "1.2.0"
    else:
        assert differences(before, of_the_device(world.picture())) == {}


def test_an_attended_one_waits_for_its_client(machine: Machine, signed: Signed, agents: Any) -> None:
    world = machine.world
    agent = agents.start(world)
    agent.client.process_sw_package(agent.client.transfer(signed.path("good")))
    agent.client.activate()
    machine.wait_for_restart(1)
    agent.kill()
    machine.boot()
    agent = agents.start(world)
    agent.wait_for("Activated")
    agent.client.finish()
    agent.kill(signal.SIGTERM)


@pytest.mark.parametrize(
    ("calls", "end"), [(["process"], "kFailed"), (["process", "activate"], "kActivated")], ids=["Ready", "Activated"]
)
def test_an_agent_that_is_started_again_ends_it(
    trusting: World, signed: Signed, agents: Any, calls: list[str], end: str
) -> None:
    agent = agents.start(trusting)
    agent.client.process_sw_package(agent.client.transfer(signed.path("good")), unattended=True)
    if "activate" in calls:
        agent.client.activate()
        agent.wait_for("Activated")
    agent.kill()
    agent = agents.start(trusting)
    agent.wait_for("Idle")
    assert agent.kill(signal.SIGTERM) == 0
    assert trusting.resolutions()[1:] == [("1.2.0", end)]


# --- the command is gone, the agent is not ----------------------------------------------------------------------------


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch, trusting: World, signed: Signed, quick: None) -> Iterator[Rig]:
    """An agent that looks after its house all the time."""
    monkeypatch.setattr(house, "LOOK_SECONDS", 0.01)
    with running(trusting, signed) as rig:
        yield rig


ENDS = {
    "Ready": ("good", ("1.2.0", "kFailed")),
    "Activated": ("good", ("1.2.0", "kActivated")),
    "Rolled-back": ("sick", ("1.4.0", "kVerificationFailed")),
}


@pytest.mark.parametrize("state", ENDS)
def test_a_session_that_nobody_drives_ends(
    looking: Rig, trusting: World, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    kind, end = ENDS[state]
    looking.client.process_sw_package(looking.upload(kind), unattended=True)
    if state != "Ready":
        looking.client.activate()
    looking.wait_for(state)
    monkeypatch.setattr(house, "UNATTENDED_SECONDS", 0)
    looking.wait_for("Idle")
    assert trusting.resolutions()[1:] == [end]


@pytest.mark.parametrize(
    ("package", "fault_point", "stands"),
    [
        ("sick", "undo.flip_slot.before", "RollingBackFailed"),
        ("failing", "undo.copy_active_slot.before", "Processing"),
    ],
)
def test_what_cannot_be_taken_back_is_tried_again(
    trusting: World,
    signed: Signed,
    fault_points: Any,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    fault_point: str,
    stands: str,
) -> None:
    """Without a restart, and without anybody who asks for it; people are told once."""
    monkeypatch.setattr(house, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(house, "EXPIRE_SECONDS", 0)
    monkeypatch.setattr(again, "FIRST_SECONDS", 0.02)
    before = of_the_device(trusting.picture())
    with running(trusting, signed) as rig:
        fault.arm(fault_point, "fail")
        id = rig.upload(package)
        if package == "failing":
            with pytest.raises(GeneralReject):
                rig.client.process_sw_package(id, unattended=True)
        else:
            rig.client.process_sw_package(id, unattended=True)
            rig.client.activate()
        tries = again.ALARM + 1
        end = time.monotonic() + SECONDS
        while rig.agent.ucm.journal.session.notes.get("again", {}).get("tries", 0) < tries:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert rig.state in (stands, "Rolling-back")
        fault.arm("")
        rig.wait_for("Idle")
    assert [one["action"] for one in trusting.device().history.read()].count("CleanUp") == 1
    assert differences(before, of_the_device(trusting.picture())) == {}


def test_what_another_client_began_stays_attended(looking: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    looking.process()
    looking.client.process_sw_package(looking.upload("next"), unattended=True)
    assert not looking.agent.ucm.journal.session.unattended
    looking.client.revert_processed_sw_packages()


def test_what_cannot_be_activated_is_given_up_at_once(looking: Rig, trusting: World) -> None:
    looking.client.process_sw_package(looking.upload("needy"), unattended=True)
    with pytest.raises(MissingDependencies):
        looking.client.activate()
    assert looking.state == "Idle"
    assert (trusting.last()["resolution"], trusting.last()["error"]) == ("kFailed", "MissingDependencies")


# --- `otaflow update` through an agent --------------------------------------------------------------------------------


def end_of(process: "subprocess.Popen[str]") -> tuple[int, str]:
    said, complained = process.communicate(timeout=120)
    assert "Traceback" not in complained
    return process.returncode, said + complained


def test_update_drives_the_agent(trusting: World, signed: Signed, agents: Any) -> None:
    agent = agents.start(trusting)
    code, said = end_of(command(trusting, "update", str(signed.path("good"))))
    assert (code, trusting.device().journal.state) == (0, State.IDLE), said
    assert "installed 1.2.0" in said
    assert agent.client.get_sw_packages() == []
    code, said = end_of(command(trusting, "update", str(signed.path("sick"))))
    assert code == 1
    assert "sick" in said
    code, said = end_of(command(trusting, "update", str(signed.path("needy"))))
    assert code == 1
    assert "library" in said
    assert trusting.resolutions()[1:] == [
        ("1.2.0", "kActivated"),
        ("1.4.0", "kVerificationFailed"),
        ("1.5.0", "kFailed"),
    ]
    assert agent.client.get_sw_packages() == []
    agent.kill(signal.SIGTERM)


@pytest.mark.parametrize(
    ("point", "code", "end"),
    [
        ("run_update_program.acted", 1, "kFailed"),
        ("$Success ProcessSwPackage Processing.after", 1, "kFailed"),
        ("flip_slot.done", 0, "kActivated"),
        ("check_health.before", 0, "kActivated"),
        ("$Success Verifying.after", 0, "kActivated"),
        ("$Success Finish Cleaning-Up.before", 0, "kActivated"),
    ],
)
def test_update_tells_the_end_although_the_agent_died(
    trusting: World, signed: Signed, agents: Any, point: str, code: int, end: str
) -> None:
    agent = agents.start(trusting, f"{point}:kill")
    update = command(trusting, "update", str(signed.path("good")))
    agent.wait_for("dead")
    agent.kill()
    agent = agents.start(trusting)
    ended, said = end_of(update)
    assert ended == code, said
    agent.wait_for("Idle")
    assert trusting.resolutions()[1:] == [("1.2.0", end)]
    agent.kill(signal.SIGTERM)


def test_ctrl_c_stops_what_is_processed(trusting: World, signed: Signed, agents: Any) -> None:
    before = of_the_device(trusting.picture())
    agent = agents.start(trusting)
    update = command(trusting, "update", str(signed.path("slow")))
    while not [i for i in trusting.device().journal.open_intents() if i.step == "run_update_program"]:
        assert update.poll() is None
        time.sleep(0.02)
    update.send_signal(signal.SIGINT)
    code, said = end_of(update)
    assert code == 130, said
    agent.wait_for("Idle")
    agent.kill(signal.SIGTERM)
    assert trusting.last()["error"] == "ProcessSwPackageCancelled"
    assert differences(before, of_the_device(trusting.picture())) == {}
