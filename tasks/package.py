"""Steps 1 and 2 of the update processes: the package is extracted and its metadata checked."""

import os
from pathlib import Path

from otaflow import progress
from otaflow.errors import InsufficientMemory, OperationNotPermitted, PackageInconsistent
from otaflow.history import ACTIVATED
from otaflow.package import rules
from otaflow.package.extract import extract
from otaflow.package.metadata import Metadata, parse
from otaflow.package.versions import read_version
from otaflow.platform.device import device
from otaflow.platform.labels import read_label
from otaflow.platform.scratch import make_scratch, remove_scratch
from otaflow.tasks.step import remember, step, stop_if_asked


@step("extract package", retries=2)
def extract_package(package: str) -> str:
    """Unpack `package` into a fresh tree in the cache; returns its path. Errors: those of `otaflow.package.extract`."""
    memory = remember(folder=str(_extraction_folder()))
    scratch = Path(memory["folder"])
    remove_scratch(scratch)
    if not Path(package).is_file():
        raise PackageInconsistent(f"cannot use the package {package}: there is no such file", hint="fetch it again")

    def show(done: int) -> None:
        stop_if_asked()
        progress.tell("bytes", "extract package", done=done)

    make_scratch(scratch, subvolume=device().config.slots.kind == "btrfs")
    folder = scratch / "package"
    extract(Path(package), folder, progress=show)
    return str(folder)


@extract_package.undo
def remove_extracted(folder: str) -> None:
    """Remove the temporary tree."""
    remove_scratch(Path(folder))


@step("check metadata", retries=2)
def check_metadata(folder: str, direction: str, base: str, accepted: bool) -> None:
    """Refuse a package that does not fit the system in slot `base`, or has no room on it. Changes nothing."""
    metadata = metadata_of(folder)
    system = read_label(device().slots.path(base))
    if direction == "down":
        rules.check_removable(metadata, name=system.name, version=system.version)
        return
    model = device().config.device.model
    rules.check_installable(metadata, name=system.name, version=system.version, model=model)
    _check_migrations(metadata, accepted)
    _check_room(metadata, device().slots.path(device().boot.running()))


@step("check application", retries=2)
def check_application(folder: str, accepted: bool) -> None:
    """Refuse a package that does not fit the application as it is installed, or has no room. Changes nothing."""
    here = device()
    metadata = metadata_of(folder)
    present = here.applications.find(metadata.name)
    rules.check_application(
        metadata,
        installed=present.version if present else None,
        highest=highest_version(metadata.name),
        model=here.config.device.model,
        system=here.running_system().name,
    )
    _check_migrations(metadata, accepted)
    _check_room(metadata, here.root)


@step("check removal", retries=2)
def check_removal(name: str) -> None:
    """Refuse to remove what is not installed. Changes nothing."""
    device().applications.require(name)


def highest_version(name: str) -> str | None:
    """The highest version of the application that was ever installed here."""
    versions = [
        str(record["version"])
        for record in device().history.read()
        if record["name"] == name and record["resolution"] == ACTIVATED
    ]
    return max(versions, key=read_version, default=None)


def metadata_of(folder: str) -> Metadata:
    """The metadata of the package extracted into `folder`."""
    return parse((Path(folder) / "metadata").read_bytes())


def _check_migrations(metadata: Metadata, accepted: bool) -> None:
    """The databases are known, and what cannot be brought back is agreed to."""
    from otaflow.tasks.migration import list_databases, open_database

    for spec in list_databases(metadata.name, [one.model_dump() for one in metadata.migrations]):
        open_database(device(), spec)
    if metadata.irreversible and not accepted:
        raise OperationNotPermitted(
            f"cannot install {metadata.name} {metadata.version}: its migration of data cannot be brought back",
            hint="agree to it: answer the question of the poll, or `otaflow update --accept-irreversible`",
        )


def _check_room(metadata: Metadata, place: Path) -> None:
    """At most all of its files are new; a copy that shares nothing takes the size of what is copied as well."""
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    if free < metadata.size.installed_bytes:
        raise InsufficientMemory(
            f"cannot install {metadata.name} {metadata.version}: it needs {metadata.size.installed_bytes} bytes "
            f"and {free} are free",
            hint="`otaflow clean-up` removes backups whose time is over",
        )


def _extraction_folder() -> Path:
    session = device().journal.session
    return device().cache / "extracted" / f"{session.id}-{session.current}"
