"""What the UCM is asked to do beside updates, found on the device as it is: ways back, and taking a package back."""

from typing import Literal, get_args

from otaflow import history
from otaflow.action import Action, Kind
from otaflow.errors import NothingToRollback, OperationNotPermitted, OtaflowError
from otaflow.platform.backups import Entry
from otaflow.platform.device import Device
from otaflow.platform.labels import Label, read_label
from otaflow.ucm.states import State

Way = Literal["previous-slot", "snapshot", "backup"]
WAYS: tuple[Way, ...] = get_args(Way)


def find_way_back(device: Device, to: Way, backup: str | None = None) -> Action:
    """The action that goes back; `backup` names the entry of a snapshot or a backup, the newest one without it.

    Raises NothingToRollback where the device has not what is asked for.
    """
    system = device.running_system()
    facts = {"from_version": system.version}
    match to:
        case "snapshot":
            entry = _find_snapshot(device, backup)
            here = (system.name, system.version, system.update_number)
            return Action("snapshot", *here, backup=entry.id, facts=facts)
        case "backup":
            entry = _find_backup(device, backup)
            there = (entry.name, entry.version, entry.update_number)
            return Action("backup", *there, backup=entry.id, facts=facts)
    if backup:
        raise OperationNotPermitted(
            "cannot go back to the previous slot and to a backup", hint="name the backup, or leave it out"
        )
    label = _read_previous_slot(device, system)
    return Action("previous-slot", label.name, label.version, label.update_number, facts=facts)


def find_installation(
    device: Device,
    kind: str,
    name: str,
    version: str,
    update_number: int,
    package: str,
    source: str = "",
    *,
    accepted: bool = False,
) -> Action:
    """The action that installs a package of `kind` (system, application), with what it replaces.

    `accepted`: the user agreed to a migration of data that cannot be brought back.
    """
    if kind == "application":
        present = device.applications.versions().get(name, "")
        action: Kind = "update" if present else "install"
    else:
        action, present = "up", _system_before(device)
    facts = {"from_version": present} | ({"accepted": True} if accepted else {})
    return Action(action, name, version, update_number, package=package, source=source, facts=facts)


def find_removal(device: Device, name: str) -> Action:
    """The action that removes the application `name`. Raises NothingToRevert where there is none."""
    device.applications.require(name)
    version = device.applications.versions().get(name, "unknown")  # a damaged label keeps nobody from removing it
    return Action("remove", name, version, facts={"from_version": version})


def _system_before(device: Device) -> str:
    """What the next system package replaces: the version that the session's last one brings, else the one that runs."""
    session = device.journal.session
    systems = [session.actions[place] for place in session.processed if session.actions[place].of_system]
    if device.journal.state is not State.IDLE and systems:
        return systems[-1].version
    return device.running_system().version


def find_uninstallation(device: Device, name: str, version: str, package: str, source: str = "") -> Action:
    """The action that takes the installed `package` back. Raises NothingToRollback: what it replaced is unknown."""
    before, number = _version_before(device, version)
    facts = {"from_version": device.running_system().version}
    return Action("down", name, before, number, package=package, source=source, facts=facts)


def _find_snapshot(device: Device, backup: str | None) -> Entry:
    entries = [entry for entry in device.backups if device.backups.path(entry.id, "main").exists()]
    entries = [entry for entry in entries if backup in (None, entry.id)]
    if not entries:
        raise NothingToRollback(
            "cannot roll back the main partition: there is no snapshot" + (f" of {backup}" if backup else ""),
            hint="snapshots go a week or two restarts after their update; `otaflow backups` shows what is left",
        )
    return max(entries, key=lambda entry: entry.time)


def _find_backup(device: Device, backup: str | None) -> Entry:
    entries = [entry for entry in device.backups if backup in (None, entry.id)]
    if not entries:
        raise NothingToRollback(
            f"cannot restore the backup {backup}: there is none of that id" if backup else "cannot restore: no backups",
            hint="`otaflow backups` lists them",
        )
    return max(entries, key=lambda entry: entry.time)


def _read_previous_slot(device: Device, system: Label) -> Label:
    try:
        label = read_label(device.slots.path(device.spare()))
    except OtaflowError as error:
        raise NothingToRollback(f"cannot roll back to the previous slot: {error}", hint=error.hint) from error
    if label.generation == system.generation:
        raise NothingToRollback(
            f"cannot roll back to the previous slot: it holds {label.version} too, as the device was made",
            hint="`otaflow backups` lists what can be restored",
        )
    return label


def _version_before(device: Device, version: str) -> tuple[str, int]:
    """The version and update number that an installed package replaced, of the backup made then."""
    for record in reversed(device.history.read()):
        if record["version"] == version and record["resolution"] == history.ACTIVATED and record.get("backup"):
            entry = device.backups.get(record["backup"])
            return entry.version, entry.update_number
    raise NothingToRollback(
        f"cannot uninstall {version}: the history does not say what it replaced",
        hint="`otaflow rollback` or `otaflow rollback --backup ID` goes back without the package",
    )
