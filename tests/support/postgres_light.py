"""The light world with its data in PostgreSQL, whose server's files are on the same disk and which starts with it.

The server answers before a commit is on the disk (`synchronous_commit = off`), as some are set up for speed.
"""

import shlex
import subprocess
from pathlib import Path
from typing import Any, ClassVar

from app_world import LightWorld
from postgres import ADMIN, create_cluster, find_programs, start_server

from otaflow.platform.device import Device

NAME = "notes"
SMALL = ("-A", "trust", "--wal-segsize=1", "--no-instructions", "--encoding=UTF8", "--locale=C")
SETTINGS = {
    "synchronous_commit": "off",
    "wal_writer_delay": "10s",  # so long a commit may not be on the disk
    "dynamic_shared_memory_type": "mmap",  # nothing stays behind of a server that is cut off
    "shared_buffers": "8MB",
    "max_connections": 20,
    "autovacuum": "off",
    "max_parallel_workers": 0,
}
MAKE = """
CREATE TABLE notes (id serial PRIMARY KEY, text text);
INSERT INTO notes (text) VALUES ('first'), ('second');
CREATE TABLE about AS SELECT 1 AS schema;
"""
MIGRATE = "ALTER TABLE notes ADD COLUMN author text; UPDATE notes SET author = 'x'; UPDATE about SET schema = 2;"
_started: set[Path] = set()
"""The servers of this process's machine."""


class PostgresLight(LightWorld):
    """LightWorld, and beside its folder the folder `pg` with the server's files."""

    database: ClassVar[dict[str, str]] = {"kind": "postgresql", "name": NAME}

    def __init__(self, folder: Path, kind: str = "directories") -> None:
        url = f"postgresql://{ADMIN}@/{NAME}?host={folder.parent / 'pg'}"
        super().__init__(folder, kind, f'[databases.{NAME}]\nurl = "{url}"\n')

    @property
    def server(self) -> Path:
        return self.folder.parent / "pg"

    @property
    def programs(self) -> Path:
        found = find_programs()
        assert found is not None, "PostgreSQL is not installed"
        return found

    @property
    def psql(self) -> list[str]:
        return [str(self.programs / "psql"), "-X", "-q", "-At", "-h", str(self.server), "-U", ADMIN]

    @property
    def schema(self) -> str:  # type: ignore[override]
        return shlex.join([*self.psql, "-c", "SELECT schema FROM about", NAME])

    def make_database(self) -> None:
        self.server.mkdir()
        create_cluster(self.server, self.programs, *SMALL)
        self.start()
        for database, statement in (("postgres", f"CREATE DATABASE {NAME}"), (NAME, MAKE), (NAME, "CHECKPOINT")):
            said = self.ask(database, statement)
            assert not said, said

    def start(self) -> None:
        """Start the server, once on each machine."""
        if self.server not in _started and self.server.exists():
            start_server(self.server, self.programs, **SETTINGS)
            _started.add(self.server)

    def device(self) -> Device:
        self.start()
        return super().device()

    def ask(self, database: str, statement: str) -> list[str]:
        """The rows, or what the server says instead."""
        done = subprocess.run(
            [*self.psql, "-v", "ON_ERROR_STOP=1", "-c", statement, database],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        return done.stdout.splitlines()

    def rows(self) -> dict[str, Any]:
        """Both tables, the columns of one, and the databases that are there."""
        columns = "SELECT column_name FROM information_schema.columns WHERE table_name = 'notes' ORDER BY 1"
        return {
            "databases": self.ask("postgres", "SELECT datname FROM pg_database ORDER BY 1"),
            **{name: self.ask(NAME, f"TABLE {name}") for name in ("notes", "about")},
            "columns": self.ask(NAME, columns),
        }
