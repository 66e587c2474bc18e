"""Devices with applications inside a machine whose PID 1 is systemd (machine.py), with the units of `deployments/`.

The device's folders are seen inside and outside at the same paths; otaflow works inside, in a process of its own for
each job, as root. At boot the shipped units recover and resume, as they do on a device.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from app_world import SYSTEM, AppWorld, LightWorld
from machine import PROJECT, REBOOTED, Machine, Result, make_root

from otaflow.action import Action
from otaflow.package.build import build
from otaflow.platform.describe import describe

JOB = Path(__file__).parent / "job_inside.py"
UNITS = ("otaflow-recover.service", "otaflow-resume.service")
OTAFLOW = f"""#!/bin/sh
exec {sys.executable} -B -c 'from otaflow.cli import main; main()' "$@"
"""
# no Prefect is there; a client that is told where it would be gives up at once
AWAY = "PREFECT_API_URL=http://127.0.0.1:9/api\nPREFECT_CLIENT_MAX_RETRIES=0\n"
ON_AND_ON = """Restart=on-failure
RestartSec=0.05
StartLimitIntervalSec=0
[Install]
WantedBy=multi-user.target
"""


class Inside(AppWorld):
    """What a world does differently when its device is in `machine`, which it has not booted yet."""

    machine: Machine

    def enter(self, restart: str = "") -> None:
        """Make the machine, with otaflow's units enabled, and boot it."""
        text = self.config.read_text().replace('kind = "processes"', 'kind = "systemd"')
        text = text.replace('root = "device"', f'root = "{self.root}"')  # it is read as /etc/otaflow.toml, too
        if restart:
            text = text.replace("[applications]", f"[boot]\nrestart = {restart}\n[applications]", 1)
        self.config.write_text(text)
        root = self.make_root()
        etc = root / "etc"
        shutil.copy(self.config, etc / "otaflow.toml")
        (etc / "default").mkdir()
        (etc / "default/otaflow").write_text(AWAY)
        for name in UNITS:
            shutil.copy(PROJECT / "deployments" / name, etc / "systemd/system" / name)
        programs = self.folder.parent / f"{self.folder.name}-programs"
        programs.mkdir()
        (programs / "otaflow").write_text(OTAFLOW)
        (programs / "otaflow").chmod(0o755)
        self.machine = Machine(
            root,
            shares={self.folder: str(self.folder)},
            private_network=False,
            options=[f"--bind-ro={programs}:/usr/local/bin"],
        )
        self.machine.boot()
        self.machine.check(["systemctl", "enable", "--quiet", *UNITS])

    def make_root(self) -> Path:
        return make_root(self.folder.parent / f"{self.folder.name}-root")

    # --- work -----------------------------------------------------------------------------------------------------

    def job(self, do: str, *actions: Action, fault: str = "", status: int | None = 0) -> Result:
        """Do it inside, see job_inside.py; `status` None: the caller looks at it himself."""
        job = {"config": str(self.config), "do": do, "actions": [action.record() for action in actions]}
        env = {"OTAFLOW_FAULT": fault} if fault else None
        done = self.machine.run([sys.executable, "-B", JOB, json.dumps(job)], timeout=180, env=env)
        assert status is None or done.status == status, done.output
        return done

    def install(self, *actions: Action) -> None:
        self.job("install", *actions)

    def fail(self, *actions: Action) -> str:
        """Install what cannot be installed; what is said then."""
        return self.job("install", *actions, status=1).output

    def kill_at(self, point: str, *actions: Action, do: str = "install") -> None:
        """otaflow is killed at the fault point, and the plug is pulled."""
        self.job(do, *actions, fault=f"{point}:kill", status=-9)
        self.machine.kill()

    def boot(self) -> None:
        """Switch it on: it recovers and resumes, and is through with that."""
        self.machine.boot(timeout=180)

    # --- what can be seen -----------------------------------------------------------------------------------------

    def show(self, name: str, key: str) -> str:
        return self.machine.check(["systemctl", "show", f"--property={key}", "--value", "--", name]).strip()

    def log(self, name: str) -> str:
        """What a unit said."""
        return self.machine.check(["journalctl", "--no-pager", "--quiet", "--output=cat", f"--unit={name}"])

    def running(self) -> list[str]:
        """The programs of the application's tree that run, as their command lines."""
        lines = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
        return sorted(line.replace(str(self.root), "") for line in lines if str(self.tree) in line)

    def units(self) -> dict[str, Any]:
        """What is in systemd's folder: unit files, links, holds."""
        return describe(self.machine.path("/etc/systemd/system"), times=False)

    def picture(self) -> dict[str, Any]:
        device = self.device()
        entries: dict[str, Any] = {}
        for name in ("applications", "main"):
            for path, value in describe(self.root / name).items():
                entries[f"{name}/{path}"] = value
        entries.pop("applications/.", None)
        entries["?dumps"] = sorted(path.name for path in device.dumps.glob("*"))
        entries["?rows"] = self.rows()
        entries["?state"] = str(device.journal.state)
        entries["?applications"] = device.applications.versions()
        entries["?service"] = self.show("notes.service", "ActiveState"), self.show("notes.service", "LoadState")
        entries["?units"] = {name: value for name, value in self.units().items() if "notes" in name}
        entries["?programs"] = self.running()
        return entries

    def close(self) -> None:
        if hasattr(self, "machine"):
            self.machine.stop()


