"""The trial of a new system over its boots: what counts as failed, what the boot loader is given back, what is told.

The machine is played: each `Machine.boot` is a boot of its own, with the loader's count (FakeBoot) and an ending.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from update_world import World

from otaflow import progress
from otaflow.deployments.runs import write_report
from otaflow.diagnostics.report import collect
from otaflow.errors import BootTargetDamaged, Restarting, UndoFailed
from otaflow.platform.boots import Boots, Ending
from otaflow.platform.describe import describe
from otaflow.platform.device import Device, using
from otaflow.platform.fake import TRIES, FakeBoot
from otaflow.platform.marks import Marks
from otaflow.recovery import recover
from otaflow.service import Ucm
from otaflow.tasks.policy import look_at_what_ended
from otaflow.trial import ORDERLY, judge_boots, put_target_right
from otaflow.why import explain_end, in_words
from otaflow.work import ProcessingLog

SICK = "echo one >&2; echo two >&2; exit 1"


class Machine:
    """A machine that restarts into what its loader starts; a device is a process that begins in the present boot."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.loader: FakeBoot | None = None
        self.number = 0
        self.marks = folder / "run"
        (folder / "boot_id").write_text("boot-0")

    def device(self) -> Device:
        device = self.world.device()
        device.boots = Boots(device.nvm / "boots.json", self.folder / "boot_id", self.folder / "sys")
        device.marks = Marks(self.marks)
        if self.loader is None:
            self.loader = FakeBoot(device.slots, at_once=False)
            self.loader._promise = device.running_system().generation
            self.loader._running = self.loader._target = device.boot.running()
        device.boot = self.loader
        return device

    @contextmanager
    def ucm(self) -> Iterator[Ucm]:
        device = self.device()
        with using(device), device.lock, progress.listening(ProcessingLog(device)):
            device.boots.note_boot()
            yield Ucm(device)

    def boot(self, ending: Ending | None = None) -> None:
        """The present boot ends so (None: by a power cut), and the machine starts."""
        if ending:
            self.device().boots.note_going_down(ending)
        self.number += 1
        (self.folder / "boot_id").write_text(f"boot-{self.number}")
        for mark in self.marks.glob("*"):
            mark.unlink()
        assert self.loader
        self.loader.start()

    def begin(self, **package: Any) -> None:
        """Process and activate an update, and restart into it, orderly."""
        action = self.world.up(self.world.packages.make(**package)) if package else self.world.up()
        with self.ucm() as ucm, pytest.raises(Restarting):
            ucm.install(action)
        self.boot(Ending.ORDERLY)

    def recover(self, *, verifies: bool = False) -> None:
        with self.ucm() as ucm:
            recover(ucm, verifies=verifies)

    @property
    def state(self) -> str:
        return str(self.device().journal.state)

    @property
    def tries(self) -> int | None:
        assert self.loader
        return self.loader.tries_left()

    def marked(self) -> list[str]:
        return sorted(path.name for path in self.marks.glob("*"))


@pytest.fixture
def kind() -> str:
    return "directories"


@pytest.fixture
def machine(world: World, tmp_path: Path) -> Machine:
    folder = tmp_path / "machine"
    folder.mkdir()
    return Machine(world, folder)


def test_a_good_update_is_confirmed_by_its_last_step(machine: Machine) -> None:
    machine.begin()
    assert machine.tries == TRIES - 1
    machine.recover()
    assert machine.marked() == ["trial"]
    machine.recover(verifies=True)
    assert (machine.state, machine.tries) == ("Idle", None)
    assert machine.marked() == ["confirmed", "trial"]
    log = machine.device().logs / f"{machine.world.last()['session']}.log"
    done = [line.split()[2:4] for line in log.read_text().splitlines() if line.split()[1] == "done"]
    assert done.index(["check", "health"]) + 1 == done.index(["confirm", "slot"])


