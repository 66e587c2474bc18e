"""The stories of which every moment is cut: what is done to a device, on a recording disk, and how it may end.

A story is made once (a device with a past, its packages built), told on the recording disk with every fault point
marked in the log, and told as a list of facts that hold at each moment: what was promised, and what was answered.
"""

import contextlib
import json
import os
import sqlite3
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app_world import ADD_AUTHOR, LightWorld, build_system
from own_machine import DEVICES, begin_boot
from postgres_light import MIGRATE, PostgresLight
from power_transfer import tell_transfers
from update_world import FAILING, SICK, Packages, Picture, World

from otaflow import fault
from otaflow.action import Action
from otaflow.cli.update import recover
from otaflow.cli.view import View
from otaflow.errors import OtaflowError, Restarting
from otaflow.platform.describe import tree_digest
from otaflow.platform.labels import read_label
from otaflow.platform.ostree import FOLDER as REPOSITORY
from otaflow.platform.sandbox import enforced
from otaflow.prefect_server import home_environment
from otaflow.records import decode
from otaflow.ucm.states import RESTING

Facts = dict[str, Any]
Actions = list[dict[str, Any]]
LOADED = (View, enforced())
"""Loaded once, not by each machine."""
SWITCH = Path(__file__).parents[2] / "deployments/initrd/otaflow-switch"
STARTS = 8
UNWELL = {"health": [{"name": "well", "command": ["sh", "-c", "echo unwell; exit 1"], "tries": 1}]}
DATABASE = {"kind": "sqlite", "path": "notes.db", "application": "notes"}
OF_THE_SYSTEM: dict[str, Any] = {
    "migrations": [{"database": DATABASE, "sql": ["up.sql"]}],
    "services": {"restart": ["notes.service"]},
}


class SystemWorld(World):
    """A device without applications, its packages beside it."""

    @property
    def world(self) -> World:
        return self

    @property
    def partitions(self) -> Sequence[Path]:
        return [DEVICES / number for number in ("1", "2")]

    def picture(self) -> Picture:
        """Both slots are looked into: after a start they may not be mounted yet."""
        slots = self.device().slots
        for name in slots.names:
            slots.path(name)
        return super().picture()


@dataclass
class Story:
    """What is told. `turn` is the step that decides: before its `before` it is taken back, after its `done` it goes on.

    Without a turn the device ends as it was. `calls` are a client's calls, instead of one unattended session.
    """

    name: str
    choose: Callable[[Any], list[Action]]
    applications: bool = False
    turn: str = ""
    calls: tuple[str, ...] = ()
    more: str = ""
    """TOML for the device's configuration."""
    beside: bool = False
    """Whether databases beside otaflow are written all the while: Prefect's server's, and an application's."""
    restarts: bool = False
    """Whether the machine really restarts, and the switch of the initial RAM disk chooses the slot."""
    in_prefect: bool = False
    """Whether it is told to a server of Prefect's, whose database is on the same disk."""
    postgres: bool = False
    """Whether the application's data is in PostgreSQL, whose files are on the same disk."""

    @property
    def light(self) -> type[LightWorld]:
        """The world of a story of applications."""
        return PostgresLight if self.postgres else LightWorld

    @property
    def of_slots(self) -> bool:
        """Whether slots are changed, and nothing else is tried."""
        others = self.applications or self.beside or self.restarts or self.in_prefect
        return not others and "transfer" not in self.calls


def light(world: LightWorld, sql: str = ADD_AUTHOR, **more: Any) -> Action:
    return world.action("1.1.0", world.build_light("1.1.0", before="1.0.0", sql=sql, **more))


REWRITE = """#!/bin/sh
# As most programs do it: nothing is flushed.
set -e
cd "$OTAFLOW_DATA/words"
for number in 0 1 2 3 4 5 6 7 8 9; do
    echo "migrated $number" >"word $number"
    echo "new $number" >"added $number"
done
rm first
"""


def migrated_by_a_program(world: LightWorld) -> list[Action]:
    words = world.data / "words"
    words.mkdir()
    (words / "first").write_text("goes")
    for number in range(10):
        (words / f"word {number}").write_text(f"word {number}")
    package = world.build_light("1.1.0", before="1.0.0", script=REWRITE)
    return [world.action("1.1.0", package)]


BY_PSQL = f"""#!/bin/sh
exec psql -X -q -v ON_ERROR_STOP=1 -c "{MIGRATE}" "$OTAFLOW_DATABASE_URL"
"""


def postgres_by_sql(world: PostgresLight, **more: Any) -> list[Action]:
    return [light(world, MIGRATE, **more)]


