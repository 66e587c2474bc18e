"""`otaflow check`, `update`, `rollback`, `recover`, `resume` and `clean-up`: what changes a device."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from otaflow import history
from otaflow.action import Action
from otaflow.cli.common import ConfigFile, Json, Source, load_device, print_json, working
from otaflow.errors import HealthCheckFailed, Locked, NothingToRollback, Offline, OtaflowError
from otaflow.platform.device import Device

if TYPE_CHECKING:
    from otaflow.repo.choice import Target
    from otaflow.service import Ucm

Flag = Parameter(negative=())


def check(*, config: ConfigFile = None, source: Source = None, json: Json = False) -> None:
    """Ask the repository what is new for this device. Nothing is installed."""
    from otaflow.flows.check import check as look

    device = load_device(config, source)
    with working(device, view=not json) as (ucm, _):
        targets: list[Target] = ucm.run(look, {"source": device.config.update.use})
        installed = device.running_system()
    if json:
        print_json({"installed": installed.version, "new": [_describe(target) for target in targets]})
    elif not targets:
        print(f"{installed.name} {installed.version} is up to date")
    for target in targets if not json else []:
        priority = ", priority" if target.priority else ""
        print(f"{target.name} {target.version} ({target.length} bytes{priority}) {target.description}".rstrip())


def update(
    file: Path | None = None,
    /,
    *,
    config: ConfigFile = None,
    source: Source = None,
    down: Annotated[bool, Parameter(negative=(), help="Uninstall: run the package's program with `down`.")] = False,
    json: Json = False,
) -> None:
    """Install what is new, one package after the other; each proves itself healthy or is taken back.

    Parameters
    ----------
    file
        A package (.nsu) that the repository signs, or a local repository package (.nsr), instead of the server.
    """
    device = load_device(config, source)
    installed: list[str] = []
    asked = file.name if file else "check"
    with (
        _reporting(device, json, installed),
        _recorded(device, asked, of=Locked),
        working(device, view=not json) as (ucm, _),
    ):
        _go_on(ucm)
        for action in _find_actions(ucm, device, file, down):
            ucm.install(action)
            installed.append(action.version)
    if not json:
        print(f"installed {', '.join(installed)}" if installed else "nothing to install: the device is up to date")


def rollback(
    *,
    config: ConfigFile = None,
    snapshot: Annotated[bool, Parameter(negative=(), help="Bring back the main partition from its snapshot.")] = False,
    backup: Annotated[str | None, Parameter(help="Bring back /sys and /etc/sys from this backup.")] = None,
    json: Json = False,
) -> None:
    """Go back: to the previous slot at once, to a snapshot of the main partition, or to any backup.

    `--snapshot --backup ID` takes the snapshot of that backup; the newest one otherwise. `otaflow backups` lists them.
    What is gone back to must prove itself healthy too, else the present system stays.
    """
    device = load_device(config)
    done: list[str] = []
    with _reporting(device, json, done), working(device, view=not json) as (ucm, _):
        if ucm.state in ("Verifying", "Activated") and not snapshot and not backup:
            ucm.rollback()
            ucm.finish()
        else:
            _go_on(ucm)
            ucm.install(_way_back(device, snapshot=snapshot, backup=backup))
        done.append(device.running_system().version)
    if not json:
        print(f"{device.config.device.name} runs {device.running_system().version}")


def recover(
    *,
    config: ConfigFile = None,
    verify: Annotated[bool, Parameter(help="Verify a system that is on trial; else that is left to `resume`.")] = True,
    json: Json = False,
) -> None:
    """Finish or take back what a power cut or a kill interrupted. Run at boot, before anything else of otaflow.

    It needs neither network nor Prefect. With nothing to do it changes nothing.
    """
    from otaflow.platform.device import using
    from otaflow.service import Ucm

    device = load_device(config)
    device.boots.note_boot()
    with using(device):
        idle = not Ucm(device).needs_recovery()
    outcome = "" if idle else _recover(device, verify=verify, view=not json)
    device = load_device(config)
    if json:
        print_json({"recovered": not idle, "outcome": outcome, "ucm_state": str(device.journal.state)})
    elif idle:
        print(f"nothing to recover: {device.journal.state}")
    else:
        print(f"recovered: {device.journal.state}" + (f"; {outcome}" if outcome else ""))


def resume(*, config: ConfigFile = None, json: Json = False) -> None:
    """After the restart: verify the system that is on trial, and keep it or roll it back."""
    device = load_device(config)
    done: list[str] = []
    with _reporting(device, json, done), working(device, view=not json) as (ucm, _):
        _go_on(ucm)
        done.append(device.running_system().version)
    if not json:
        print(f"{device.config.device.name} runs {device.running_system().version}, {device.journal.state}")


def clean_up(*, config: ConfigFile = None, json: Json = False) -> None:
    """Remove full backups and main snapshots whose time is over (a week or two more restarts, whichever is later).

    Incremental backups stay for ever; the last version that was verified good is never given up.
    """
    from otaflow.flows.retention import retention

    device = load_device(config)
    with working(device, view=not json) as (ucm, _):
        removed = ucm.run(retention, {})
    if json:
        print_json({"removed": removed})
    else:
        print(f"removed the full backups and snapshots of {', '.join(removed)}" if removed else "nothing to remove")


# --- inside -----------------------------------------------------------------------------------------------------------


def _find_actions(ucm: "Ucm", device: Device, file: Path | None, down: bool) -> Iterator[Action]:
    """What is to be installed, each fetched only when the one before it is in place."""
    from otaflow.flows.check import accept_file, check, fetch

    source = device.config.update.use
    if file and file.suffix != ".nsr":
        with _recorded(device, file.name):
            target = ucm.run(accept_file, {"source": source, "package": str(file.absolute())})
        yield _action(device, target, str(file.absolute()), down)
        return
    archive = str(file.absolute()) if file else ""
    with _recorded(device, file.name if file else "check"):
        targets = ucm.run(check, {"source": source, "archive": archive})
    for target in targets:
        with _recorded(device, target.name, target.version):
            package = ucm.run(fetch, {"source": source, "target": target, "archive": archive})
        yield _action(device, target, package, down=False)


def _action(device: Device, target: "Target", package: str, down: bool) -> Action:
    system = device.running_system()
    version, number = target.version, target.update_number
    if down:
        version, number = _version_before(device, target.version)
    return Action(
        kind="down" if down else "up",
        name=target.name,
        version=version,
        update_number=number,
        package=package,
        source=device.config.update.use,
        digest=target.hashes.get("sha256", ""),
        facts={"from_version": system.version},
    )


def _version_before(device: Device, version: str) -> tuple[str, int]:
    """The version and update number that an installed package replaced, of the backup made then."""
    for record in reversed(device.history.read()):
        if record["version"] == version and record["resolution"] == history.ACTIVATED and record.get("backup"):
            entry = device.backups.get(record["backup"])
            return entry.version, entry.update_number
    raise OtaflowError(
        f"cannot uninstall {version}: the history does not say what it replaced",
        hint="`otaflow rollback` or `otaflow rollback --backup ID` goes back without the package",
    )


def _way_back(device: Device, *, snapshot: bool, backup: str | None) -> Action:
    system = device.running_system()
    facts = {"from_version": system.version}
    if snapshot:
        with_main = [entry for entry in device.backups if device.backups.path(entry.id, "main").exists()]
        entries = [entry for entry in with_main if backup in (None, entry.id)]
        if not entries:
            raise NothingToRollback(
                "cannot roll back the main partition: there is no snapshot" + (f" of {backup}" if backup else ""),
                hint="snapshots go a week or two restarts after their update; `otaflow backups` shows what is left",
            )
        return Action(
            kind="snapshot",
            name=system.name,
            version=system.version,
            update_number=system.update_number,
            backup=entries[-1].id,
            facts=facts,
        )
    if backup:
        entry = device.backups.get(backup)
        number = entry.update_number
        return Action("backup", entry.name, entry.version, number, backup=entry.id, facts=facts)
    from otaflow.platform.labels import read_label

    try:
        label = read_label(device.slots.path(device.spare()))
    except OtaflowError as error:
        raise NothingToRollback(f"cannot roll back to the previous slot: {error}", hint=error.hint) from error
    if label.generation == system.generation:
        raise NothingToRollback(
            f"cannot roll back to the previous slot: it holds {label.version} too, as the device was made",
            hint="`otaflow backups` lists what can be restored",
        )
    return Action("previous-slot", label.name, label.version, label.update_number, facts=facts)


def _go_on(ucm: "Ucm") -> None:
    """Carry on what a restart interrupted, before anything new begins."""
    if ucm.state != "Idle":
        try:
            ucm.go_on()
        except HealthCheckFailed as error:
            print(f"otaflow: the update on trial was rolled back: {error}", file=sys.stderr)


def _recover(device: Device, *, verify: bool, view: bool) -> str:
    """Recover without Prefect; returns what a person should know beside the state."""
    from otaflow.service import Restarting

    with working(device, prefect=False, view=view) as (ucm, _):
        try:
            ucm.recover(verifies=verify)
        except HealthCheckFailed as error:
            return f"rolled back: {error}"
        except Restarting:
            return "the machine is restarting"
    return ""


@contextmanager
def _reporting(device: Device, json: bool, done: list[str]) -> Iterator[None]:
    """Say how it ended: as JSON where asked for, also of a failure; a restart is no failure."""
    from otaflow.cli.report import read_status
    from otaflow.service import Restarting

    answer: dict[str, Any] = {"done": done, "error": None, "restarting": False}
    try:
        try:
            yield
        except Restarting:
            answer["restarting"] = True
            print("the machine is restarting; the update goes on at its start", file=sys.stderr)
        except OtaflowError as error:
            answer["error"] = {"name": type(error).__name__, "message": str(error), "hint": error.hint}
            raise
    finally:
        if json:
            print_json(answer | {"status": read_status(Device(device.config))})


@contextmanager
def _recorded(device: Device, name: str, version: str = "", *, of: type[OtaflowError] = OtaflowError) -> Iterator[None]:
    """Put what is refused before a session begins into the history. To be offline is no event of a device's life."""
    try:
        yield
    except Offline:
        raise
    except of as error:
        device.history.add(
            name=name,
            version=version or "unknown",
            action="Update",
            resolution=history.FAILED,
            error=type(error).__name__,
            why=str(error),
        )
        raise


def _describe(target: "Target") -> dict[str, Any]:
    return {
        "name": target.name,
        "version": target.version,
        "update_number": target.update_number,
        "bytes": target.length,
        "priority": target.priority,
        "description": target.description,
    }
