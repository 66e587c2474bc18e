"""The trial of a system under a real systemd, with the units of `deployments/` and the switch that counts the starts.

A slot on trial in which otaflow cannot even start is restarted by otaflow-trial.timer until the switch goes back; an
orderly restart, a power cut and the deadline are told apart at the next boot.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_machine import JOB, SystemInside
from machine import PROJECT, REBOOTED
from switch import choose_root, counted_starts

from otaflow.action import Action
from otaflow.platform.boots import Ending
from otaflow.platform.flight_recorder import read_slot_journal

TRIES = 3
UNIT = '"$OTAFLOW_SLOT/etc/systemd/system/'
BROKEN = f"""
for unit in otaflow-recover otaflow-resume; do
    mkdir -p {UNIT}$unit.service.d"
    printf '[Service]\\nEnvironment=PYTHONHOME=/nowhere\\n' >{UNIT}$unit.service.d/broken.conf"
done
"""
EMERGENCY = f"""
cat >{UNIT}data.service" <<END
[Unit]
DefaultDependencies=no
Before=local-fs.target
[Service]
Type=oneshot
ExecStart=/bin/false
END
mkdir -p {UNIT}local-fs.target.requires"
ln -s ../data.service {UNIT}local-fs.target.requires/data.service"
"""
SOON = f"""
mkdir -p {UNIT}otaflow-trial.timer.d"
printf '[Timer]\\nOnBootSec=\\nOnBootSec=1\\n' >{UNIT}otaflow-trial.timer.d/soon.conf"
"""
HANGS = {"health": [{"name": "hangs", "command": ["sleep", "100000"], "timeout_seconds": 3600, "tries": 1}]}


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


class TrialInside(SystemInside):
    """A device whose switch counts the starts of a slot on trial, and says so on the kernel's command line."""

    def enter(self, restart: str = '["systemctl", "reboot"]') -> None:
        super().enter(restart)
        for name in ("otaflow-trial.service", "otaflow-trial.timer"):
            shutil.copy(PROJECT / "deployments" / name, self.machine.path("/etc/systemd/system"))
        self.machine.check(["systemctl", "enable", "--quiet", "otaflow-trial.timer"])
        self.machine.check(["systemctl", "start", "otaflow-recover.service", "otaflow-trial.timer"])

    def switch_on(self, *, wait: bool) -> None:
        self.machine.root = choose_root(self.device())
        trial = [] if self.tries is None else ["otaflow.trial=1"]
        self.machine.options = [one for one in self.machine.options if not one.startswith("otaflow.")] + trial
        try:
            self.machine.boot(wait=wait, timeout=180)
        except AssertionError:
            if wait or not self.machine.has_gone:  # else it was up and down before anybody looked
                raise

    @property
    def tries(self) -> int | None:
        return self.device().boot.tries_left()

    @property
    def slot_on(self) -> str:
        """The slot that the machine was started from."""
        return self.machine.root.name

    @property
    def trial(self) -> dict[str, Any]:
        noted: dict[str, Any] = self.device().journal.session.notes["trial"]
        return noted

    def begin(self, action: Action) -> None:
        """Install it; the machine is off then, and wants to start into the new system."""
        job = {"config": str(self.config), "do": "install", "actions": [action.record()]}
        said = self.folder / "job.log"
        shell = ["sh", "-c", 'exec >"$0" 2>&1; "$@" &', said]
        self.machine.check([*shell, sys.executable, "-B", str(JOB), json.dumps(job)])
        self.goes_down()

    def goes_down(self) -> None:
        """It restarts by itself."""
        try:
            assert self.machine.wait_off(timeout=180) == REBOOTED
        except subprocess.TimeoutExpired:
            raise AssertionError(self.machine.console.read_text(errors="replace")) from None

    def status(self) -> str:
        """`otaflow status`, inside, as one line."""
        return " ".join(self.machine.check(["otaflow", "status"]).split())

    def why(self) -> dict[str, Any]:
        """`otaflow history --why`, inside."""
        why: dict[str, Any] = json.loads(self.machine.check(["otaflow", "history", "--why", "--json"]))
        return why


@pytest.fixture
def system(tmp_path: Path) -> Iterator[TrialInside]:
    if os.geteuid() != 0 or not shutil.which("systemd-nspawn"):
        pytest.skip("a machine with systemd needs root and systemd-nspawn (Debian: systemd-container)")
    world = TrialInside(tmp_path / "w", "directories")
    try:
        world.enter()
        yield world
    finally:
        world.close()