def postgres_by_a_program(world: PostgresLight) -> list[Action]:
    migrations = [{"database": world.database, "program": ["migrations/up"]}]
    return [world.action("1.1.0", world.build_light("1.1.0", before="1.0.0", script=BY_PSQL, migrations=migrations))]


def system_and_application(world: LightWorld) -> list[Action]:
    files = {"up.sql": "INSERT INTO notes (text) VALUES ('of the system');"}
    return [build_system(world, files=files, **OF_THE_SYSTEM), light(world)]


CLIENT = ("process", "activate", "verify", "finish")
STORIES = {
    story.name: story
    for story in (
        Story("good update", lambda world: [world.up()], turn="flip_slot"),
        Story("failing program", lambda world: [world.up(world.packages.make(program=FAILING))]),
        Story("sick update", lambda world: [world.up(world.packages.make(health=SICK))]),
        Story("previous slot", lambda world: [world.action("previous-slot")], turn="flip_slot"),
        Story("backup", lambda world: [world.action("backup")], turn="flip_slot"),
        Story("snapshot", lambda world: [world.action("snapshot")], turn="restore_main"),
        Story("update beside databases", lambda world: [world.up()], turn="flip_slot", beside=True),
        Story("update in Prefect", lambda world: [world.up()], turn="flip_slot", in_prefect=True),
        Story("transfer", lambda world: [], calls=("transfer",)),
        Story("restarting update", lambda world: [world.up()], turn="flip_slot", restarts=True),
        Story("restarting sick update", lambda world: [world.up(world.packages.make(health=SICK))], restarts=True),
        Story("client's update", lambda world: [world.up()], turn="$Success ProcessSwPackage", calls=CLIENT),
        Story("client's rollback", lambda world: [world.up()], calls=(*CLIENT[:3], "rollback", "finish")),
        Story("client's revert", lambda world: [world.up()], calls=("process", "revert")),
        Story(
            "clean-up",
            lambda world: [],
            calls=("retention",),
            more="[backups]\nretention_days = 0\nretention_reboots = 0\n",
        ),
        Story("application", lambda world: [light(world)], applications=True, turn="replace_files"),
        Story("migration by a program", migrated_by_a_program, applications=True, turn="replace_files"),
        Story("sick application", lambda world: [light(world, **UNWELL)], applications=True),
        Story("PostgreSQL", postgres_by_sql, applications=True, postgres=True, turn="replace_files"),
        Story("PostgreSQL by a program", postgres_by_a_program, applications=True, postgres=True, turn="replace_files"),
        Story("sick on PostgreSQL", lambda world: postgres_by_sql(world, **UNWELL), applications=True, postgres=True),
        Story("system and application", system_and_application, applications=True, turn="flip_slot"),
        Story(
            "removal",
            lambda world: [world.action("1.0.0", Path(), "remove")],
            applications=True,
            turn="remove_application",
        ),
    )
}


def plain(value: Any) -> Any:
    """As it comes back from JSON, so that what was written down compares with what is seen."""
    return json.loads(json.dumps(value, default=repr))


def open_world(story: Story, top: Path, kind: str) -> Any:
    """The story's world on the disk that is mounted at `top`."""
    folder = top / "w"
    if story.applications:
        world = story.light.__new__(story.light)
        world.folder, world.kind, world.config, world.port = folder, kind, folder / "otaflow.toml", 0
        return world
    return SystemWorld(folder, kind, Packages(top / "packages"))


def make(story: Story, top: Path, kind: str) -> Facts:
    """Make the device with its past, and its packages; the facts are what it is and what is to be done."""
    if story.applications:
        world: Any = story.light(top / "w", kind)
        world.install_light()
    else:
        world = open_world(story, top, kind)
        world.folder.mkdir()
        world.packages.folder.mkdir()
        world.make()
        world.configure(story.more + ('[boot]\nrestart = ["true"]\n' if story.restarts else ""))
    if story.in_prefect:
        with telling_prefect(world):
            pass  # its database is there
    facts: Facts = {"actions": [action.record() for action in story.choose(world)]}
    device = world.device()
    facts["running"] = device.boot.running()
    facts["records"] = len(device.history.read())
    facts["transitions"] = len(device.journal.session.transitions)
    facts["session"] = device.journal.session.id
    facts["contents"] = contents(world)
    facts["before"] = plain(survey(world))
    facts["running content"] = tree_digest(device.slots.path(device.boot.running()), times=True)
    facts["marks"] = []
    return facts


