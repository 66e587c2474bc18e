"""`migrations` in the metadata: which data changes with an update, and what changes it."""

from collections.abc import Iterator
from itertools import combinations
from typing import Annotated, Literal

from pydantic import Field, model_validator

from otaflow.package.section import Command, Name, Place, Section

Kind = Literal["sqlite", "postgresql", "files"]


class DatabaseSpec(Section):
    """`database`: a SQLite file or a folder of files below an application's data, or a database of the device's server.

    `path` is inside the application's data; `name` is that of `[databases.NAME]` in the device's configuration.
    """

    kind: Kind
    path: Place | None = None
    name: Name | None = None
    application: Name | None = None

    @model_validator(mode="after")
    def _check_place(self) -> "DatabaseSpec":
        if self.kind == "postgresql":
            if self.name is None or self.path is not None:
                raise ValueError("a database of kind postgresql has a `name` and no `path`")
            if self.application is not None:
                raise ValueError("a database of kind postgresql is the device's: it has no `application`")
        elif self.path is None or self.name is not None:
            raise ValueError(f"a database of kind {self.kind} has a `path` and no `name`")
        return self

    def owner(self, package: str) -> str:
        """The application whose data it is, in a package called `package`; empty for the device's server."""
        return "" if self.kind == "postgresql" else self.application or package

    def title(self, package: str) -> str:
        """What it is, for a person, in a package called `package`."""
        if self.kind == "postgresql":
            return f"the database {self.name}"
        return f"the {'database' if self.kind == 'sqlite' else 'folder'} {self.path} of {self.owner(package)}"


class Alembic(Section):
    """`alembic`: the folder with alembic's revisions (and its `env.py`), and the revision to go to."""

    folder: Place
    revision: Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@+-]*$")] = "head"


class Migration(Section):
    """An entry of `migrations`: a database, and exactly one of `sql`, `alembic` and `program`, which changes it.

    Their paths are inside `files/` of an application's package, `assets/` of a system's.
    """

    database: DatabaseSpec
    sql: Annotated[list[Place], Field(min_length=1, max_length=256)] | None = None
    alembic: Alembic | None = None
    program: Command | None = None
    timeout_seconds: float = Field(default=600, gt=0, le=86400)
    irreversible: bool = False

    @model_validator(mode="after")
    def _check_way(self) -> "Migration":
        ways = [way for way in (self.sql, self.alembic, self.program) if way is not None]
        if len(ways) != 1:
            raise ValueError("a migration has exactly one of `sql`, `alembic` and `program`")
        if self.database.kind == "files" and self.program is None:
            raise ValueError("files are migrated by a `program`")
        return self

    def needs(self) -> Iterator[tuple[str, Literal["file", "folder", "program"]]]:
        """What of the package it uses, and what that must be."""
        for script in self.sql or []:
            yield script, "file"
        if self.alembic:
            yield self.alembic.folder, "folder"
        if self.program:
            yield self.program[0], "program"


def check_databases(migrations: list[Migration], *, package: str, kind: Literal["system", "application"]) -> None:
    """ValueError where a database belongs to nobody, or one of them is inside of another one."""
    for migration in migrations:
        if kind == "system" and migration.database.kind != "postgresql" and migration.database.application is None:
            raise ValueError("a system package's database names the `application` whose data it is")
    known: dict[tuple[str, str], Kind] = {}
    for one in (migration.database for migration in migrations):
        place = (one.owner(package), one.path or "")
        if one.path and known.setdefault(place, one.kind) != one.kind:
            raise ValueError(f"{one.path} of {place[0]} is two kinds of database")
    for (owner, path), (other, inner) in combinations(sorted(known), 2):
        if owner == other and inner.startswith(f"{path}/"):
            raise ValueError(f"{inner} of {owner} is inside of {path}, which is brought back as a whole")
