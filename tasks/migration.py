"""Data that changes with an update: kept before, migrated, and brought back.

The boxes *need migration*, *backup migration data*, *post update migration* and *revert migration data* of
spec/s16-package-update.md. When they begin nothing of the application runs, and nobody starts it (applications.py).
"""

import shutil
from pathlib import Path
from typing import Any

from otaflow import progress
from otaflow.errors import ConfigError, DatabaseFailed, InsufficientMemory, MigrationFailed, OtaflowError
from otaflow.files import fsync_folder
from otaflow.platform.device import Device, device
from otaflow.platform.durable import sync_device
from otaflow.platform.mirror import mirror
from otaflow.platform.processes import find_processes
from otaflow.platform.protocols import Database
from otaflow.tasks.question import question
from otaflow.tasks.step import remember, step

Migrations = list[dict[str, Any]]
"""Entries of `migrations` of a package's metadata, as plain data."""
ABSENT = ".absent"
CONFIGURATION = "etc-sys"


@question("need migration")
def needs_migration(migrations: Migrations) -> bool:
    """Whether data changes with the update."""
    return bool(migrations)


@step("backup migration data", retries=2, key="name", once=True)
def back_up_migration_data(*, name: str, package: str, migrations: Migrations) -> None:
    """Dump each database that the `package` migrates, and read the dump; keep `/etc/sys` as well.

    `name` is the part's id. What is done is not done again: after a power cut the schema may have moved. Raises
    DatabaseFailed, InsufficientMemory.
    """
    here = device()
    memory = remember(folder=_dumps_of(name))
    folder = Path(memory["folder"])
    here.dumps.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    here.trees.remove(folder)
    here.trees.create(folder)
    databases = list_databases(package, migrations)
    _refuse_strangers(here, databases)
    _check_room(folder, [open_database(here, spec) for spec in databases])
    for number, spec in enumerate(databases):
        _dump(open_database(here, spec), folder / str(number), describe_database(spec))
    here.trees.freeze(here.configuration, folder / CONFIGURATION)
    here.trees.sync(folder)
    fsync_folder(here.dumps)


@back_up_migration_data.undo
def remove_dumps(folder: str) -> None:
    """Remove the dumps."""
    device().trees.remove(Path(folder))


@step("post update migration (db)", when="early", key="name", once=True)
def migrate(*, name: str, package: str, migrations: Migrations, folder: str, closed: list[str]) -> None:
    """Run the package's migrations in their order; `folder` is what their paths are relative to.

    `closed` are the applications that nothing may run of. It begins with the data as it was kept: what a power cut
    left half migrated is not migrated further. Raises MigrationFailed.
    """
    here = device()
    begun = here.journal.find_open("migrate", name) is not None
    databases = list_databases(package, migrations)
    memory = remember(name=name, databases=databases, dumps=_dumps_of(name), closed=closed)
    if begun:
        restore_data(**memory)
    for number, migration in enumerate(migrations, 1):
        progress.tell("note", f"{number} of {len(migrations)}: {describe_database(migration['database'])}")
        _migrate(package, migration, Path(folder))
    for spec in databases:  # a program seldom flushes what it writes, here or elsewhere
        open_database(here, spec).sync()
    sync_device(here)


@migrate.undo_called("revert migration data")
def restore_data(name: str, databases: list[dict[str, Any]], dumps: str, closed: list[str]) -> None:
    """Make the databases, and `/etc/sys`, exactly what they were when they were kept. Raises DatabaseFailed.

    Nothing of the new version may run: it would migrate them forward again, or write what nobody can read.
    """
    here = device()
    for application in closed:
        if running := find_processes([here.applications.path(application)]):
            raise DatabaseFailed(
                f"cannot bring back the data of {name}: {running[0].command} ({running[0].pid}) still runs",
                hint="end it, and try again",
            )
    for number, spec in enumerate(databases):
        dump = Path(dumps) / str(number)
        open_database(here, spec).restore(None if dump.with_name(dump.name + ABSENT).exists() else dump)
    mirror(Path(dumps) / CONFIGURATION, here.configuration)


@question("migration changes made")
def are_migrations_made() -> bool:
    """Whether data may have changed with the update that is taken back."""
    return any(intent.step == "migrate" for intent in device().journal.open_intents())


@step("remove dumps", retries=2)
def forget_dumps(session: str) -> None:
    """Give up the data that was kept: the update is committed. What a cut-off removal left goes too (`.NAME.gone`)."""
    for folder in device().dumps.glob(f"*{session}-*"):
        device().trees.remove(folder)


def list_databases(name: str, migrations: Migrations) -> list[dict[str, Any]]:
    """Every database that the migrations of the package `name` change, once, as plain data with its application."""
    found = []
    for migration in migrations:
        spec = _spec_of(name, migration)
        if spec not in found:
            found.append(spec)
    return found