def contents(world: Any) -> dict[str, str]:
    """The digest of each labelled slot by its generation."""
    device, found = world.device(), {}
    for name in device.slots.names:
        with contextlib.suppress(OtaflowError):
            path = device.slots.path(name)
            found[read_label(path).generation] = tree_digest(path, times=True)
    return found


def survey(world: Any) -> dict[str, Any]:
    """All that must be as it was: the world's picture, and the name of everything that is there."""
    names = set()
    for folder, folders, files in os.walk(world.root):
        inside = str(Path(folder).relative_to(world.root))
        if inside in ("data", "nvm/services", "nvm/logs", f"slots/{REPOSITORY}"):
            folders.clear()
            continue
        names.update(
            f"{inside}/{name}"
            for name in (*folders, *files)
            if not _comes_and_goes(f"{inside}/{name}") and name != ".index.json.new"
        )
    picture = {name: value[:5] if name == "nvm/running.json" else value for name, value in world.picture().items()}
    return {name: value for name, value in picture.items() if not _is_cut_off(name)} | {"?names": sorted(names)}


def _is_cut_off(name: str) -> bool:
    """What a cut-off write left beside a file that is replaced: it has one name, and the next write takes it."""
    return name == ".index.json.new" or (name.startswith("nvm/.") and name.endswith(".new"))


def _comes_and_goes(name: str) -> bool:
    """Folders that are made when first needed, and what tells of the past."""
    return (name.startswith(("./nvm", "nvm/")) and "reserve" not in name) or name in (
        "slots/.kept",
        f"slots/{REPOSITORY}",
        "cache/extracted",
        "./dumps",
    )


def outcome(story: Story, world: Any) -> dict[str, Any]:
    """What the device is after the story, without what differs between two times that it is told."""
    if not story.applications:
        found = {name: value for name, value in world.outcome().items() if not _is_cut_off(name)}
        return {name: value[:5] if name == "nvm/running.json" else value for name, value in found.items()}
    return {
        name: value[:5] if isinstance(value, tuple) else value
        for name, value in world.picture().items()
        if not name.endswith((".otaflow-application.json", ".otaflow.json"))
    }


class Beside:
    """Two databases beside the device: Prefect's server's, as it is set up, and one whose every commit is promised."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / "beside" / name for name in ("prefect.db", "own.db")]
        self.connections: list[sqlite3.Connection] = []

    def open(self) -> None:
        self.paths[0].parent.mkdir(exist_ok=True)
        for path, synchronous in zip(self.paths, ("NORMAL", "FULL"), strict=True):
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute("CREATE TABLE IF NOT EXISTS states (id INTEGER PRIMARY KEY, name TEXT, more TEXT)")
            connection.commit()
            self.connections.append(connection)

    def write(self, name: str) -> int:
        """One more row in each; how many the second one has."""
        if not self.connections:
            self.open()
        for connection in self.connections:
            connection.execute("INSERT INTO states (name, more) VALUES (?, ?)", (name, name * 40))
            connection.commit()
        return int(self.connections[1].execute("SELECT count(*) FROM states").fetchone()[0])

    def look(self, promised: int) -> list[str]:
        """What is wrong with them when so many rows were promised."""
        wrong = []
        for path in self.paths:
            if not path.exists():
                rows = 0
            else:
                with contextlib.closing(sqlite3.connect(path)) as database:
                    if (said := database.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                        wrong.append(f"beside: {path.name} is damaged: {said}")
                    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
                    rows = database.execute("SELECT count(*) FROM states").fetchone()[0] if tables else 0
            if path.name == "own.db" and rows < promised:
                wrong.append(f"beside: {path.name} has {rows} of {promised} promised rows")
        return wrong


# --- telling ----------------------------------------------------------------------------------------------------------


class Marks:
    """Writes down outside what is reached, and what is promised there, with the length of the disk's log."""

    def __init__(self, world: Any, log: Path) -> None:
        self.world, self.log = world, log
        self.found: list[dict[str, Any]] = []
        self.contents: dict[str, str] = {}

        self.beside: Beside | None = None

    def note(self, name: str, **facts: Any) -> None:
        self.found.append({"name": name, "at": self.log.stat().st_size, **facts})

    def reach(self, name: str) -> None:
        """A fault point: after `.after` and `.done` the journal is durable as it is."""
        if name.endswith(("flip_slot.before", "restart.before")):
            self.contents |= contents(self.world)
        facts: Facts = {"rows": self.beside.write(name)} if self.beside else {}
        if name.endswith((".after", ".done")):
            journal = promised((self.world.root / "nvm/journal").read_bytes())
            facts["journal"] = [len(journal), zlib.crc32(journal)]
        self.note(name, **facts)


