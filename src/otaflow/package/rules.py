"""Whether a package may be installed on this device: rules without I/O, values in, an error or nothing out.

* A system package goes on a system of the same name, and on a device whose model it names (or on any, naming none).
* A system's update is higher than what is installed (OldVersion), and applies to the versions it names
  (IncompatibleDelta). Taking it back (`down`) needs the very version that it brought.
* An application's update applies to exactly the version it names; a package that names none installs the application
  where it is not there, and must be higher than any version of it that was.
* What the packages of a session and what is installed beside them depend on and conflict with holds in the result.
"""

from collections.abc import Mapping, Sequence

from otaflow.errors import IncompatibleDelta, InvalidManifest, MissingDependencies, OldVersion
from otaflow.package.metadata import Metadata, Relation
from otaflow.package.versions import matches, newer, same

Standing = tuple[str, Sequence[Relation], Sequence[Relation]]
"""What is installed: its name, its dependencies, its conflicts."""


def check_installable(metadata: Metadata, *, name: str, version: str, model: str) -> None:
    """Refuse the system package `metadata` on a system called `name` at `version`, on a device of `model`."""
    what = f"{metadata.name} {metadata.version}"
    if metadata.kind != "system":
        raise InvalidManifest(f"cannot install {what}: it is an {metadata.kind}, not a system")
    if metadata.name != name:
        raise InvalidManifest(f"cannot install {what}: this device runs {name}", hint="publish it for that system")
    _check_model(metadata, model)
    if not newer(metadata.version, version):
        raise OldVersion(
            f"cannot install {what}: {version} is installed and an update must be higher",
            hint="`otaflow rollback` brings an older version back",
        )
    if metadata.applies_to.versions and not matches(version, metadata.applies_to.versions):
        raise IncompatibleDelta(
            f"cannot install {what}: it applies to {metadata.applies_to.versions}, and {version} is installed",
            hint="install the updates between the two first",
        )


def check_removable(metadata: Metadata, *, name: str, version: str) -> None:
    """Refuse to take `metadata` back from a system that it did not bring to its present version."""
    if metadata.kind != "system" or (metadata.name, metadata.version) != (name, version):
        raise IncompatibleDelta(
            f"cannot uninstall {metadata.name} {metadata.version}: {name} {version} is installed",
            hint="an update is uninstalled with the package that brought the present version",
        )


def check_application(
    metadata: Metadata, *, installed: str | None, highest: str | None, model: str, system: str = ""
) -> None:
    """Refuse the application package `metadata` where `installed` is there (None: it is not), on a device of `model`.

    `highest` is the highest version of it that ever was there; `system` the name of the device's system, which no
    application may have.
    """
    what = f"{metadata.name} {metadata.version}"
    if metadata.kind != "application":
        raise InvalidManifest(f"cannot install {what} as an application: it is a {metadata.kind} package")
    if metadata.name == system:
        raise InvalidManifest(f"cannot install {what}: the system of this device has that name", hint="name it anew")
    _check_model(metadata, model)
    if metadata.base is None:
        _check_new(what, metadata, installed, highest)
    elif installed is None:
        raise IncompatibleDelta(
            f"cannot install {what}: it updates {metadata.base}, and {metadata.name} is not installed",
            hint="install it first: a package that applies to no version brings it",
        )
    elif not same(metadata.base, installed):
        raise IncompatibleDelta(
            f"cannot install {what}: it applies to exactly {metadata.base}, and {installed} is installed",
            hint="install the updates between the two first" if newer(metadata.base, installed) else "",
        )


def check_clusters(packages: Sequence[Metadata], clusters: Mapping[str, str], standing: Sequence[Standing]) -> None:
    """Check that what `packages` and `standing` depend on and conflict with holds in `clusters` (name: version).

    `clusters` are all that will be there, `packages` those of the session in their order, `standing` what is installed
    now; of each name, only what will be there counts. Raises MissingDependencies.
    """
    demands = {name: (name, dependencies, conflicts) for name, dependencies, conflicts in standing}
    for package in packages:
        what = f"{package.name} {package.version}"
        demands[package.name] = (what, package.dependencies, package.conflicts)
    for name, (what, dependencies, conflicts) in demands.items():
        if name in clusters:
            _check_relations(what, dependencies, conflicts, clusters)


def check_dependencies(metadata: Metadata, clusters: Mapping[str, str]) -> None:
    """Check dependencies and conflicts of one package over the software clusters (name: version) as they would be."""
    what = f"{metadata.name} {metadata.version}"
    _check_relations(what, metadata.dependencies, metadata.conflicts, clusters)


def _check_model(metadata: Metadata, model: str) -> None:
    models = metadata.applies_to.models
    if models and model not in models:
        raise InvalidManifest(
            f"cannot install {metadata.name} {metadata.version}: it is made for {', '.join(models)}, "
            f"this device is a {model}",
            hint="`applies_to.models` in the package's metadata names the models",
        )


def _check_new(what: str, metadata: Metadata, installed: str | None, highest: str | None) -> None:
    """Refuse a package that installs anew where the application is there, or was there in a version as high."""
    if installed is not None and newer(metadata.version, installed):
        raise IncompatibleDelta(
            f"cannot install {what}: {metadata.name} {installed} is there, and this package installs it anew",
            hint=f"its update from {installed} keeps the data's way back; or remove {metadata.name} first",
        )
    if installed is not None:
        raise OldVersion(
            f"cannot install {what}: {installed} is installed", hint="an update of it names the version it applies to"
        )
    if highest is not None and not newer(metadata.version, highest):
        raise OldVersion(
            f"cannot install {what}: {highest} was installed, and its data may be of that version",
            hint="install a version that is higher",
        )


def _check_relations(
    what: str, dependencies: Sequence[Relation], conflicts: Sequence[Relation], clusters: Mapping[str, str]
) -> None:
    for need in dependencies:
        if need.name not in clusters or not matches(clusters[need.name], need.versions):
            raise MissingDependencies(
                f"cannot activate: {what} depends on {need.name} {need.versions}, "
                f"and {clusters.get(need.name, 'none')} would be there",
                hint=f"install {need.name} {need.versions} with it, or keep it",
            )
    for foe in conflicts:
        if foe.name in clusters and matches(clusters[foe.name], foe.versions):
            raise MissingDependencies(
                f"cannot activate: {what} conflicts with {foe.name} {foe.versions}, "
                f"and {clusters[foe.name]} would be there",
                hint=f"remove or update {foe.name} first",
            )
