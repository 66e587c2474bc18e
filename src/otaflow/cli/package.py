"""`otaflow package`: build a package, look into one, print the schema of its metadata."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts

if TYPE_CHECKING:
    from otaflow.package.metadata import Metadata, Migration

app = cyclopts.App(name="package", help="Make update packages (.nsu, .nua) and look into them.")


@app.command
def build(
    folder: Path,
    *,
    output: Annotated[Path, cyclopts.Parameter(name=["--output", "-o"])],
    json: Annotated[bool, cyclopts.Parameter(negative=())] = False,
) -> None:
    """Make a package of FOLDER: `metadata`, `update` and `assets/`. The same folder always gives the same bytes.

    Parameters
    ----------
    folder
        The folder that holds `metadata`, `update` and `assets/`; `metadata` and `files/` for an application.
    output
        The package to write; an old one of that name is replaced.
    json
        Print the package's metadata as JSON.
    """
    from otaflow.package.build import build as build_package

    metadata = build_package(folder, output)
    if json:
        _print_json(metadata, output)
    else:
        print(
            f"{output}: {metadata.name} {metadata.version}, {_amount(metadata)}, {output.stat().st_size} bytes packed"
        )


@app.command
def show(file: Path, *, json: Annotated[bool, cyclopts.Parameter(negative=())] = False) -> None:
    """Say what is in a package: its metadata, which is not checked against the rest of the file.

    Parameters
    ----------
    file
        The package, .nsu or .nua.
    json
        Print the whole metadata as JSON, with every file.
    """
    from otaflow.package.extract import read_metadata

    metadata = read_metadata(file)
    if json:
        _print_json(metadata, file)
    else:
        _print_table(metadata, file)


@app.command
def schema() -> None:
    """Print the JSON Schema of a package's metadata."""
    from otaflow.package.metadata import json_schema

    print(json.dumps(json_schema(), indent=2))


def _print_json(metadata: "Metadata", file: Path) -> None:
    """The metadata as one JSON object; `package_bytes` is the size of the file itself."""
    print(json.dumps({**metadata.model_dump(mode="json"), "package_bytes": file.stat().st_size}, indent=2))


def _print_table(metadata: "Metadata", file: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, title=Text(f"{metadata.name} {metadata.version}"), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in _rows(metadata):
        if value:
            table.add_row(key, Text(_printable(value)))
    table.add_row("package", Text(f"{file.stat().st_size} bytes"))
    Console().print(table)


def _rows(metadata: "Metadata") -> list[tuple[str, str]]:
    """What a person wants to know of a package, in order; an empty value is left out."""
    applies = metadata.applies_to
    return [
        ("kind", metadata.kind),
        ("update number", str(metadata.update_number)),
        ("models", ", ".join(applies.models) or "every model"),
        ("applies to", applies.versions or "every version"),
        ("priority", "yes" if metadata.priority else "no"),
        ("depends on", _join(f"{other.name} {other.versions}" for other in metadata.dependencies)),
        ("conflicts with", _join(f"{other.name} {other.versions}" for other in metadata.conflicts)),
        ("removes", _join(metadata.remove)),
        ("reloads", _join(metadata.services.reload)),
        ("restarts", _join(metadata.services.restart)),
        ("health checks", _join(f"{check.name}: {shlex.join(check.command)}" for check in metadata.health)),
        ("migrates", _join(_describe_migration(metadata.name, migration) for migration in metadata.migrations)),
        ("description", metadata.description.strip()),
        ("holds", _amount(metadata)),
    ]


def _describe_migration(package: str, migration: "Migration") -> str:
    """Which data, by what, and whether there is a way back."""
    way = "alembic" if migration.alembic else shlex.join(migration.program or migration.sql or [])
    return f"{migration.database.title(package)}: {way}{', irreversible' * migration.irreversible}"


def _printable(text: str) -> str:
    """`text` without what would steer a terminal: a package may come from anyone."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _join(values: Iterable[str]) -> str:
    return "\n".join(values)


def _amount(metadata: "Metadata") -> str:
    return f"{metadata.size.files} files, {metadata.size.installed_bytes} bytes"