def promised(journal: bytes) -> bytes:
    """The journal without the last notes that are not made durable: what Prefect was told, which it can be asked."""
    lines = journal.splitlines(keepends=True)
    while lines and _is_not_promised(decode(lines[-1].rstrip(b"\n")) or {}):
        lines.pop()
    return b"".join(lines)


NOT_PROMISED = {"of", "run", "place", "shown", "told", "phase_run", "phase_ended", "event"}


def _is_not_promised(record: dict[str, Any]) -> bool:
    return record.get("kind") == "note" and record.keys() - {"kind"} <= NOT_PROMISED


def tell(story: Story, world: Any, facts: Facts, log: Path) -> Facts:
    """Do what the story says, on the disk whose log is `log`; returns the facts and the marks."""
    marks = Marks(world, log)
    quicken()
    start(world)
    if story.beside:
        marks.beside = Beside(world.folder)
    fault.trace(marks.reach)
    try:
        with contextlib.suppress(OtaflowError):
            if "transfer" in story.calls:
                tell_transfers(world.device(), marks.note)
            else:
                _do(story, world, facts, marks)
    finally:
        fault.trace(None)
    marks.note("?answered", resolutions=resolutions(world, facts))
    contents = facts["contents"] | marks.contents
    return {"marks": marks.found, "contents": contents, "after": plain(outcome(story, world))}


def tell_recovery(world: Any, facts: Facts, log: Path) -> Facts:
    """Start what a power cut left, on a disk whose log is `log`; `facts` hold its passed marks."""
    marks = Marks(world, log)
    quicken()
    fault.trace(marks.reach)
    try:
        start(world)
    finally:
        fault.trace(None)
    marks.note("?recovered")
    return {"marks": facts["marks"] + marks.found, "contents": facts["contents"] | marks.contents}


def _do(story: Story, world: Any, facts: Facts, marks: Marks) -> None:
    actions = [Action(**action) for action in facts["actions"]]
    restarted = False
    with telling_prefect(world) if story.in_prefect else world.ucm() as ucm:
        if not story.calls:
            for action in actions:
                ucm.process(action, unattended=True)
            try:
                ucm.go_on()
            except Restarting:
                restarted = True
        for call in story.calls:
            client_calls(ucm, call, actions)
            marks.note(f"?{call} answered", state=str(ucm.state))
    if restarted:
        start(world)


def start(world: Any) -> None:
    """Starts of the machine, as often as it restarts: the slot's choice, otaflow-recover.service, -resume.service."""
    for _ in range(STARTS):
        begin_boot()
        switch(world)
        recover(config=world.config, verify=False, json=True)
        with world.ucm() as ucm, contextlib.suppress(OtaflowError, Restarting):
            if ucm.journal.session.unattended:
                ucm.go_on()
        if world.device().journal.state in RESTING or world.device().config.boot.restart == "switch":
            return


def switch(world: Any) -> None:
    """What the initial RAM disk does; where no machine restarts, the applications follow the index file."""
    device = world.device()
    if device.config.boot.restart != "switch":
        index = device.config.path(device.config.boot.index)
        slots = device.slots.path(device.slots.names[0]).parent
        subprocess.run(["sh", SWITCH, index, slots, *device.slots.names], check=True)


@contextmanager
def telling_prefect(world: Any) -> Iterator[Any]:
    """The update manager with a server of Prefect's own, which is started here; `prefect_home` has its database."""
    os.environ.update(home_environment(prefect_home(world)))
    from otaflow.cli.common import working

    with working(world.device(), view=False) as (ucm, runs):
        assert runs, "Prefect's server did not come up"
        yield ucm


def prefect_home(world: Any) -> Path:
    """Where Prefect's database and results are, beside the device."""
    return Path(world.folder, "prefect")


def client_calls(ucm: Any, call: str, actions: list[Action]) -> None:
    """One call of a client."""
    if call == "retention":
        from otaflow.flows.retention import retention

        ucm.run(retention, {})
    elif call == "process":
        for action in actions:
            ucm.process(action)
    else:
        getattr(ucm, call)()


def resolutions(world: Any, facts: Facts) -> list[str]:
    """How the story's actions ended, as the history has it."""
    return [record["resolution"] for record in world.device().history.read()[facts["records"] :]]


def quicken() -> None:
    """No waiting between the tries of a step."""
    from otaflow.tasks.step import STEPS

    for step in STEPS.values():
        if step.name != "connect":
            retries = step.limits()[0]
            step.limits = lambda retries=retries: (retries, 0)  # type: ignore[misc]