def test_a_sick_one_is_never_confirmed(machine: Machine) -> None:
    machine.begin(health=SICK)
    with pytest.raises(Restarting):
        machine.recover(verifies=True)
    assert machine.tries is None, "the former slot is trusted"
    assert machine.marked() == ["trial"]
    machine.boot(Ending.ORDERLY)
    machine.recover(verifies=True)
    assert machine.world.last()["resolution"] == "kVerificationFailed"
    assert machine.device().running_system().version == "1.1.0"


@pytest.mark.parametrize("point", ["confirm_slot.acted", "confirm_slot.done", "$Success Verifying.before"])
def test_the_power_goes_between_the_confirmation_and_the_success(
    machine: Machine, point: str, fault_points: Any
) -> None:
    machine.begin()

    class PowerCut(BaseException):
        pass

    from otaflow import fault

    reached, fault.point = fault.point, lambda name: (_ for _ in ()).throw(PowerCut) if name == point else None
    try:
        with pytest.raises(PowerCut):
            machine.recover(verifies=True)
    finally:
        fault.point = reached
    assert (machine.state, machine.tries) == ("Verifying", None)
    machine.boot()
    machine.recover(verifies=True)
    assert (machine.state, machine.tries) == ("Idle", None)
    assert machine.world.last()["resolution"] == "kActivated"


def test_nothing_is_on_trial_after_a_rollback_of_a_confirmed_one(machine: Machine) -> None:
    with machine.ucm() as ucm, pytest.raises(Restarting):
        ucm.process(machine.world.up())
        ucm.activate()
        ucm.verify()
    machine.boot(Ending.ORDERLY)
    with machine.ucm() as ucm:
        ucm.verify()
        assert ucm.state == "Activated"
        with pytest.raises(Restarting):
            ucm.rollback()
    machine.boot(Ending.ORDERLY)
    with machine.ucm() as ucm:
        recover(ucm)
        ucm.finish()
    assert (machine.state, machine.tries) == ("Idle", None)
    assert machine.device().boot.running() == machine.device().boot.target()


# --- what counts ------------------------------------------------------------------------------------------------------

COUNTS = {
    "a power cut": (None, 0, 1),
    "an orderly restart": (Ending.ORDERLY, 0, 0),
    "a hang": (Ending.HANG, 1, 0),
    "a crash": (Ending.CRASH, 1, 0),
    "the deadline": (Ending.DEADLINE, 1, 0),
}


@pytest.mark.parametrize("case", COUNTS)
def test_how_a_boot_on_trial_ended_counts(case: str, machine: Machine) -> None:
    ending, failed, cuts = COUNTS[case]
    machine.begin()
    machine.recover()
    left = machine.tries
    machine.boot(ending)
    machine.recover()
    trial = machine.device().journal.session.notes["trial"]
    assert (trial["failed"], trial["cuts"]) == (failed, cuts)
    given_back = cuts
    assert machine.tries == left - 1 + given_back
    machine.recover()
    assert machine.tries == left - 1 + given_back, "once in each boot"
    assert machine.device().journal.session.notes["trial"] == trial
    machine.recover(verifies=True)
    assert machine.world.last()["resolution"] == "kActivated"


def test_the_former_systems_end_gives_nothing_back(machine: Machine) -> None:
    """The power is cut while the machine goes down into the new system: the loader has counted one start only."""
    with machine.ucm() as ucm, pytest.raises(Restarting):
        ucm.install(machine.world.up())
    machine.boot()
    machine.recover()
    assert machine.tries == TRIES - 1


@pytest.mark.parametrize("ending", [None, Ending.HANG], ids=["a power cut", "a hang"])
def test_the_former_systems_end_is_not_the_new_ones_fault(ending: Ending | None, machine: Machine) -> None:
    machine.world.configure("[health]\npower_cuts = 1\ntrials = 1\n")
    with machine.ucm() as ucm, pytest.raises(Restarting):
        ucm.install(machine.world.up())
    machine.boot(ending)
    machine.recover(verifies=True)
    assert machine.world.last()["resolution"] == "kActivated"


