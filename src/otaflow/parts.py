"""What each package of a session does to applications, services and data: plain data, as the journal keeps it.

A part is `{id, kind, name, version, priority, restart, reload, migrations, folder, kept, generation}`.

* `id` tells the parts of a session apart: an application's name, a system's name and version.
* `kind` is `system`, `application`, `remove`, or `owner`: an application whose data others migrate.
* `restart` and `reload` are services; `migrations` the metadata's entries with `folder`, which their paths are relative
  to (of an application: its tree).

A part is recorded when its package is processed: after a power cut the cache may be empty.
"""

from pathlib import Path
from typing import Any

from otaflow.action import Action
from otaflow.flows.process import Processed
from otaflow.platform.applications import Applications
from otaflow.tasks.package import metadata_of

Part = dict[str, Any]


def part_of(action: Action, processed: Processed) -> Part | None:
    """The part of an action; None where it is one of the ways back, which change the system only."""
    if action.kind == "remove":
        return {**_describe(action.name, action.version), "kind": "remove", "kept": processed["kept"]}
    if action.kind not in ("up", "install", "update"):
        return None
    metadata = metadata_of(processed["folder"])
    described = metadata.model_dump(mode="json", include={"services", "migrations", "priority"})
    part: Part = _describe(action.name, action.version) | described.pop("services") | described
    part["folder"] = str(Path(processed["folder"]) / "assets")
    if action.kind == "up":
        return part | {"id": f"{action.name} {action.version}"}
    return part | {"kind": "application", "kept": processed["kept"], "generation": processed["generation"]}


def with_owners(parts: list[Part], applications: Applications) -> list[Part]:
    """The parts, and one for each application whose data is migrated by another package: it must not run meanwhile."""
    known = {part["name"] for part in parts if part["kind"] != "system"}
    priorities = {
        migration["database"].get("application"): part["priority"] for part in parts for migration in part["migrations"]
    }
    owners = [name for name in priorities if name not in known and name in applications.names()]
    versions = applications.versions() if owners else {}
    return [
        *parts,
        *(
            _describe(name, versions.get(name, "unknown"))
            | {"kind": "owner", "priority": priorities[name], "restart": applications.services(name)}
            for name in owners
        ),
    ]


def _describe(name: str, version: str) -> Part:
    return {
        "id": name,
        "kind": "system",
        "name": name,
        "version": version,
        "priority": False,
        "restart": [],
        "reload": [],
        "migrations": [],
    }