def test_a_good_one_is_confirmed_and_its_deadline_means_nothing_then(system: TrialInside) -> None:
    system.begin(system.build_system())
    assert system.tries == TRIES
    system.boot()
    assert (system.slot_on, system.tries, system.last()["resolution"]) == ("b", None, "kActivated")
    assert system.show("otaflow-trial.timer", "ActiveState") == "active"
    system.machine.check(["systemctl", "start", "otaflow-trial.service"])
    assert system.show("otaflow-trial.service", "ConditionResult") == "no"
    system.machine.reboot()
    assert not system.machine.path("/run/otaflow").exists()
    system.machine.check(["systemctl", "restart", "otaflow-recover.service"])
    system.machine.kill()
    system.boot()
    ends = system.device().boots.endings(0)
    assert ends[-3:] == [Ending.ORDERLY, Ending.ORDERLY, Ending.POWER_CUT], "a unit that is restarted ends no boot"
    assert system.slot_on == "b"


@pytest.mark.parametrize(
    "program", [BROKEN + SOON, BROKEN + EMERGENCY + SOON], ids=["otaflow does not start", "it ends in emergency mode"]
)
def test_a_slot_in_which_otaflow_is_broken_falls_back(system: TrialInside, program: str) -> None:
    system.begin(system.build_system(program=program))
    for left in range(TRIES - 1, -1, -1):
        system.switch_on(wait=False)
        assert (system.slot_on, system.tries) == ("b", left)
        system.goes_down()
    system.switch_on(wait=False)
    assert system.slot_on == "a"
    system.goes_down()  # what the update changed is taken back before the former system works
    system.boot()
    assert (system.slot_on, system.tries) == ("a", None)
    why = system.why()
    assert why["record"]["resolution"] == "kVerificationFailed"
    assert why["record"]["why"] == "slot b did not start in 3 tries: the boot loader went back to slot a"
    assert "the system on trial was not confirmed in time: it restarts" in why["boot_log"]
    a = system.device().slots.place("a")
    assert "no boot of its own" in read_slot_journal(a, a)[0]
    assert why["record"]["why"] in system.status()
    assert system.device().journal.state == "Idle"


def test_a_deadline_counts_and_a_power_cut_does_not(system: TrialInside) -> None:
    """The check hangs: each boot ends by the deadline or by a power cut, until the switch goes back."""
    system.begin(system.build_system(**HANGS))
    seen = []
    for end in ("deadline", "power", "deadline", "deadline"):
        before = counted_starts(system.device())
        system.switch_on(wait=False)
        until(lambda before=before: system.trial["begun"] and system.trial["boot"] > before)
        seen.append((system.tries, system.trial["failed"], system.trial["cuts"]))
        if end == "power":
            system.machine.kill()
        else:
            system.machine.check(["systemctl", "start", "--no-block", "otaflow-trial.service"])
            system.goes_down()
    assert seen == [(2, 0, 0), (1, 1, 0), (1, 1, 1), (0, 2, 1)]
    system.switch_on(wait=False)
    assert system.slot_on == "a"
    system.goes_down()
    system.boot()
    assert system.last()["resolution"] == "kVerificationFailed"
    why = system.why()
    assert f"which {Ending.DEADLINE} ended ==" in why["boot_log"]
    assert "otaflow-resume.service" in why["boot_log"]


def test_another_slot_than_the_trusted_one_runs(system: TrialInside) -> None:
    system.begin(system.build_system())
    system.boot()
    assert system.slot_on == "b"
    system.machine.stop()
    system.machine.root = system.device().slots.path("a")
    system.machine.boot()
    device = system.device()
    assert (device.boot.target(), device.boot.tries_left()) == ("a", None)
    assert device.journal.state == "Idle"
    last = system.last()
    assert (last["action"], last["resolution"]) == ("Boot", "kFailed")
    assert "slot b (demo-system 1.1.0) was to start, and did not: slot a runs" in last["why"]
    assert last["why"] in system.status()
    assert (device.slots.path("b") / "version").read_text() == "1.1.0\n"


WATCHED = """
import sys, time
from pathlib import Path
from otaflow.platform.watchdog import Watchdog
hangs = Path("/run/hangs")
Watchdog(lambda: not hangs.exists()).start()
while True:
    time.sleep(1)
"""


def test_a_service_that_does_not_answer_is_started_anew(new_machine: Callable[..., Any]) -> None:
    """With the lines of otaflow-agent.service that say so."""
    lines = (PROJECT / "deployments/otaflow-agent.service").read_text().splitlines()
    kept = [line for line in lines if line.startswith(("NotifyAccess=", "Restart="))]
    assert len(kept) == 2
    machine = new_machine()
    unit = "\n".join(["[Service]", *kept, "WatchdogSec=3", f"ExecStart={sys.executable} -B /srv/watched.py", ""])
    machine.path("/srv/watched.py").write_text(WATCHED)
    machine.path("/etc/systemd/system/watched.service").write_text(unit)
    machine.boot()

    def show(name: str) -> str:
        return str(machine.check(["systemctl", "show", f"--property={name}", "--value", "watched.service"])).strip()

    machine.check(["systemctl", "start", "watched.service"])
    machine.check(["touch", "/run/hangs"])
    until(lambda: int(show("NRestarts")) > 0)
    journal = ["journalctl", "--unit=watched.service", "--output=cat", "--no-pager"]
    until(lambda: "watchdog" in machine.check(journal).lower())
