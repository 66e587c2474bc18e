"""Applications of a few bytes, without services: what is asked for and in which order is the subject, not what runs."""

import json
import tempfile
from pathlib import Path
from typing import Any

from update_world import World

from otaflow.action import Action
from otaflow.package.build import build

SICK = [{"name": "well", "command": ["sh", "-c", "exit 1"], "tries": 1}]
MIGRATE = '#!/bin/sh\nset -e\necho migrated >> "$OTAFLOW_DATA/words/log"\n'
MORE = '[services]\nkind = "processes"\n[applications]\nclose_seconds = 0\n'
"""For the configuration of a device on which they are installed."""


def build_app(
    folder: Path,
    name: str,
    version: str,
    base: str = "",
    *,
    irreversible: bool = False,
    program: str = "",
    unit: str = "",
    **more: Any,
) -> Path:
    """A package of the application `name`; an update of version `base`, or one that installs it.

    `program` is its `bin/program`, `unit` its `services/NAME.service`.
    """
    source = Path(tempfile.mkdtemp(dir=folder))
    (source / "files/bin").mkdir(parents=True)
    (source / "files/version").write_text(version)
    if program:
        (source / "files/bin/program").write_text(program)
        (source / "files/bin/program").chmod(0o755)
    if unit:
        (source / "files/services").mkdir()
        (source / f"files/services/{name}.service").write_text(unit)
    number = int(version.split(".")[1]) + 1
    values: dict[str, Any] = {"format": 1, "name": name, "kind": "application", "version": version}
    values["update_number"] = number
    if base:
        values["applies_to"] = {"versions": base}
    if irreversible:
        (source / "files/bin/migrate").write_text(MIGRATE)
        (source / "files/bin/migrate").chmod(0o755)
        database = {"kind": "files", "path": "words"}
        values["migrations"] = [{"database": database, "program": ["bin/migrate"], "irreversible": True}]
    (source / "metadata").write_text(json.dumps(values | more))
    output = folder / f"{name}-{version}.nua"
    build(source, output)
    return output


def install_app(world: World, package: Path, name: str, version: str) -> None:
    """Install a package as it is, before a test begins."""
    (world.device().applications.data(name) / "words").mkdir(parents=True, exist_ok=True)
    world.install(Action("install", name, version, 1, package=str(package), facts={"from_version": ""}))
