"""A device that is updated again and again on a machine with systemd: packages, restarts, what must hold after each.

Its slots are what the machine starts from, the switch of `deployments/initrd` is the boot loader, the units are those
of `deployments/`. The machine's journal lies outside the slots, as what lies inside is in every backup.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from app_machine import JOB, SystemInside
from app_world import SYSTEM
from machine import PROJECT
from switch import choose_root, counted_starts

from otaflow.action import Action
from otaflow.package.build import build
from otaflow.platform.btrfs import is_subvolume
from otaflow.platform.describe import describe
from otaflow.platform.labels import read_label
from otaflow.repo import admin

MORE = """[backups]
retention_days = 0
retention_reboots = 2
[sources.official]
url = "https://127.0.0.1:9"
root = "{root}"
"""
SHIPPED = (
    "otaflow-trial.service",
    "otaflow-trial.timer",
    "otaflow-agent.service",
    "otaflow-clean-up.service",
)
JOURNALD = "[Journal]\nStorage=persistent\nSyncIntervalSec=1\nRateLimitBurst=0\nSystemMaxUse=4M\nSystemMaxFileSize=1M\n"
PREFECT_IS_AWAY = ("PREFECT_API_URL=http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES=0")
OWN = ("systemd", "systemd-journald", "notes", "sh", "sleep")
"""The programs of a machine at rest: systemd, its journal, and the application's."""
MOST_STARTS = 12
PATIENCE = 600.0


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """What `condition` gives as soon as it is something."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return value


class CycleInside(SystemInside):
    """The device on its machine. `starts` counts every start since it was made, also those that came to nothing."""

    def __init__(self, folder: Path, aside: Path) -> None:
        """`folder` is on btrfs; what is only the test's is in `aside`, outside the file system that is measured."""
        super().__init__(folder, "btrfs")
        self.aside = aside
        self.repository = aside / "repository"
        root = admin.init(self.repository)
        shutil.copy(root, folder / "1.root.json")
        (folder / "updates").mkdir()
        (folder / "journal").mkdir()
        self.config.write_text(self.config.read_text() + MORE.format(root=folder / "1.root.json"))
        self.starts_made = 0
        self.number = 0
        self._published = ""

    def enter(self, restart: str = '["systemctl", "reboot"]') -> None:
        super().enter(restart)
        self.machine.console.unlink()  # it lay among the slots
        for name in SHIPPED:
            shutil.copy(PROJECT / "deployments" / name, self.machine.path("/etc/systemd/system"))
        self.machine.path("/version").write_text("1.0.0\n")
        self.machine.path("/etc/systemd/journald.conf").write_text(JOURNALD)
        self.machine.check(["systemctl", "enable", "--quiet", "otaflow-trial.timer"])
        self.install_light()
        self.machine.stop()
        self.machine.shares[self.folder / "journal"] = "/var/log/journal"
        self.machine.console = self.aside / "console"
        self.start_up()
        self._mounts = self.mounts_inside()

    def start_up(self) -> None:
        """Switch it on as it is."""
        self.machine.root = choose_root(self.device())
        self.machine.boot(timeout=PATIENCE)

    def close(self) -> None:
        """It may be off, or have come to nothing."""
        if hasattr(self, "machine"):
            self.machine.kill()

    # --- packages -------------------------------------------------------------------------------------------------

    def make_system(self, version: str, program: str = "", **metadata: Any) -> Path:
        """A system package; `program` is what its update program does beside writing the version."""
        source = Path(tempfile.mkdtemp(dir=self.aside))
        (source / "update").write_text(f'#!/bin/sh\necho "$OTAFLOW_VERSION_TO" > "$OTAFLOW_SLOT/version"\n{program}')
        (source / "update").chmod(0o755)
        values = {"format": 1, "name": SYSTEM, "kind": "system", "version": version, "update_number": self.number}
        (source / "metadata").write_text(json.dumps({**values, **metadata}))
        package = self.folder / "updates" / f"{SYSTEM}-{version}.nsu"
        build(source, package)
        shutil.rmtree(source)
        return package

    def up(self, package: Path, version: str) -> Action:
        """The action that installs it."""
        facts = {"from_version": read_label(self.machine.root).version}
        return Action("up", SYSTEM, version, self.number, package=str(package), facts=facts)

    def offer(self, package: Path) -> Path:
        """A local repository package that offers this package and no other one."""
        if self._published:
            admin.withdraw(self.repository, self._published)
        self._published = admin.publish(self.repository, [package])[0].path
        offered = package.with_suffix(".nsr")
        admin.export(self.repository, offered)
        return offered

    def clean_up(self) -> None:
        """The service that a timer starts each day: full backups whose time is over, logs, packages of no use."""
        passed = time.time() - 2 * 86400
        for path in (self.root / "cache/packages").glob("*"):
            os.utime(path, (passed, passed))  # they lay there for two days
        self.machine.check(["systemctl", "start", "otaflow-clean-up.service"], timeout=PATIENCE)

    def forget_packages(self) -> None:
        """What the test itself made for this cycle."""
        for path in (self.folder / "updates").iterdir():
            path.unlink()
        for path in self.folder.glob("tmp*"):  # app_world builds there
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / "job.log").unlink(missing_ok=True)

    # --- work -----------------------------------------------------------------------------------------------------

    def begin(self, *command: str | Path) -> None:
        """Have the command run inside; nobody waits for it, as the machine may go down with it."""
        shell = ["sh", "-c", 'exec >"$0" 2>&1; "$@"; echo "status $?"']
        words = [*shell, self.folder / "job.log", "env", *PREFECT_IS_AWAY, *command]
        self.machine.check(["sh", "-c", '"$@" &', "sh", *words])

    def begin_update(self, offered: Path) -> None:
        """`otaflow update FILE`."""
        self.begin("otaflow", "update", offered)

    def begin_job(self, *actions: Action, bug: str = "") -> None:
        """All of the actions in one session, by an otaflow with a planted bug (bug_inside.py) where one is named."""
        job = {"config": str(self.config), "do": "install", "actions": [action.record() for action in actions]}
        script: list[str | Path] = [JOB.with_name("bug_inside.py"), bug] if bug else [JOB]
        self.begin(sys.executable, "-B", *script, json.dumps(job))

    def said(self) -> str:
        path = self.folder / "job.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def is_off(self) -> bool:
        nspawn = self.machine._nspawn
        return nspawn is None or nspawn.poll() is not None

    def switch_on(self, *, wait: bool = False) -> None:
        """One start, of the slot that the switch chooses; it may come to nothing."""
        self.machine.kill()  # what is left of the machine that went off
        device = self.device()
        self.machine.root = choose_root(device)
        trial = ["otaflow.trial=1"] if device.boot.tries_left() is not None else []
        self.machine.options = [one for one in self.machine.options if one != "otaflow.trial=1"] + trial
        self.starts_made += 1
        try:
            self.machine.boot(wait=wait, timeout=PATIENCE)
        except AssertionError:
            if not self.is_off:
                raise

    def settle(self, at_start: Callable[[], None] = lambda: None) -> None:
        """Until it stays on, at rest: started as often as it goes off. `at_start` is called after each start."""
        last = self.starts_made + MOST_STARTS
        while True:
            until(lambda: self.is_off or self.is_at_rest(), self.whole_story())
            if not self.is_off:
                with suppress(AssertionError):  # it goes off meanwhile
                    self.machine.run(["systemctl", "is-system-running", "--wait"], timeout=PATIENCE)
                if not self.is_off:
                    return
            assert self.starts_made < last, f"it starts again and again: {self.whole_story()}"
            self.switch_on()
            at_start()

    def is_at_rest(self) -> bool:
        """Idle, on a slot that is trusted, and the command that began it has ended, if it is still there."""
        device = self.device()
        if device.journal.state != "Idle" or device.boot.tries_left() is not None:
            return False
        return "status " in self.said() or counted_starts(device) > self.boots_at_begin

    boots_at_begin = 0

    def whole_story(self) -> str:
        journal = self.device().journal
        console = self.machine.console.read_text(errors="replace")[-2000:] if self.machine.console.exists() else ""
        return f"{journal.state} {journal.session.notes}\n{self.said()[-3000:]}\n{console}"

    # --- what must hold -------------------------------------------------------------------------------------------

    def find_wrong(self, version: str, application: str, schema: int) -> list[str]:
        """What is not as it must be, on a device at rest that runs these versions; empty where nothing is."""
        device = self.device()
        running = self.machine.root.name  # seen from outside, no slot is the root
        label = read_label(self.machine.root)
        facts = {
            "state": (str(device.journal.state), "Idle"),
            "open intents": ([one.id for one in device.journal.open_intents() if not device.journal.session.kept], []),
            "boot target": (device.boot.target(), running),
            "tries left": (device.boot.tries_left(), None),
            "version": (label.version, version),
            "promise": (device.boot.promise(), label.generation),
            "content": (self.machine.check(["cat", "/version"]).strip(), version),
            "application": (device.applications.versions(), {"notes": application}),
            "schema": (self.rows()["version"], (schema,)),
            "service": (self.show("notes.service", "ActiveState"), "active"),
            "programs": (len(self.running()), 1),
            "failed units": (self.machine.check(["systemctl", "--failed", "--quiet", "--no-legend"]).split(), []),
        }
        wrong = [f"{name}: {found}, not {wanted}" for name, (found, wanted) in facts.items() if found != wanted]
        return wrong + [f"left over: {one}" for one in self.find_leavings()]

    def find_leavings(self) -> list[str]:
        """What no device at rest has: kept trees, dumps, extracted packages, reserves, mounts, loops, processes."""
        device = self.device()
        names = set(os.listdir(self.root / "slots")) - {"a", "b", ".kept"}
        names -= {".#a.lck", ".#b.lck"}  # systemd-nspawn's, of the slot that runs as a machine
        found = [f"slots/{name}" for name in sorted(names)]
        for folder in ("slots/.kept", "dumps", "cache/extracted", "cache/transfers"):
            found += [f"{folder}/{path.name}" for path in (self.root / folder).glob("*")]
        found += [f"applications/{name}" for name in os.listdir(self.root / "applications") if name != "notes"]
        found += [
            f"backups/{path.name}" for path in device.backups.folder.iterdir() if not (path / "entry.json").exists()
        ]
        found += [str(path) for path in device.backups.folder.glob("*/.*")]
        found += [f"nvm/{path.name}" for path in device.nvm.glob("reserve-*")]
        found += [str(path) for path in self.subvolumes() - self.expected_subvolumes()]
        return found + self.find_mounts() + self.find_processes()

    def subvolumes(self) -> set[Path]:
        """Every subvolume of the device's folder."""
        return {
            Path(top, name)
            for top, names, _ in os.walk(self.root)
            for name in names
            if is_subvolume(Path(top, name)) and not Path(top, name).is_symlink()
        }

    def expected_subvolumes(self) -> set[Path]:
        """Of the slots, the main partition, and the entries of the backups."""
        backups = self.device().backups
        slots = {self.root / "slots" / name for name in ("a", "b")}
        parts = {backups.path(entry.id, part) for entry in backups for part in ("sys", "etc-sys", "main")}
        return slots | parts | {self.root / "main", self.root / "main/etc/sys", self.root / "applications/notes"}

    def find_mounts(self) -> list[str]:
        """Mounts of the device outside, loop devices on its files, and mounts inside that a new machine has not."""
        outside = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        found = [f"mount {point}" for point in outside if point.startswith(f"{self.folder}/")]
        found += [f"mount inside {point}" for point in (self.mounts_inside() - self._mounts).elements()]
        loops = subprocess.run(
            ["losetup", "--list", "--noheadings", "--output=BACK-FILE"], capture_output=True, text=True
        )
        return found + [f"loop device on {line}" for line in loops.stdout.splitlines() if str(self.folder) in line]

    def mounts_inside(self) -> Counter[str]:
        """The mount points of the machine, and how often each is mounted on."""
        lines = Path("/proc", str(self.machine.pid), "mountinfo").read_text().splitlines()
        return Counter(line.split()[4] for line in lines)

    def find_processes(self) -> list[str]:
        """Processes of the machine that are not its own, once those that are ending have ended."""

        def others() -> list[str]:
            inside = psutil.Process(self.machine.pid).children(recursive=True)
            found = []
            for one in inside:
                try:
                    if one.name() not in OWN:
                        found.append(f"process {' '.join(one.cmdline())[:200] or one.name()}")
                except psutil.NoSuchProcess:
                    pass
            return found

        end = time.monotonic() + 60
        while (found := others()) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def main_process(self, unit: str) -> int:
        """The number, outside, of a unit's main process."""
        inside = self.show(unit, "MainPID")
        for one in psutil.Process(self.machine.pid).children(recursive=True):
            status = Path("/proc", str(one.pid), "status").read_text()
            if status.split("NSpid:")[1].split("\n")[0].split()[-1] == inside:
                return one.pid
        raise AssertionError(f"{unit} does not run")

    def system_content(self) -> dict[str, Any]:
        """The running slot, without what a system writes while it runs, and the configuration."""
        slot = describe(self.machine.root)
        configuration = describe(self.root / "main/etc/sys")
        return {f"configuration {name}": value[:5] for name, value in configuration.items()} | {
            name: value[:5] if value[0] == "folder" else value
            for name, value in slot.items()
            if not name.startswith(("var/", "tmp/", "run/", "root/"))
        }
