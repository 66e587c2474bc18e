"""platform/migrating.py: alembic's revisions and a package's own program: done, failed, hanging, stopped."""

import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from otaflow.errors import MigrationFailed, ProcessSwPackageCancelled
from otaflow.platform.migrating import run_alembic, run_migration_program
from otaflow.platform.sandbox import enforced

# alembic's own, shortened: it reads the URL and the settings of the logging from the configuration
TEMPLATE = """
from logging.config import fileConfig
from alembic import context
from sqlalchemy import engine_from_config, pool
config = context.config
if config.config_file_name is not None:
    fileConfig(config.config_file_name)
connectable = engine_from_config(config.get_section(config.config_ini_section, {}), prefix="sqlalchemy.")
with connectable.connect() as connection:
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()
"""
BY_ENVIRONMENT = """
import os
from alembic import context
from sqlalchemy import create_engine
import beside
with create_engine(os.environ["OTAFLOW_DATABASE_URL"]).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
REVISION = """
from alembic import op
import os, subprocess, sys, time
import sqlalchemy as sa
revision = {number!r}
down_revision = {before!r}
def upgrade():
    op.create_table("t{number}", sa.Column("id", sa.Integer, primary_key=True))
    {do}
"""
OWN = """
[alembic]
script_location = {location}
prepend_sys_path = .
file_template = %%(rev)s_%%(slug)s
sqlalchemy.url = driver://user:pass@localhost/dbname
[loggers]
keys = root
[handlers]
keys =
[formatters]
keys =
[logger_root]
handlers =
"""


class Package:
    """A folder of revisions, and a database that they change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "pack age 5%"
        self.database = folder / "data 7%" / "notes.db"
        self.database.parent.mkdir()
        self.heard: list[str] = []

    def make(self, scripts: str = ".", env: str = TEMPLATE, do: str = "pass") -> None:
        scripts_folder = self.folder / scripts
        (scripts_folder / "versions").mkdir(parents=True)
        (scripts_folder / "env.py").write_text(env)
        (scripts_folder / "beside.py").touch()
        for number, before, what in (("1", None, "pass"), ("2", "1", do)):
            text = REVISION.format(number=number, before=before, do=what)
            (scripts_folder / "versions" / f"{number}.py").write_text(text)

    def migrate(self, revision: str = "head", **options: Any) -> None:
        arguments: dict[str, Any] = {
            "timeout": 120,
            "output": self.heard.append,
            "cancelled": None,
            "cwd": self.folder,
            "env": {},
        }
        run_alembic(self.folder, revision, f"sqlite:///{self.database}", **{**arguments, **options})

    def tables(self) -> set[str]:
        with closing(sqlite3.connect(self.database)) as opened:
            return {row[0] for row in opened.execute("SELECT name FROM sqlite_schema")} & {"t1", "t2"}


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path)


@pytest.mark.parametrize("env", [TEMPLATE, BY_ENVIRONMENT], ids=["configuration", "environment"])
def test_a_folder_of_scripts(package: Package, env: str) -> None:
    package.make(env=env)
    before = sorted(package.folder.rglob("*"))
    package.migrate("1")
    assert package.tables() == {"t1"}
    package.migrate()
    assert package.tables() == {"t1", "t2"}
    assert sorted(package.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("location", "scripts"), [("scripts", "scripts"), ("%(here)s/scripts", "scripts"), (".", ".")], ids=str
)
def test_a_folder_with_a_configuration_of_its_own(package: Package, location: str, scripts: str) -> None:
    package.make(scripts)
    (package.folder / "alembic.ini").write_text(OWN.format(location=location))
    package.migrate(cwd=package.database.parent)
    assert package.tables() == {"t1", "t2"}


