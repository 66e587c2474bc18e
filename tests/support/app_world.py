"""A device with the example's web service on it: programs that run, a database, a client that writes.

The services are run by our own supervisor, so this works wherever the tests do. `AppWorld.close` ends all that runs.
"""

import contextlib
import http.client
import json
import re
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psutil
import yaml

from otaflow.action import Action
from otaflow.cli.demo_site import lasting_port
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
        self.port = lasting_port()

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

    def let_settle(self, seconds: float) -> None:
        """So long a service has to run before it counts as up."""
        text, count = re.subn("settle_seconds = .*", f"settle_seconds = {seconds}", self.config.read_text())
        assert count == 1
        self.config.write_text(text)

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
        """What the service answers. OSError where it does not within a minute: it listens a moment after its start."""
        end = time.monotonic() + 60
        while True:
            try:
                return self._get()
            except ConnectionRefusedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def _get(self) -> dict[str, Any]:
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
        entries["?programs"] = sorted(set(self._programs()))
        return entries

    def _programs(self) -> Iterator[str]:
        """What runs, by itself: a shell has children for a moment."""
        found = find_processes([self.tree])
        for one in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(one.pid).ppid() not in {other.pid for other in found}:
                    yield one.command.replace(str(self.root), "")

    def last(self) -> dict[str, Any]:
        """The newest record of the history."""
        return self.device().history.read()[-1]

    def close(self) -> None:
        """End everything that runs."""
        device = self.device()
        with using(device):
            for service in ("notes.service", "radio.service"):
                device.services.hold(service)
                device.services.stop(service)
            end_processes([self.root / "applications"], grace=2)


def reach(kept: list[str], more: int) -> None:
    """Wait until so many more notes were acknowledged to who writes without pause."""
    wanted, end = len(kept) + more, time.monotonic() + 300
    while len(kept) < wanted:
        assert time.monotonic() < end, f"only {len(kept)} of {wanted} notes were acknowledged"
        time.sleep(0.01)


LIGHT_PROGRAM = """#!/bin/sh
# Says of which schema the database was that it was started on, and works on.
echo "VERSION on schema $(SCHEMA | tr -d ' ')" >> "$1/starts"
LAST
while :; do sleep 1000 & wait; done
"""
LIGHT_UNIT = """[Service]
ExecStart=TREE/bin/notes DATA
ExecReload=/bin/true
"""
ADD_AUTHOR = "ALTER TABLE notes ADD COLUMN author TEXT; UPDATE notes SET author = 'x'; PRAGMA user_version = 2;"
FAIL_HALF_WAY = ADD_AUTHOR + " INSERT INTO nowhere VALUES (1);"


