"""An application that keeps its data in PostgreSQL: a real server, a web service, clients that write meanwhile.

Each update adds a column, by SQL or by alembic's revisions; the program of a version works on its own schema only.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_world import AppWorld, reach
from postgres import Cluster, find_programs, run_cluster
from update_world import differences

from otaflow import fault
from otaflow.action import Action
from otaflow.errors import HealthCheckFailed, OtaflowError
from otaflow.platform.device import using
from otaflow.recovery import recover

DATABASE = "the notes"
PROGRAM = """#!/usr/bin/env python3
import json, os, socket, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SCHEMA = @SCHEMA@
DATA = Path(sys.argv[1])
ENVIRONMENT = {**os.environ, **json.loads((DATA / "database").read_text())}


def ask(statement, **values):
    settings = [f"--set={key}={value}" for key, value in values.items()]
    command = ["psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", *settings]
    return subprocess.run(command, env=ENVIRONMENT, input=statement, capture_output=True, text=True, check=True).stdout


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        notes = ask("SELECT text FROM notes ORDER BY id").splitlines()
        self.answer(200, {"schema": SCHEMA, "notes": notes})

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        try:
            ask("INSERT INTO notes (text) VALUES (:'text')", text=text)
        except subprocess.CalledProcessError as error:
            self.answer(500, error.stderr)
        else:
            self.answer(201, {})

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


if not ask("SELECT to_regclass('about')").strip():
    ask("CREATE TABLE notes (id serial PRIMARY KEY, text text); CREATE TABLE about AS SELECT 1 AS schema")
if ask("SELECT schema FROM about").strip() != str(SCHEMA):
    sys.exit(f"schema {SCHEMA} is known, the database has another one")
@LAST@
server = ThreadingHTTPServer(("127.0.0.1", int((DATA / "port").read_text())), Handler)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
    ready.connect(os.environ["NOTIFY_SOCKET"].replace("@", chr(0), 1))
    ready.send(b"READY=1")
server.serve_forever()
"""
UNIT = """[Service]
Type=notify
ExecStart=@PYTHON@ @TREE@/notes @DATA@
Restart=on-failure
"""
CHANGE = "ALTER TABLE notes ADD COLUMN c{schema} text DEFAULT 'new'; UPDATE about SET schema = {schema};"
ENV = """
import asyncio, os
from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import create_async_engine


def migrate(connection):
    context.configure(connection=connection, transaction_per_migration=True, version_table="revisions")
    with context.begin_transaction():
        context.run_migrations()


