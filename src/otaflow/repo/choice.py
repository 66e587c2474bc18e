"""Which system packages a device installs, and in which order; chains.py has applications. Rules without I/O.

* a package is new when its version is higher than the installed one;
* it is for this device when its name is the system's, and it names the device's model or none;
* updates are installed one after the other (spec/update-processes.md), each applicable to what the former left;
* of all such rows the one is taken that ends at the highest version, of those the one with the fewest packages that
  are to be avoided (they failed here, or the user refused them), and of those the longest.
"""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from otaflow.package.metadata import AppliesTo
from otaflow.package.versions import check_version, matches, newer, read_version

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A package that a repository's metadata signs. `length` and `installed_bytes` in bytes, `hashes` in hex.

    `irreversible`: a migration in it cannot be taken back; `irreversible_data` says what it changes, for people.
    """

    path: str
    length: int
    hashes: dict[str, str]
    name: str
    kind: str
    version: str
    update_number: int
    priority: bool = False
    applies_to: AppliesTo = field(default_factory=AppliesTo)
    description: str = ""
    installed_bytes: int = 0
    dependencies: list[dict[str, Any]] = field(default_factory=list)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    irreversible: bool = False
    irreversible_data: list[str] = field(default_factory=list)
    custom: dict[str, Any] = field(default_factory=dict)


_shape = TypeAdapter(Target)


def read_target(file: "TargetFile") -> Target | None:
    """A target with our description; None for others, and for what only a later otaflow understands."""
    custom = file.custom.get("otaflow") if isinstance(file.custom, dict) else None
    if not isinstance(custom, dict):
        return None
    own = {"path": file.path, "length": file.length, "hashes": file.hashes, "custom": custom}
    try:
        target = _shape.validate_python({**custom, **own})
        check_version(target.version)
    except ValueError as error:  # pydantic's ValidationError is one
        log.warning("leaving out %s, whose description is not understood: %s", file.path, error)
        return None
    return target


def choose(
    targets: Iterable[Target], *, installed: str, model: str, name: str | None = None, avoid: Collection[str] = ()
) -> list[Target]:
    """The system packages to install on a device of `model` that is at version `installed`, first one first.

    `avoid`: SHA-256 of packages that are gone around where there is a way.
    """

    def rank(row: list[Target]) -> tuple[int, int]:
        return -sum(target.hashes.get("sha256") in avoid for target in row), len(row)

    candidates = sorted(
        (target for target in targets if _is_for(target, installed, model, name)),
        key=lambda target: (read_version(target.version), target.path),
    )
    rows: list[list[Target]] = []  # the best row that ends with each candidate, where there is one
    for target in candidates:
        before = [row for row in rows if _applies(target, row[-1].version)]
        if _applies(target, installed):
            before.append([])
        if before:
            rows.append([*max(before, key=rank), target])
    if not rows:
        return []
    return max(rows, key=lambda row: (read_version(row[-1].version), rank(row)))


def _is_for(target: Target, installed: str, model: str, name: str | None) -> bool:
    models = target.applies_to.models
    return (
        target.kind == "system"
        and (name is None or target.name == name)
        and (not models or model in models)
        and newer(target.version, installed)
    )


def _applies(target: Target, version: str) -> bool:
    constraint = target.applies_to.versions
    return newer(target.version, version) and (constraint is None or matches(version, constraint))
