"""Whether a package may be installed on this system: rules without I/O, values in, an error or nothing out.

* A system package goes on a system of the same name, and on a device whose model it names (or on any, naming none).
* An update is higher than what is installed (OldVersion), and applies to the versions it names (IncompatibleDelta).
* Taking a package back (`down`) needs the very version that it brought.
* What this otaflow cannot do yet is refused, never ignored: application packages, migrations, services.
"""

from otaflow.errors import IncompatibleDelta, InvalidManifest, MissingDependencies, OldVersion
from otaflow.package.metadata import Metadata
from otaflow.package.versions import matches, newer


def check_installable(metadata: Metadata, *, name: str, version: str, model: str) -> None:
    """Refuse `metadata` on a system called `name` at `version`, on a device of `model`."""
    check_understood(metadata)
    what = f"{metadata.name} {metadata.version}"
    if metadata.name != name:
        raise InvalidManifest(f"cannot install {what}: this device runs {name}", hint="publish it for that system")
    models = metadata.applies_to.models
    if models and model not in models:
        raise InvalidManifest(
            f"cannot install {what}: it is made for {', '.join(models)}, this device is a {model}",
            hint="`applies_to.models` in the package's metadata names the models",
        )
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
    check_understood(metadata)
    if (metadata.name, metadata.version) != (name, version):
        raise IncompatibleDelta(
            f"cannot uninstall {metadata.name} {metadata.version}: {name} {version} is installed",
            hint="an update is uninstalled with the package that brought the present version",
        )


def check_understood(metadata: Metadata) -> None:
    """Refuse what would have to be ignored."""
    missing = [
        word
        for word, present in (
            ("application packages", metadata.kind != "system"),
            ("migrations", metadata.migration is not None),
            ("services to reload or restart", bool(metadata.services.reload or metadata.services.restart)),
        )
        if present
    ]
    if missing:
        raise InvalidManifest(
            f"cannot install {metadata.name} {metadata.version}: it needs {' and '.join(missing)}, "
            "which this version of otaflow does not do",
            hint="update otaflow first, or build the package without them",
        )


def check_dependencies(metadata: Metadata, clusters: dict[str, str]) -> None:
    """Check dependencies and conflicts over the software clusters (name: version) as they would be."""
    for need in metadata.dependencies:
        if need.name not in clusters or not matches(clusters[need.name], need.versions):
            raise MissingDependencies(
                f"cannot activate {metadata.name} {metadata.version}: it depends on {need.name} {need.versions}, "
                f"and {clusters.get(need.name, 'none')} is there",
                hint=f"install {need.name} {need.versions} first",
            )
    for foe in metadata.conflicts:
        if foe.name in clusters and matches(clusters[foe.name], foe.versions):
            raise MissingDependencies(
                f"cannot activate {metadata.name} {metadata.version}: it conflicts with {foe.name} {foe.versions}, "
                f"and {clusters[foe.name]} is there",
                hint=f"remove or update {foe.name} first",
            )