def test_the_note_of_a_newer_otaflow_is_read(machine: Machine) -> None:
    """It is in the slot on trial, and the former one is what the boot loader went back to."""
    machine.begin()
    with machine.ucm() as ucm:
        ucm.journal.note(trial=vars(judge_boots(ucm.device)) | {"of another version": 1})
    machine.boot()
    machine.recover()
    assert machine.device().journal.session.notes["trial"]["cuts"] == 1


@pytest.mark.parametrize("ending", [Ending.HANG, Ending.CRASH, Ending.DEADLINE], ids=lambda one: one.name)
def test_a_system_that_hangs_each_time_falls_back_and_is_told(machine: Machine, ending: Ending) -> None:
    machine.begin()
    for _ in range(TRIES):
        machine.recover()
        assert machine.device().running_system().version == "1.2.0"
        machine.boot(ending)
    assert machine.device().running_system().version == "1.1.0", "the loader went back"
    with machine.ucm() as ucm, pytest.raises(Restarting):
        recover(ucm)
    machine.boot(Ending.ORDERLY)
    machine.recover(verifies=True)
    last = machine.world.last()
    assert last["resolution"] == "kVerificationFailed"
    assert last["why"] == f"slot a did not start in {TRIES} tries: the boot loader went back to slot b"
    assert (machine.state, machine.tries) == ("Idle", None)


def test_a_system_that_hangs_more_often_than_it_may_is_rolled_back(machine: Machine) -> None:
    """Where the boot loader counts nothing, we do."""
    machine.world.configure("[health]\ntrials = 2\n")
    machine.begin()
    assert machine.loader
    machine.loader.confirm()
    for _ in range(2):
        machine.recover()
        machine.boot(Ending.HANG)
    with pytest.raises(Restarting):
        machine.recover(verifies=True)
    assert "2 times, and never to the end (the watchdog, the watchdog)" in machine.world.last()["why"]


def test_a_system_that_restarts_for_ever_is_rolled_back(machine: Machine) -> None:
    """Orderly, whenever it is verified; and the boot loader counts nothing."""
    machine.world.configure("[health]\ntrials = 2\npower_cuts = 2\n")
    machine.begin()
    assert machine.loader
    machine.loader.confirm()
    for _ in range(2 + 2 + ORDERLY - 1):  # the first one was begun in the former system
        with machine.ucm() as ucm:
            ucm._count_trial()
        machine.boot(Ending.ORDERLY)
    with pytest.raises(Restarting):
        machine.recover(verifies=True)
    assert "verified 14 times, and never to the end" in machine.world.last()["why"]


def test_power_cuts_take_no_try_until_there_are_too_many(machine: Machine) -> None:
    machine.world.configure("[health]\npower_cuts = 5\n")
    machine.begin()
    machine.recover()
    for cuts in range(1, 5):
        machine.boot()
        machine.recover()
        assert machine.tries == TRIES - 1, cuts
    machine.boot()
    with pytest.raises(Restarting):
        machine.recover(verifies=True)
    assert "the power was cut 5 times" in machine.world.last()["why"]
    machine.boot(Ending.ORDERLY)
    machine.recover(verifies=True)
    assert machine.device().running_system().version == "1.1.0"


def test_power_cuts_for_ever_before_anything_is_verified_end_in_the_former_system(machine: Machine) -> None:
    machine.world.configure("[health]\npower_cuts = 4\n")
    machine.begin()
    for _ in range(4 + TRIES):
        machine.recover()
        if machine.device().running_system().version == "1.1.0":
            break
        machine.boot()
    assert machine.device().running_system().version == "1.1.0"


# --- another slot runs ------------------------------------------------------------------------------------------------


