"""What a person asks to be installed, and the packages for it in their order: with an agent and without one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otaflow.errors import ConfigError, OperationNotPermitted
from otaflow.platform.device import Device

if TYPE_CHECKING:
    from otaflow.repo.choice import Target

Run = Callable[..., Any]
"""Runs a phase: `run(phase, parameters, name, version)`, the last two being what it is about, for the history."""


@dataclass(frozen=True)
class Asked:
    """All that is new; or what `file` holds (a package, or a local repository package, .nsr); or one application.

    Of the application `name` the updates up to `version` (empty: the highest), or, `anew`, all that installs it.
    `accepts`: the user agrees to migrations of data that cannot be brought back.
    """

    file: Path | None = None
    name: str = ""
    version: str = ""
    anew: bool = False
    accepts: bool = False


EVERYTHING = Asked()


def find_packages(device: Device, asked: Asked, run: Run) -> "Iterator[tuple[Target, str]]":
    """Each package and its file, in order; each is fetched only when the one before it is in place.

    Raises OperationNotPermitted where an update changes data for good and that was not agreed to: of a file or one
    application before anything is installed.
    """
    from otaflow.flows.check import fetch

    source = device.config.update.use
    archive = str(asked.file.absolute()) if asked.file and asked.file.suffix == ".nsr" else ""
    targets, last = _find_targets(device, asked, run, archive)
    if asked.name or last:
        for target in [*targets, *(target for target, _ in last)]:
            require_agreement(target, asked.accepts)
    for target in targets:
        require_agreement(target, asked.accepts)
        yield target, run(fetch, {"source": source, "target": target, "archive": archive}, target.name, target.version)
    yield from last


def require_agreement(target: "Target", accepts: bool) -> None:
    """Refuse an update that changes data for good, unless the user agrees to that. Raises OperationNotPermitted."""
    if target.irreversible and not accepts:
        what = ", ".join(target.irreversible_data) or "data"
        raise OperationNotPermitted(
            f"cannot install {target.name} {target.version}: it changes {what} for good, "
            "and what was there before cannot be brought back",
            hint="agree to that with `--accept-irreversible`",
        )


# --- inside -----------------------------------------------------------------------------------------------------------


def _find_targets(
    device: Device, asked: Asked, run: Run, archive: str
) -> "tuple[list[Target], list[tuple[Target, str]]]":
    """What is to be fetched, and the package that is there already and comes last, if there is one."""
    from otaflow.flows.check import accept_file, check, find_application, find_earlier

    source = device.config.update.use
    if asked.name:
        _refuse_application(device, asked)
        parameters = {"source": source, "name": asked.name, "to": asked.version}
        return run(find_application, parameters, asked.name, asked.version), []
    if asked.file and not archive:
        target, package = run(accept_file, {"source": source, "package": str(asked.file.absolute())}, asked.file.name)
        earlier: list[Target] = []
        if target.kind == "application":
            earlier = run(find_earlier, {"source": source, "target": target}, target.name, target.version)
        return earlier, [(target, package)]
    return run(check, {"source": source, "archive": archive}, asked.file.name if asked.file else "check"), []


def _refuse_application(device: Device, asked: Asked) -> None:
    """An application is installed once, and updated where it is."""
    present = device.applications.versions().get(asked.name)
    if asked.name == device.running_system().name:
        raise ConfigError(f"cannot use {asked.name} as an application: it is the system", hint="`otaflow update`")
    if present is None and not asked.anew:
        raise OperationNotPermitted(
            f"cannot update {asked.name}: it is not installed", hint=f"`otaflow app install {asked.name}`"
        )
    if present is not None and asked.anew:
        raise OperationNotPermitted(
            f"cannot install {asked.name}: {present} is installed", hint=f"`otaflow app update {asked.name}`"
        )