class NotesInside(Inside):
    """The example's web service, which answers outside too: the machine has the network of this one."""


class LightInside(Inside, LightWorld):
    """The light program; systemd starts it at boot, and again and again where it fails."""

    def finish(self, source: Path, **metadata: Any) -> Path:
        unit = source / "files/services/notes.service"
        if unit.exists():
            unit.write_text(unit.read_text() + ON_AND_ON)
        return super().finish(source, **metadata)


class SystemInside(LightInside):
    """The same with a system that is updated, too: its slots are what the machine boots from; /etc is in them.

    `boot.restart` reboots the machine, and this plays boot loader.
    """

    def enter(self, restart: str = '["systemctl", "reboot"]') -> None:
        super().enter(restart)

    def make_root(self) -> Path:
        slot = self.slot()
        shutil.rmtree(slot / "bin")
        return make_root(slot)

    def slot(self) -> Path:
        """The slot that boots next."""
        device = self.device()
        return device.slots.path(device.boot.target())

    def build_system(self, version: str = "1.1.0", *, program: str = "", **metadata: Any) -> Action:
        """The action that installs a system package; `program` is what its update program does beside."""
        source = Path(tempfile.mkdtemp(dir=self.folder))
        (source / "update").write_text(f'#!/bin/sh\necho "$OTAFLOW_VERSION_TO" > "$OTAFLOW_SLOT/version"\n{program}')
        (source / "update").chmod(0o755)
        values = {"format": 1, "name": SYSTEM, "kind": "system", "version": version, "update_number": 1}
        (source / "metadata").write_text(json.dumps({**values, **metadata}))
        build(source, source.with_suffix(".nsu"))
        facts = {"from_version": "1.0.0"}
        return Action("up", SYSTEM, version, 1, package=str(source.with_suffix(".nsu")), facts=facts)

    def boot(self) -> None:
        """Switch it on, from the slot that is to boot."""
        self.switch_on(wait=True)

    def install_and_reboot(self, *actions: Action, times: int = 1) -> None:
        """Install them; the device restarts itself, `times` times, and then stays on.

        Nobody waits for the job: nsenter, stopped together with it at the machine's end, would never go on.
        """
        job = {"config": str(self.config), "do": "install", "actions": [action.record() for action in actions]}
        log = self.folder / "job.log"
        self.machine.check(
            ["sh", "-c", 'exec >"$0" 2>&1; "$@" &', log, sys.executable, "-B", str(JOB), json.dumps(job)]
        )
        for left in range(times, 0, -1):
            try:
                assert self.machine.wait_off(timeout=120) == REBOOTED
            except subprocess.TimeoutExpired:
                raise AssertionError(log.read_text()) from None
            if left > 1:
                self.switch_on(wait=False)
        self.boot()

    def switch_on(self, *, wait: bool) -> None:
        self.machine.root = self.slot()
        self.machine.boot(wait=wait, timeout=180)