def test_a_trusted_slot_that_did_not_start_is_told_and_what_runs_is_kept(machine: Machine) -> None:
    device = machine.device()
    assert machine.loader
    running = machine.loader.running()
    machine.loader._running = device.spare()
    before = {name: machine.world.picture().get(f"slots/{name}/bin/hello") for name in "ab"}
    with machine.ucm() as ucm:
        why = put_target_right(ucm.device)
        assert put_target_right(ucm.device) == ""
    assert f"slot {running} (demo-system 1.1.0) was to start, and did not" in why
    assert machine.loader.target() == machine.loader.running() != running
    assert machine.loader.promise() == machine.device().running_system().generation
    last = machine.world.last()
    assert (last["action"], last["resolution"], last["why"]) == ("Boot", "kFailed", why)
    assert {name: machine.world.picture().get(f"slots/{name}/bin/hello") for name in "ab"} == before
    assert machine.device().spare() == running


def test_people_are_told_that_another_slot_runs(machine: Machine) -> None:
    device = machine.device()
    with using(device):
        assert look_at_what_ended() == []
    assert machine.loader
    machine.loader._running = device.spare()
    with machine.ucm() as ucm:
        why = put_target_right(ucm.device)
        assert look_at_what_ended() == [f"The device did not start what it was to start: {why}."]
        assert look_at_what_ended() == []


@pytest.mark.parametrize("content", ["x", None], ids=["damaged", "gone"])
def test_what_did_not_start_may_be_damaged(machine: Machine, content: str | None) -> None:
    device = machine.device()
    assert machine.loader
    label = next(device.slots.path(device.boot.running()).glob(".otaflow*"))
    machine.loader._running = device.spare()
    label.unlink() if content is None else label.write_text(content)
    with machine.ucm() as ucm:
        assert "was to start, and did not" in put_target_right(ucm.device)


def test_a_trial_of_which_the_journal_knows_nothing_is_trusted(machine: Machine) -> None:
    device = machine.device()
    device.boot.set_target(device.boot.running(), device.boot.promise(), trial=True)
    with machine.ucm() as ucm:
        assert put_target_right(ucm.device) == ""
    assert machine.tries is None
    assert machine.marked() == ["confirmed"]


def test_what_starts_next_is_never_written_to(machine: Machine) -> None:
    """The trusted slot did not start while a client's session rested, which then ends: the other one is the target."""
    machine.begin()
    with machine.ucm() as ucm:
        ucm.verify()
        assert machine.loader
        machine.loader._running = ucm.device.spare()
        ucm.finish()
        ucm.process(machine.world.up(machine.world.packages.make("1.3.0", number=3), "1.3.0", 3))
        assert machine.loader.target() == machine.loader.running() != ucm.device.spare()


def test_a_slot_that_runs_is_not_put_back(machine: Machine) -> None:
    """A rolled-back system runs again, as the former one could not be loaded: it is not taken away under itself."""
    machine.begin(health=SICK)
    with pytest.raises(Restarting):
        machine.recover(verifies=True)
    machine.boot(Ending.ORDERLY)
    assert machine.loader
    former, sick = machine.loader.running(), machine.device().spare()
    machine.loader._running = sick
    before = describe(machine.device().slots.path(sick), times=True)
    with pytest.raises(UndoFailed, match="that slot runs"):
        machine.recover(verifies=True)
    assert describe(machine.device().slots.path(sick), times=True) == before
    machine.boot(Ending.ORDERLY)
    assert machine.loader.running() == former
    machine.recover(verifies=True)
    assert (machine.state, machine.device().running_system().version) == ("Idle", "1.1.0")


def test_a_session_is_left_to_its_recovery(machine: Machine) -> None:
    machine.begin()
    assert machine.loader
    machine.loader._running = "a"
    with machine.ucm() as ucm:
        assert put_target_right(ucm.device) == ""


# --- why --------------------------------------------------------------------------------------------------------------