@pytest.mark.parametrize(
    ("do", "why"),
    [
        ("op.execute('INSERT INTO nowhere VALUES (1)')", "no such table: nowhere"),
        ("raise ValueError('not this one')", "ValueError: not this one"),
        ("os.abort()", "exit code"),
        ("sys.exit(3)", "exit code 3"),
    ],
    ids=["sql", "python", "signal", "exit"],
)
def test_revisions_that_fail(package: Package, do: str, why: str) -> None:
    package.make(do=do)
    with pytest.raises(MigrationFailed, match=why):
        package.migrate()


@pytest.mark.parametrize(
    ("revision", "why"),
    [("9", "Can't locate revision"), ("--help", "no name of a revision"), ("a b", "no name"), ("", "no name")],
    ids=repr,
)
def test_revisions_that_are_none(package: Package, revision: str, why: str) -> None:
    package.make()
    with pytest.raises(MigrationFailed, match=why):
        package.migrate(revision)


def test_a_folder_without_scripts(package: Package) -> None:
    package.folder.mkdir()
    with pytest.raises(MigrationFailed, match=r"neither env\.py nor alembic\.ini"):
        package.migrate()


def test_revisions_that_hang_end_with_all_that_they_started(package: Package) -> None:
    package.make(
        do="subprocess.Popen(['sh', '-c', 'sleep 1000; :', os.getcwd()], start_new_session=True)\n    time.sleep(999)"
    )
    with pytest.raises(MigrationFailed, match="did not end within 5 s"):
        package.migrate(timeout=5)
    wait_for(lambda: not alive(package.folder))


def alive(marker: Path) -> list[int]:
    return [one.pid for one in psutil.process_iter(["cmdline"]) if str(marker) in (one.info["cmdline"] or [])]


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- the package's own program --------------------------------------------------------------------------------------


def run(folder: Path, script: str, heard: list[str] | None = None, **options: Any) -> None:
    arguments: dict[str, Any] = {
        "cwd": folder,
        "env": {"OTAFLOW_DATABASE_URL": "postgresql://app:s%25cret@/notes"},
        "timeout": 60,
        "output": None if heard is None else heard.append,
        "cancelled": None,
        "writable": [],
        "protected": [],
    }
    run_migration_program(["sh", "-c", script], **{**arguments, **options})


def test_a_program(tmp_path: Path) -> None:
    heard: list[str] = []
    run(tmp_path, 'pwd; echo "$OTAFLOW_DATABASE_URL"; echo "it is s%cret"', heard)
    assert heard == [str(tmp_path), "postgresql://app:***@/notes", "it is ***"]


def test_a_program_that_fails(tmp_path: Path) -> None:
    with pytest.raises(MigrationFailed, match=r"exit code 4: no: \*\*\*$"):
        run(tmp_path, "echo first; echo 'no: s%cret' >&2; exit 4")


def test_a_program_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(MigrationFailed, match=r"did not end within 0\.5 s"):
        run(tmp_path, f"setsid sh -c 'sleep 1000; :' {tmp_path} & sleep 1000", timeout=0.5)
    wait_for(lambda: not alive(tmp_path))


def test_a_program_that_is_cancelled(tmp_path: Path) -> None:
    heard: list[str] = []
    with pytest.raises(ProcessSwPackageCancelled):
        run(tmp_path, "echo on; sleep 1000", heard, cancelled=lambda: bool(heard))


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MigrationFailed, match="there is no such program"):
        run_migration_program(
            [tmp_path / "migrate"],
            cwd=tmp_path,
            env={},
            timeout=9,
            output=None,
            cancelled=None,
            writable=[],
            protected=[],
        )


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MigrationFailed):
        run(tmp_path / "none", "true")


@pytest.mark.skipif(not enforced(), reason="protection needs root and the right to mount")
def test_what_is_protected_cannot_be_written(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    script = f"{sys.executable} -c \"open('data/x', 'w')\" && echo yes > closed"
    with pytest.raises(MigrationFailed, match="closed"):
        run(tmp_path, script, protected=[tmp_path], writable=[data])
    assert (data / "x").exists()