async def main():
    url = os.environ["OTAFLOW_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://", 1)
    engine = create_async_engine(url, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(main())
"""
REVISION = """
from alembic import op
revision = {number!r}
down_revision = {before!r}
def upgrade():
    for statement in {statements!r}:
        op.execute(statement)
"""


class PostgresWorld(AppWorld):
    """A device whose application's database is one of `cluster`'s; each version is one schema further."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.cluster, self.user = cluster, f"app {folder.name}"
        self.password = cluster.make_user(self.user)
        self.database = f"{DATABASE} {folder.name}"
        cluster.sql(f'CREATE DATABASE "{self.database}" OWNER "{self.user}"')
        url = cluster.url(self.user, self.database)
        super().__init__(folder, more=f'[databases.notes]\nurl = "{url}"\npassword_file = "password"\n')
        self.config.write_text(self.config.read_text().replace("settle_seconds = 0.5", "settle_seconds = 0.1"))
        (self.root / "password").write_text(self.password)
        self.data.mkdir(parents=True)
        (self.data / "port").write_text(str(self.port))
        environment = {"PGHOST": str(cluster.folder), "PGUSER": self.user, "PGDATABASE": self.database}
        (self.data / "database").write_text(json.dumps({**environment, "PGPASSWORD": self.password}))
        self.install(self.update(by=""))

    @property
    def schema(self) -> int:
        """The schema of the version that is installed; 0 where there is none."""
        return int(self.device().applications.versions().get("notes", "1.0.0").split(".")[1])

    def update(self, *, by: str = "sql", fails: bool = False, last: str = "") -> Action:
        """To the next version; `by` is how data is migrated, `last` a line of the new program."""
        schema = self.schema + 1
        source = Path(tempfile.mkdtemp(dir=self.folder))
        files = source / "files"
        (files / "services").mkdir(parents=True)
        (files / "notes").write_text(PROGRAM.replace("@SCHEMA@", str(schema)).replace("@LAST@", last))
        unit = UNIT.replace("@PYTHON@", sys.executable).replace("@TREE@", str(self.tree))
        (files / "services/notes.service").write_text(unit.replace("@DATA@", str(self.data)))
        version = f"1.{schema}.0"
        values: dict[str, Any] = {
            **{"format": 1, "name": "notes", "kind": "application", "version": version, "update_number": schema},
            "services": {"restart": ["notes.service"]},
        }
        if schema > 1:
            values["applies_to"] = {"versions": f"1.{schema - 1}.0"}
        if by:
            how = self.write_sql(files, schema, fails) if by == "sql" else self.write_alembic(files, schema, fails)
            values["migrations"] = [{"database": {"kind": "postgresql", "name": "notes"}, **how}]
        (source / "metadata").write_text(json.dumps(values))
        return self.action(version, self.finish(source))

    def write_sql(self, files: Path, schema: int, fails: bool) -> dict[str, Any]:
        """Two scripts, each all or nothing; where it fails, the second one does."""
        (files / "1.sql").write_text(CHANGE.format(schema=schema))
        (files / "2.sql").write_text("INSERT INTO nowhere VALUES (1);" if fails else "SELECT 1;")
        return {"sql": ["1.sql", "2.sql"]}

    def write_alembic(self, files: Path, schema: int, fails: bool) -> dict[str, Any]:
        """Two revisions, likewise."""
        folder = files / f"migrations-{schema}"
        (folder / "versions").mkdir(parents=True)
        table = f"revisions_{schema}"
        (folder / "env.py").write_text(ENV.replace('"revisions"', f'"{table}"'))
        statements = CHANGE.format(schema=schema).split("; ")
        second = ["INSERT INTO nowhere VALUES (1)"] if fails else ["SELECT 1"]
        for number, before, does in (("1", None, statements), ("2", "1", second)):
            text = REVISION.format(number=number, before=before, statements=does)
            (folder / "versions" / f"{number}.py").write_text(text)
        return {"alembic": {"folder": folder.name, "revision": "head"}}

    def rows(self) -> dict[str, Any]:
        """All that is in the database, as a dump tells it, and the databases that are there."""
        said = self.cluster.call("pg_dump", "-U", "admin", "--inserts", self.database).stdout.splitlines()
        names = self.cluster.sql("SELECT datname FROM pg_database ORDER BY datname").splitlines()
        mine = [name for name in names if name.startswith(self.database)]
        return {"dump": [line for line in said if not line.startswith("\\")], "databases": mine}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresWorld]:
    """A device whose service answers; each test leaves it at some version that does."""
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with run_cluster() as cluster:
        world = PostgresWorld(tmp_path_factory.mktemp("postgres") / "w", cluster)
        try:
            for text in ("first", "it's; a \\ %"):
                assert world.post(text) == 201
            yield world
        finally:
            world.close()


# --- while clients write ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["sql", "alembic"])
def test_no_acknowledged_write_is_lost_going_forward(world: PostgresWorld, by: str) -> None:
    schema, already = world.schema, world.get()["notes"]
    with world.writing() as kept:
        reach(kept, 10)
        world.install(world.update(by=by))
        reach(kept, 10)
    answer = world.get()
    assert answer["schema"] == world.schema == schema + 1
    assert answer["notes"][: len(already)] == already
    left = answer["notes"][len(already) :]
    assert [note for note in kept if note not in left] == []


SICK = {
    "sql fails": ({"by": "sql", "fails": True}, "nowhere"),
    "alembic fails": ({"by": "alembic", "fails": True}, "nowhere"),
    "it does not come up": ({"by": "sql", "last": "sys.exit('no luck')"}, "no luck"),
    "it writes, and ends": ({"by": "alembic", "last": "ask('DELETE FROM notes'); sys.exit('no luck')"}, "no luck"),
}