def test_the_checks_output_and_the_boots_log_are_kept_outside_the_slots(
    machine: Machine, otaflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def journal(boot: int = 0) -> list[str]:
        calls.append(boot)
        return ["== not a title ==", "kernel: oops\x1b[31m", "login password=hunter2"]

    monkeypatch.setattr("otaflow.trial.read_journal", journal)
    machine.world.configure('[boot]\nrestart = ["true"]\n')
    machine.begin(health=SICK)
    machine.recover()
    machine.boot(Ending.HANG)
    with pytest.raises(Restarting):
        machine.recover(verifies=True)
    machine.boot(Ending.ORDERLY)
    machine.recover(verifies=True)
    why = explain_end(machine.device())
    assert why["record"]["resolution"] == "kVerificationFailed"
    said = "\n".join(why["said"])
    assert "hello: one" in said
    assert "hello: two" in said
    titles = [line for line in why["boot_log"].splitlines() if line.startswith("== ")]
    assert len(titles) == 2
    assert titles[0].endswith("which the watchdog ended ==")
    assert titles[1] == "== slot a: the boot in which the trial failed =="
    assert "kernel: oops�[31m" in why["boot_log"]
    assert calls == [-1, 0]
    shown = otaflow("history", "--why").stdout
    assert shown.splitlines() == in_words(why)
    number = why["number"]
    assert json.loads(otaflow("history", "--why", str(number), "--json").stdout) == why
    assert otaflow("history", str(number), check=False).returncode == 1
    report = write_report(machine.device(), "Update")
    assert "## What was said" in report
    assert "hello: two" in report
    assert "## The failed boot" in report
    assert "kernel: oops" in report
    assert "hunter2" not in report
    sent = json.dumps(collect(machine.device()))
    assert "kernel: oops" in sent
    assert "hunter2" not in sent
    assert "there is no record 99" in otaflow("history", "--why", "99", check=False).stderr


def test_nothing_has_failed_yet(world: World, otaflow: Any) -> None:
    done = otaflow("history", "--why", check=False)
    assert done.returncode == 1
    assert "nothing has failed" in done.stderr
    assert "kActivated" in otaflow("history", "--why", "1").stdout


def test_a_verified_system_that_does_not_start_again_is_taken_back(machine: Machine) -> None:
    """The power goes between its confirmation and its commit, and then its kernel cannot be loaded any more."""
    machine.begin()
    with machine.ucm() as ucm:
        ucm.verify()
    assert machine.state == "Activated"
    machine.boot()
    assert machine.loader
    machine.loader._running = machine.device().spare()
    with pytest.raises(Restarting):
        machine.recover()
    machine.boot(Ending.ORDERLY)
    machine.recover(verifies=True)
    assert (machine.state, machine.device().running_system().version) == ("Idle", "1.1.0")
    assert machine.loader.target() == machine.loader.running()
    last = machine.world.last()
    assert last["resolution"] == "kVerificationFailed"
    assert "was healthy, and did not start again" in last["why"]


def test_a_damaged_boot_target_is_set_to_what_runs(machine: Machine) -> None:
    device = machine.device()
    assert machine.loader
    running = machine.loader.running()

    class Damaged(FakeBoot):
        """Nothing can be read of it before it is written again."""

        def target(self) -> str:
            if not self._target:
                raise BootTargetDamaged("cannot tell which slot starts next")
            return self._target

    machine.loader = Damaged(device.slots, at_once=False)
    machine.loader._running, machine.loader._target = running, ""
    with machine.ucm() as ucm:
        assert f"slot {running} runs, and starts next" in put_target_right(ucm.device)
        assert put_target_right(ucm.device) == ""
        assert (machine.loader.target(), machine.loader.promise()) == (running, ucm.device.running_system().generation)


def test_a_running_slot_without_a_label_keeps_nobody_out(machine: Machine) -> None:
    device = machine.device()
    assert machine.loader
    machine.loader._running = device.spare()
    next(device.slots.path(device.boot.running()).glob(".otaflow*")).unlink()
    with machine.ucm() as ucm:
        assert "was to start, and did not" in put_target_right(ucm.device)
    assert machine.loader.target() == machine.loader.running()