class LightWorld(AppWorld):
    """The same with a program that starts at once, for the many cases of a table; it is at 1.0.0 and runs.

    `data/starts` tells which version was ever started on which schema.
    """

    schema = 'od -An -tu1 -j63 -N1 "$1/notes.db"'
    """How the program learns it."""
    database: ClassVar[dict[str, str]] = {"kind": "sqlite", "path": "notes.db"}

    def __init__(self, folder: Path, kind: str = "directories", more: str = "") -> None:
        super().__init__(folder, kind, more)
        self.let_settle(0.1)
        self.data.mkdir(parents=True)
        self.make_database()

    def make_database(self) -> None:
        """The database of schema 1, with two notes."""
        with contextlib.closing(sqlite3.connect(self.data / "notes.db")) as database, database:
            database.executescript("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT); PRAGMA user_version = 1;")
            database.executemany("INSERT INTO notes (text) VALUES (?)", [("first",), ("second",)])

    def build_light(
        self,
        version: str,
        *,
        before: str = "",
        sql: str = "",
        script: str = "",
        last: str = "",
        units: bool = True,
        unit: str = "notes.service",
        **metadata: Any,
    ) -> Path:
        """A package of it: an update of `before` that runs `sql`, or `script` on the folder `words` of its data.

        `last` is a line of its program, `units` whether it has a service, `unit` that one's name.
        """
        source = Path(tempfile.mkdtemp(dir=self.folder))
        for name in ("bin", "services", "migrations"):
            (source / "files" / name).mkdir(parents=True)
        program = LIGHT_PROGRAM.replace("VERSION", version).replace("SCHEMA", self.schema).replace("LAST", last)
        (source / "files/bin/notes").write_text(program)
        (source / "files/bin/notes").chmod(0o755)
        if units:
            tree = self.tree.with_name(str(metadata.get("name", "notes")))
            text = LIGHT_UNIT.replace("TREE", str(tree)).replace("DATA", str(self.data))
            (source / "files/services" / unit).write_text(text)
        (source / f"files/{version}").write_text("a file of this version's own")
        values: dict[str, Any] = {
            "format": 1,
            "name": "notes",
            "kind": "application",
            "version": version,
            "update_number": 1,
            "services": {"restart": [unit], "reload": [unit]} if units else {},
        }
        if units:  # a service is up before its program has said so
            said = f'tail -n 2 "{self.data}/starts" | grep -q "^{version} "'
            check = {"name": "started", "command": ["sh", "-c", said], "tries": 500, "wait_seconds": 0.02}
            values["health"] = [check]
        if before:
            values |= {"applies_to": {"versions": before}, "remove": [before]}
        if sql:
            (source / "files/migrations/up.sql").write_text(sql)
            values["migrations"] = [{"database": self.database, "sql": ["migrations/up.sql"]}]
        if script:
            (source / "files/migrations/up").write_text(script)
            (source / "files/migrations/up").chmod(0o755)
            database = {"kind": "files", "path": "words"}
            values["migrations"] = [{"database": database, "program": ["migrations/up"]}]
        (source / "metadata").write_text(json.dumps(values))
        return self.finish(source, **metadata)

    def install_light(self) -> None:
        """Install 1.0.0."""
        self.install(self.action("1.0.0", self.build_light("1.0.0")))

    def rows(self) -> dict[str, Any]:
        """The words, too, where there are any."""
        words = {path.name: path.read_text() for path in sorted((self.data / "words").glob("*"))}
        return super().rows() | ({"words": words} if words else {})

    def wait_for_starts(self, count: int) -> list[str]:
        """The starts when there are so many: a program says so a moment after it began."""
        end = time.monotonic() + 60
        while len(self.starts()) < count and time.monotonic() < end:
            time.sleep(0.02)
        return self.starts()

    def update_light(self, **more: Any) -> Action:
        """The good update of it to 1.1.0, which migrates; `more` is for `build_light`."""
        return self.action("1.1.0", self.build_light("1.1.0", before="1.0.0", **{"sql": ADD_AUTHOR, **more}))

    def wait_for_start(self, start: str, *, after: int) -> None:
        """Return when there are more such starts than `after`, the last of all being one."""
        end = time.monotonic() + 60
        while self.starts().count(start) <= after or self.starts()[-1] != start:
            assert time.monotonic() < end, self.starts()
            time.sleep(0.02)

    def starts(self) -> list[str]:
        """Which version was started on which schema, in order."""
        path = self.data / "starts"
        return path.read_text().splitlines() if path.exists() else []

    def cut_power(self) -> None:
        """Everything that runs is gone, and the machine has started anew: what is durable is all there is."""
        end_processes([self.tree], grace=0)
        for process in psutil.process_iter(["cmdline"]):
            if str(self.root / "nvm/services/run") in (process.info["cmdline"] or []):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        shutil.rmtree(self.root / "nvm/services/run", ignore_errors=True)
        end_processes([self.tree], grace=0)
        self.device().boot.restart()  # as the boot loader starts what it is to start


SYSTEM_PROGRAM = (
    '#!/bin/sh\nset -e\necho "$OTAFLOW_VERSION_TO" > "$OTAFLOW_SLOT/bin/hello"\necho new >> "$OTAFLOW_ETC/notes.conf"\n'
)


def build_system(
    world: AppWorld, version: str = "1.1.0", files: dict[str, str] | None = None, **metadata: Any
) -> Action:
    """The action that installs a system package."""
    source = world.folder / f"system-{version}"
    (source / "assets").mkdir(parents=True)
    for name, text in (files or {}).items():
        (source / "assets" / name).write_text(text)
    (source / "update").write_text(SYSTEM_PROGRAM)
    (source / "update").chmod(0o755)
    values = {"format": 1, "name": SYSTEM, "kind": "system", "version": version, "update_number": 1, **metadata}
    (source / "metadata").write_text(json.dumps(values))
    build(source, source.with_suffix(".nsu"))
    return Action("up", SYSTEM, version, 1, package=str(source.with_suffix(".nsu")), facts={"from_version": "1.0.0"})
