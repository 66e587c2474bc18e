"""Letting go: what a finished session leaves behind, and what retention ends (step 11 of the update processes)."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from otaflow.errors import CommandFailed, OtaflowError
from otaflow.history import ACTIVATED
from otaflow.package.versions import newer
from otaflow.platform.backups import Entry
from otaflow.platform.device import device
from otaflow.platform.durable import sync_device
from otaflow.platform.scratch import remove_scratch
from otaflow.tasks.applications import release_gone
from otaflow.tasks.backups import remove_full, remove_snapshot
from otaflow.tasks.configuration import KEPT_MAIN
from otaflow.tasks.program import release_reserve
from otaflow.tasks.step import step
from otaflow.ucm.states import State

KEPT_LOGS = 200
CACHE_DAYS = 30
PASSED_DAYS = 1
"""A package that is installed, or older than that, stays so long in the cache: somebody may be at it."""


@step("remove temporary files", retries=2)
def remove_temporary(session: str) -> None:
    """Remove what the session extracted into the cache, and give its reserves back.

    It is the last step of a session: what was removed stays so when the power goes after the end.
    """
    release_reserve()
    for folder in (device().cache / "extracted").glob(f"{session}-*"):
        with suppress(OSError, CommandFailed):  # the next cleaning tries again
            remove_scratch(folder)
    sync_device(device())


@step("remove package from cache", retries=2)
def remove_cached(package: str) -> None:
    """Remove a package that is installed, if it is in the cache; a file that somebody handed in is theirs."""
    path = Path(package)
    if path.parent == device().cache / "packages":
        path.unlink(missing_ok=True)


@step("remove leavings", retries=2)
def remove_leavings() -> None:
    """Remove what a former session's cleaning could not. In Idle only: a session that goes on needs what it keeps."""
    here = device()
    if here.journal.state is not State.IDLE:
        return
    release_reserve()
    for name in here.slots.kept_names():
        here.slots.forget(name)
    for aside in here.main.parent.glob(f"{KEPT_MAIN}*"):
        here.trees.remove(aside)
    for mark in here.main.glob(f"{KEPT_MAIN}*"):
        mark.unlink()
    for tree in here.applications.leavings():
        release_gone(tree)
    for tree in [*here.applications.leavings(), *here.dumps.glob("*")]:
        here.trees.remove(tree)
    for left in here.backups.folder.glob("*/.*"):  # a cut-off removal's `.main.gone`, a cut-off archive
        here.trees.remove(left)
    for folder in (here.cache / "extracted").glob("*"):
        remove_scratch(folder)


@step("remove old logs and packages", retries=1)
def remove_old_files() -> None:
    """Keep the newest processing logs only, and no package in the cache that is of no use any more.

    That is what nobody installed for a month, and what is installed: a command that was ended by the restart of its
    own update cannot remove what it downloaded for the agent.
    """
    logs = sorted(device().logs.glob("*.log"), key=_age)
    for log in logs[:-KEPT_LOGS]:
        log.unlink(missing_ok=True)
    versions = _installed_versions()
    for file in (device().cache / "packages").glob("*"):
        age = datetime.now(UTC) - datetime.fromtimestamp(_age(file), UTC)
        if age > timedelta(days=PASSED_DAYS if _is_passed(file, versions) else CACHE_DAYS):
            file.unlink(missing_ok=True)


def _installed_versions() -> dict[str, str]:
    """Of the applications and the system, by name."""
    versions = device().applications.versions()
    with suppress(OtaflowError):
        system = device().running_system()
        versions |= {system.name: system.version}
    return versions


def _is_passed(file: Path, versions: dict[str, str]) -> bool:
    """Whether `NAME-VERSION.SUFFIX` is a package of what is installed in this version or a newer one."""
    for name, version in versions.items():
        if file.stem.startswith(f"{name}-"):
            with suppress(OtaflowError, ValueError):  # of another package, whose name begins alike
                return not newer(file.stem.removeprefix(f"{name}-"), version)
    return False


def _age(path: Path) -> float:
    return path.stat().st_mtime


@step("find expired backups", retries=1)
def find_expired() -> list[str]:
    """The ids of the entries whose full backup and snapshot may go. Changes nothing.

    Both limits must be over: the days, and the restarts made since the update's own. The last version that was
    verified good is never given up.
    """
    here = device()
    keep = last_verified_version()
    return [
        entry.id
        for entry in here.backups
        if entry.version != keep
        and is_over(entry, datetime.now(UTC), here.boots.count())
        and (here.backups.path(entry.id, "full.tar").exists() or here.backups.path(entry.id, "main").exists())
    ]


def is_over(entry: Entry, at: datetime, boots: int) -> bool:
    """Whether both limits of retention are over for `entry`. The restart that the update itself made is not counted."""
    limits = device().config.backups
    age = at - datetime.fromisoformat(entry.time)
    return age >= timedelta(days=limits.retention_days) and boots - entry.boots - 1 >= limits.retention_reboots


def last_verified_version() -> str:
    """The system's version that last proved itself healthy: of the history, else the one it was made with."""
    system = device().running_system()
    activated = [
        record["version"]
        for record in device().history.read()
        if record["resolution"] == ACTIVATED and record["name"] == system.name
    ]
    return str(activated[-1]) if activated else system.version


@step("remove full backup", retries=2)
def end_full_backup(entry: str) -> None:
    """Remove the full backup of an entry; its incremental part stays."""
    remove_full(entry)


@step("remove main snapshot", retries=2)
def end_snapshot(entry: str) -> None:
    """Remove the main partition's snapshot of an entry."""
    remove_snapshot(entry)
