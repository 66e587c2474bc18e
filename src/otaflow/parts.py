"""What each package of a session does to applications, services and data: plain data, as the journal keeps it.

A part is `{kind, name, version, priority, restart, reload, migrations, folder, kept, generation}`. `kind` is `system`,
`application` or `remove`; `restart` and `reload` are services, `migrations` the metadata's entries with `folder`, which
their paths are relative to (of an application: its tree). It is recorded when the package is processed: after a power
cut the cache may be empty.
"""

from pathlib import Path
from typing import Any

from otaflow.action import Action
from otaflow.flows.process import Processed
from otaflow.tasks.package import metadata_of

Part = dict[str, Any]


def part_of(action: Action, processed: Processed) -> Part | None:
    """The part of an action; None where it is one of the ways back, which change the system only."""
    if action.kind == "remove":
        return {**_empty(action), "kind": "remove", "kept": processed["kept"]}
    if action.kind not in ("up", "install", "update"):
        return None
    metadata = metadata_of(processed["folder"])
    described = metadata.model_dump(mode="json", include={"services", "migrations", "priority"})
    part: Part = _empty(action) | described.pop("services") | described
    part["folder"] = str(Path(processed["folder"]) / "assets")
    if action.kind == "up":
        return part
    return part | {"kind": "application", "kept": processed["kept"], "generation": processed["generation"]}


def _empty(action: Action) -> Part:
    return {
        "kind": "system",
        "name": action.name,
        "version": action.version,
        "priority": False,
        "restart": [],
        "reload": [],
        "migrations": [],
    }
