"""The transferred packages as the update manager sees them: which is accepted, what it is to do, what becomes of it."""

from pathlib import Path

from otaflow import errors
from otaflow.action import Action
from otaflow.actions import find_installation, find_uninstallation
from otaflow.journal import Session
from otaflow.package.extract import read_metadata
from otaflow.package.rules import check_removable
from otaflow.package.versions import newer
from otaflow.platform.device import Device
from otaflow.repo.client import open_repository
from otaflow.transfer.cached import PackageState
from otaflow.transfer.store import Accepted, Transfers

IN_USE = (PackageState.PROCESSING, PackageState.PROCESSED)


def accept(device: Device, path: Path) -> Accepted:
    """Whether a transferred file may be processed: signed, understood, and not older than what is installed."""
    require_signature(device, path)
    metadata = read_metadata(path)
    installed = device.running_system().version
    if metadata.kind == "application":
        installed = device.applications.versions().get(metadata.name, "")
    elif metadata.name != device.running_system().name:
        installed = ""  # refused by name when it is processed
    if installed and not newer(metadata.version, installed):
        raise errors.OldVersion(
            f"cannot accept {metadata.name} {metadata.version}: {installed} is installed",
            hint="an update must be higher than what is installed",
        )
    return Accepted(metadata.name, metadata.version)


def accept_removal(device: Device, path: Path) -> Accepted:
    """Whether a transferred file is the package that is installed: signed, and of the very version that runs."""
    require_signature(device, path)
    metadata = read_metadata(path)
    installed = device.running_system()
    check_removable(metadata, name=installed.name, version=installed.version)
    return Accepted(metadata.name, metadata.version)


def require_signature(device: Device, path: Path) -> None:
    """Refuse a file that is no signed target of a repository that the device trusts. Raises AuthenticationFailed."""
    try:
        with open_repository(device.config) as repository:
            target = repository.trusted(path)
    except (errors.Refused, errors.ConfigError) as error:
        raise errors.AuthenticationFailed(f"cannot accept the package: {error}", hint=error.hint) from error
    if target is None:
        raise errors.AuthenticationFailed(
            "cannot accept the package: it is not signed by a repository that this device trusts",
            hint="`otaflow check` fetches the newest signatures",
        )


def find_action(device: Device, transfers: Transfers, id: str, *, accepted: bool = False) -> Action:
    """What ProcessSwPackage is to do; a package that is not there is refused in Processing, as the table has it."""
    refusal = {"refused": f"cannot process {id}: there is no such package, `GetSwPackages` lists them"}
    try:
        package = transfers.get(id)
    except errors.InvalidTransferId:
        return Action(kind="up", name="unknown", version="unknown", facts=refusal)
    if package.state != PackageState.TRANSFERRED:
        refusal = {"refused": f"cannot process {id}: its transfer is {package.state}"}
        return Action(kind="up", name=package.name or "unknown", version=package.version or "unknown", facts=refusal)
    path = transfers.path(id)
    metadata = read_metadata(path)
    return find_installation(
        device, metadata.kind, metadata.name, metadata.version, metadata.update_number, str(path), accepted=accepted
    )


def find_uninstall(device: Device, transfers: Transfers, id: str) -> Action:
    """What Uninstall is to do. Raises InvalidTransferId, OperationNotPermitted, NothingToRollback."""
    package = transfers.get(id)
    if package.state != PackageState.TRANSFERRED:
        raise errors.OperationNotPermitted(f"cannot uninstall {id}: its transfer is {package.state}")
    return find_uninstallation(device, package.name, package.version, str(transfers.path(id)))


def release(transfers: Transfers, session: Session, *, but: frozenset[str] = frozenset()) -> None:
    """A session is over: its packages are there to be processed again, or are gone where they are installed now.

    Those of an unattended one are gone in any case: whoever brought them may be gone too, and nobody would delete them.

    `but`: the files of those that are processed in a session that goes on.
    """
    served = {session.actions[place].package for place in session.processed}
    own = {action.package for action in session.actions}
    for package in transfers.packages():
        if package.state not in IN_USE:
            continue
        path = str(transfers.path(package.id))
        transfers.mark(package.id, PackageState.PROCESSED if path in but else PackageState.TRANSFERRED)
        if path not in but and ((session.kept and path in served) or (session.unattended and path in own)):
            transfers.delete(package.id)