@pytest.mark.parametrize("case", SICK)
def test_going_back_the_rows_are_those_of_the_moment_it_was_stopped(world: PostgresWorld, case: str) -> None:
    how, why = SICK[case]
    before = world.picture()
    with pytest.raises(HealthCheckFailed, match=why):
        world.install(world.update(**how))
    assert differences(before, world.picture()) == {}
    already = world.get()["notes"]
    with world.writing() as kept:
        reach(kept, 10)
        with pytest.raises(HealthCheckFailed, match=why):
            world.install(world.update(**how))
        reach(kept, 10)
    left = world.get()["notes"][len(already) :]
    assert [note for note in kept if note not in left] == []
    assert why in world.last()["why"]


def test_what_the_new_version_wrote_goes_when_it_is_rolled_back(world: PostgresWorld) -> None:
    before = world.picture()
    with world.ucm() as ucm:
        ucm.process(world.update())
        ucm.activate()
        ucm.verify()
        assert world.post("of the new version") == 201
        ucm.rollback()
        ucm.finish()
    assert differences(before, world.picture()) == {}


# --- every moment -----------------------------------------------------------------------------------------------------

STEPS = ["back_up_migration_data.before", "back_up_migration_data.acted", "migrate.before", "migrate.acted"]
KILLED = [*STEPS, "back_up_migration_data.done", "migrate.done"]
UNDONE = ["undo.migrate.before", "undo.migrate.acted", "undo.migrate.done"]


@pytest.fixture
def armed(quick: None) -> Iterator[Any]:
    yield fault.arm
    fault.arm("")


@pytest.mark.parametrize("point", STEPS)
def test_a_step_that_fails_leaves_the_rows_as_they_were(world: PostgresWorld, point: str, armed: Any) -> None:
    before = world.picture()
    action = world.update()
    armed(point, "fail")
    with pytest.raises(OtaflowError, match="a fault was asked for"):
        world.install(action)
    assert differences(before, world.picture()) == {}


@pytest.mark.parametrize("point", KILLED)
def test_after_a_kill_it_goes_on(world: PostgresWorld, point: str, zygote: Any) -> None:
    schema, notes = world.schema, world.get()["notes"]
    assert zygote.run(world, "install", fault=f"{point}:kill", action=world.update(by="sql")) == -9
    assert zygote.run(world, "recover") == 0
    assert world.get() == {"schema": schema + 1, "notes": notes}
    assert world.picture()["?dumps"] == []
    assert world.rows()["databases"] == [world.database]


@pytest.mark.parametrize("point", UNDONE)
def test_a_kill_while_it_is_reverted(world: PostgresWorld, point: str, zygote: Any) -> None:
    before = world.picture()
    action = world.update(by="sql", last="sys.exit('no luck')")
    assert zygote.run(world, "install", fault=f"{point}:kill", action=action) == -9
    assert zygote.run(world, "recover") == 0
    assert differences(before, world.picture()) == {}


@pytest.mark.parametrize("point", UNDONE[:2])
def test_a_revert_that_fails_is_tried_again(world: PostgresWorld, point: str, armed: Any) -> None:
    before = world.picture()
    action = world.update(by="sql", last="sys.exit('no luck')")
    armed(point, "fail")
    with pytest.raises(OtaflowError):
        world.install(action)
    armed("")
    for _ in range(2):
        with world.ucm() as ucm, contextlib.suppress(OtaflowError):
            recover(ucm)
    assert differences(before, world.picture()) == {}


def test_a_server_that_is_away_when_it_is_reverted(world: PostgresWorld, zygote: Any) -> None:
    """As at a boot, where its server comes later: what the recovery could not do then, the next one does."""
    before = world.picture()
    action = world.update(by="sql", last="sys.exit('no luck')")
    assert zygote.run(world, "install", fault="undo.migrate.before:kill", action=action) == -9
    text = world.config.read_text()
    world.config.write_text(text.replace(world.cluster.folder.name, "otaflow-away"))
    assert zygote.run(world, "recover") == 1
    with using(world.device()) as device:
        assert device.journal.state == "RollingBackFailed"
        assert device.journal.needs_recovery
        assert not device.services.state("notes.service").active
    world.config.write_text(text)
    assert zygote.run(world, "recover") == 0
    assert differences(before, world.picture()) == {}