def open_database(here: Device, spec: dict[str, Any]) -> Database:
    """The database of a `database` in a package's metadata. ConfigError when this device has none of the name."""
    if spec["kind"] == "postgresql":
        from otaflow.platform.postgresql import PostgresDatabase

        settings = here.config.databases.get(spec["name"])
        if settings is None:
            raise ConfigError(
                f"cannot use the database {spec['name']!r}: the configuration has no [databases.{spec['name']}]",
                hint="add it, with its `url`",
            )
        password = here.config.path(settings.password_file) if settings.password_file else None
        return PostgresDatabase(settings.url, password, here.config.services.timeout_seconds)
    # The folder is ours, what is in it is the application's user's: nothing in it is followed elsewhere.
    root = here.applications.data(spec["application"])
    path = root / spec["path"]
    if spec["kind"] == "sqlite":
        from otaflow.platform.sqlite import SqliteDatabase

        return SqliteDatabase(path, root)
    from otaflow.platform.data_folder import DataFolder

    return DataFolder(path, here.trees, root)


def describe_database(spec: dict[str, Any]) -> str:
    """For people."""
    return f"{spec['kind']} {spec.get('path') or spec.get('name')}"


# --- inside -----------------------------------------------------------------------------------------------------------


def _spec_of(package: str, migration: dict[str, Any]) -> dict[str, Any]:
    """The database of a migration, with the application that owns it."""
    spec: dict[str, Any] = migration["database"]
    return {**spec, "application": spec.get("application") or package}


def _dumps_of(name: str) -> str:
    """Where the data that the part `name` of this session migrates is kept."""
    here = device()
    return str(here.dumps / f"{here.journal.session.id}-{name}")


def _dump(database: Database, target: Path, what: str) -> None:
    if not database.exists():
        target.with_name(target.name + ABSENT).touch()
        return
    database.dump(target)
    database.check(target)
    progress.tell("note", f"kept {what}")


def _refuse_strangers(here: Device, databases: list[dict[str, Any]]) -> None:
    """Somebody else who writes to the data, an administrator say, would go on in the old file after a restore."""
    folders = {here.applications.data(spec["application"]) for spec in databases if spec.get("path")}
    for one in find_processes(sorted(folders)):
        raise DatabaseFailed(
            f"cannot migrate: {one.command} ({one.pid}), which is no program of the application's, {one.why}",
            hint="end it, and try again",
        )


def _check_room(folder: Path, databases: list[Database]) -> None:
    wanted = sum(database.size() for database in databases if database.exists())
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise InsufficientMemory(
            f"cannot keep the data before its migration: it takes {wanted} bytes and {free} are free",
            hint="`otaflow clean-up` removes backups whose time is over",
        )


def _migrate(name: str, migration: dict[str, Any], folder: Path) -> None:
    from otaflow.platform import migrating  # a device without migrations never needs it

    here = device()
    spec = _spec_of(name, migration)
    database = open_database(here, spec)
    timeout, cancelled = float(migration["timeout_seconds"]), here.stop_work.is_set
    environment = _environment(here, spec, database)
    writable = [here.applications.data(spec["application"]), here.configuration]
    protected = [here.root, here.slots.path(here.boot.running()), here.backups.folder, here.nvm]
    try:
        if migration.get("sql"):
            for script in migration["sql"]:
                database.execute(folder / script, timeout, cancelled)
        elif migration.get("alembic"):
            alembic = migration["alembic"]
            migrating.run_alembic(
                folder / alembic["folder"],
                alembic["revision"],
                database.url,
                timeout=timeout,
                output=_show,
                cancelled=cancelled,
                cwd=folder,
                env=environment,
                writable=writable,
                protected=protected,
            )
        else:
            program, *arguments = migration["program"]
            migrating.run_migration_program(
                [folder / program, *arguments],
                cwd=folder,
                env=environment,
                timeout=timeout,
                output=_show,
                cancelled=cancelled,
                writable=writable,
                protected=protected,
            )
    except OtaflowError:
        raise
    except OSError as error:
        raise MigrationFailed(f"cannot migrate the data of {name}: {error}") from error


def _environment(here: Device, spec: dict[str, Any], database: Database) -> dict[str, str]:
    """What a package's program and its alembic scripts are told."""
    environment = {
        "OTAFLOW_DATABASE_URL": database.url,
        "OTAFLOW_APPLICATION": str(here.applications.path(spec["application"])),
        "OTAFLOW_DATA": str(here.applications.data(spec["application"])),
        "OTAFLOW_ETC": str(here.configuration),
    }
    if spec.get("path"):
        environment["OTAFLOW_DATABASE"] = str(here.applications.data(spec["application"]) / spec["path"])
    return environment


def _show(line: str) -> None:
    progress.tell("output", "post update migration", line=line)
