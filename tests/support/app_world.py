"""A device with the example's web service on it: programs that run, a database, a client that writes.

The services are run by our own supervisor, so this works wherever the tests do. `AppWorld.close` ends all that runs.
"""

import http.client
import json
import shutil
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from otaflow.action import Action
from otaflow.config import load
from otaflow.package.build import build
from otaflow.platform.describe import describe
from otaflow.platform.device import Device, using
from otaflow.platform.processes import end_processes, find_processes
from otaflow.platform.setup import init_device
from otaflow.service import Ucm

EXAMPLE = Path(__file__).parents[2] / "examples/notes"
SYSTEM = "demo-system"
CONFIG = """[device]
name = "demo"
model = "board"
root = "device"
[slots]
kind = "{kind}"
[applications]
close_seconds = 0
end_seconds = 20
[services]
kind = "processes"
settle_seconds = 0.5
timeout_seconds = 60
"""


class AppWorld:
    """One device in `folder`, made at system version 1.0.0 without applications."""

    def __init__(self, folder: Path, kind: str = "directories", more: str = "") -> None:
        self.folder, self.kind = folder, kind
        self.config = folder / "otaflow.toml"
        folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(CONFIG.format(kind=kind) + more)
        system = folder / "system"
        (system / "bin").mkdir(parents=True)
        (system / "bin/hello").write_text("1.0.0")
        (folder / "etc").mkdir()
        (folder / "etc/notes.conf").write_text("greeting = hello\n")
        init_device(self.device(), system=system, name=SYSTEM, version="1.0.0", configuration=folder / "etc")
        self.port = free_port()

    @property
    def root(self) -> Path:
        return self.folder / "device"

    @property
    def data(self) -> Path:
        return self.root / "data/notes"

    @property
    def tree(self) -> Path:
        return self.root / "applications/notes"

    def device(self) -> Device:
        """The device as a process that begins now sees it."""
        return Device(load(self.config))

    # --- packages -------------------------------------------------------------------------------------------------

    def build(self, version: str, **metadata: Any) -> Path:
        """The example's package of `version` for this device; `metadata` replaces keys."""
        source = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copytree(EXAMPLE / version, source, dirs_exist_ok=True)
        for unit in source.glob("files/services/*"):
            text = unit.read_text().replace("@APPLICATION@", str(self.tree)).replace("@DATA@", str(self.data))
            unit.write_text(text)
        return self.finish(source, **metadata)

    def finish(self, source: Path, **metadata: Any) -> Path:
        """Build what lies in `source`; `metadata` replaces keys of its metadata, None removes one."""
        values = yaml.safe_load((source / "metadata").read_text()) | metadata
        (source / "metadata").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        output = source.with_suffix(".nua")
        build(source, output)
        return output

    def action(self, version: str, package: Path | None = None, kind: str = "", **facts: Any) -> Action:
        """The action that installs the example's `version`, or `package`."""
        path = package or self.build(version)
        before = self.device().applications.versions().get("notes", "")
        kind = kind or ("update" if before else "install")
        return Action(kind, "notes", version, 1, package=str(path), facts={"from_version": before, **facts})  # type: ignore[arg-type]

    # --- work -----------------------------------------------------------------------------------------------------

    @contextmanager
    def ucm(self) -> Iterator[Ucm]:
        """The update manager without Prefect."""
        from otaflow.cli.common import working

        with working(self.device(), prefect=False, view=False) as (ucm, _):
            yield ucm

    def install(self, *actions: Action) -> None:
        """All of the actions in one session, as a command does it; raises what it ended with."""
        with self.ucm() as ucm:
            for action in actions:
                ucm.process(action, unattended=True)
            ucm.go_on()

    def install_first(self) -> None:
        """Install version 1.0.0 and give it some notes."""
        with using(self.device()) as device:
            self.data.mkdir(parents=True, exist_ok=True)
            (self.data / "port").write_text(str(self.port))
            assert device.journal.state == "Idle"
        self.install(self.action("1.0.0"))
        for text in ("first", "second"):
            assert self.post(text) == 201

    # --- the service ----------------------------------------------------------------------------------------------

    def get(self) -> dict[str, Any]:
        """What the service answers. OSError where it does not."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/")
            answer: dict[str, Any] = json.load(connection.getresponse())
            return answer
        finally:
            connection.close()

    def post(self, text: str) -> int:
        """Keep a note; the status with which it was answered. OSError where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/notes", body=text.encode())
            return connection.getresponse().status
        finally:
            connection.close()

    @contextmanager
    def writing(self) -> "Iterator[list[str]]":
        """A client that writes without pause while the block runs; the notes whose keeping was acknowledged."""
        kept: list[str] = []
        ended = threading.Event()

        def write() -> None:
            number = 0
            while not ended.is_set():
                number += 1
                try:
                    if self.post(f"note {number}") == 201:
                        kept.append(f"note {number}")
                except (OSError, http.client.HTTPException):
                    time.sleep(0.01)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield kept
        finally:
            ended.set()
            thread.join()

    # --- what can be seen -----------------------------------------------------------------------------------------

    def rows(self) -> dict[str, Any]:
        """Everything that is in the database: its schema and its rows; nothing where there is none."""
        path = self.data / "notes.db"
        if not path.exists():
            return {}
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            tables = {name: sorted(database.execute(f'SELECT * FROM "{name}"').fetchall()) for name in names}
            schema = sorted(database.execute("SELECT type, name, sql FROM sqlite_master").fetchall())
            return {"schema": schema, "version": database.execute("PRAGMA user_version").fetchone(), **tables}
        finally:
            database.close()

    def picture(self) -> dict[str, Any]:
        """Files, configuration, rows, services, processes and state; equal pictures are equal devices."""
        device = self.device()
        entries: dict[str, Any] = {}
        for name in ("applications", "main", "slots"):
            for path, value in describe(self.root / name).items():
                entries[f"{name}/{path}"] = value
        entries.pop("slots/.kept", None)
        entries.pop("applications/.", None)
        entries["?dumps"] = sorted(path.name for path in device.dumps.glob("*"))
        entries["?extracted"] = sorted(path.name for path in (device.cache / "extracted").glob("*"))
        entries["?rows"] = self.rows()
        entries["?state"] = str(device.journal.state)
        entries["?applications"] = device.applications.versions()
        entries["?running"] = device.boot.running()
        states = {one: device.services.state(one).active for one in ("notes.service",)}
        entries["?services"] = states
        entries["?programs"] = sorted(one.command for one in find_processes([self.tree]))
        return entries

    def last(self) -> dict[str, Any]:
        """The newest record of the history."""
        return self.device().history.read()[-1]

    def close(self) -> None:
        """End everything that runs."""
        device = self.device()
        with using(device):
            for service in ("notes.service",):
                device.services.hold(service)
                device.services.stop(service)
            end_processes([self.tree], grace=2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
