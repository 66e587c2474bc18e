"""A package's metadata: what it is, what it applies to, what it holds. docs/package-format.md lists every key.

`Source` is what an author writes; `Metadata` is what a package carries: the same, with `size` and `files`, which
`package build` adds. Values in, values out; nothing here touches a disk.
"""

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from otaflow.errors import InvalidManifest
from otaflow.package import names, strict_yaml, versions
from otaflow.package.migrations import Alembic, DatabaseSpec, Migration, check_databases
from otaflow.package.section import Command, Constraint, Name, Place, Section, Unit, Version

__all__ = [
    "CONTENT",
    "FORMAT",
    "LABEL",
    "MAX_BYTES",
    "Alembic",
    "AppliesTo",
    "Check",
    "DatabaseSpec",
    "Entry",
    "File",
    "Folder",
    "Link",
    "Metadata",
    "Migration",
    "Relation",
    "Section",
    "Services",
    "Size",
    "Source",
    "complete",
    "dump",
    "json_schema",
    "parse",
    "parse_source",
]

FORMAT = 1
MAX_BYTES = strict_yaml.MAX_BYTES
CONTENT = {"system": ("update", "assets"), "application": ("files",)}
LABEL = ".otaflow-application.json"
"""The name in an application's tree that is ours: what is installed there."""

_NOT_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")

Mode = Annotated[str, Field(pattern=r"^0[0-7]{3}$")]


class AppliesTo(Section):
    """`applies_to`: the device models (none named: every model) and the installed versions that it can replace."""

    models: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(default=[])
    versions: Constraint | None = None


class Relation(Section):
    """An entry of `dependencies` or `conflicts`: another package, and which versions of it."""

    name: Name
    versions: Constraint


class Services(Section):
    """`services`: units that stop for the update and start after it, and units that read something anew afterwards."""

    reload: Annotated[list[Unit], Field(max_length=64)] = Field(default=[])
    restart: Annotated[list[Unit], Field(max_length=64)] = Field(default=[])


class Check(Section):
    """An entry of `health`: a command that must exit 0 in the new system."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    command: Command
    timeout_seconds: float = Field(default=30, gt=0, le=86400)
    tries: int = Field(default=3, ge=1, le=1000)
    wait_seconds: float = Field(default=1, ge=0, le=86400)


class Size(Section):
    """`size`: bytes of all files together, and how many entries `files` has."""

    installed_bytes: int = Field(ge=0)
    files: int = Field(ge=0)


class File(Section):
    """An entry of `files`: a regular file. `mode` is octal, `sha256` in hex."""

    mode: Mode
    size: int = Field(ge=0, lt=8**11)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Folder(Section):
    """An entry of `files`: a folder."""

    mode: Mode


class Link(Section):
    """An entry of `files`: a symbolic link."""

    link: str


def _entry_kind(value: Any) -> str:
    """Which of the three an entry of `files` is, by its keys (or its class)."""
    if isinstance(value, dict):
        return "link" if "link" in value else "folder" if value.keys() == {"mode"} else "file"
    return "link" if isinstance(value, Link) else "folder" if isinstance(value, Folder) else "file"


Entry = Annotated[
    Annotated[File, Tag("file")] | Annotated[Folder, Tag("folder")] | Annotated[Link, Tag("link")],
    Discriminator(_entry_kind),
]


class Source(Section):
    """The metadata as its author writes it, before the package is built."""

    format: Literal[1]
    name: Name
    kind: Literal["system", "application"]
    version: Version
    update_number: int = Field(ge=1, lt=2**63)
    applies_to: AppliesTo = AppliesTo()
    priority: bool = False
    dependencies: list[Relation] = Field(default=[])
    conflicts: list[Relation] = Field(default=[])
    remove: Annotated[list[Place], Field(max_length=100_000)] = Field(default=[])
    services: Services = Services()
    health: list[Check] = Field(default=[])
    migrations: Annotated[list[Migration], Field(max_length=64)] = Field(default=[])
    description: str = ""

    @property
    def base(self) -> str | None:
        """The one version that this application package updates; None where it installs anew, and of a system."""
        constraint = self.applies_to.versions if self.kind == "application" else None
        return versions.find_exact(constraint) if constraint else None

    @property
    def irreversible(self) -> bool:
        """Whether one of its migrations cannot be taken back."""
        return any(migration.irreversible for migration in self.migrations)

    @model_validator(mode="after")
    def _check_kind(self) -> "Source":
        if self.kind == "application" and self.applies_to.versions:
            _check_base(self.applies_to.versions, self.version)
        if self.remove and (self.kind != "application" or not self.applies_to.versions):
            raise ValueError("remove: only the update of an application removes files of its former version")
        if LABEL in self.remove:
            raise ValueError(f"remove: {LABEL} is otaflow's own")
        try:
            check_databases(self.migrations, package=self.name, kind=self.kind)
        except ValueError as error:
            raise ValueError(f"migrations: {error}") from error
        return self


def _check_base(constraint: str, version: str) -> None:
    """ValueError where `constraint` is not the one version before `version`."""
    base = versions.find_exact(constraint)
    if base is None:
        raise ValueError(
            f"applies_to.versions: the update of an application applies to exactly one version, as in '1.0.0', "
            f"not to {constraint!r}"
        )
    if not versions.newer(version, base):
        raise ValueError(f"applies_to.versions: {version} is not higher than {base}, which it applies to")


class Metadata(Source):
    """The metadata of a package: its author's, with `size` and `files`."""

    size: Size
    files: dict[str, Entry]

    @model_validator(mode="after")
    def _check_files(self) -> "Metadata":
        for name, entry in self.files.items():
            try:
                self._check_entry(name, entry)
            except ValueError as error:
                raise ValueError(f"files: {name!r}: {error}") from error
        if self.kind == "system" and not _is_program(self.files.get("update")):
            raise ValueError("files: a system package has a program `update` that its owner may execute")
        total = sum(entry.size for entry in self.files.values() if isinstance(entry, File))
        if (self.size.installed_bytes, self.size.files) != (total, len(self.files)):
            raise ValueError("size: it is not what `files` adds up to")
        self._check_removed()
        self._check_scripts()
        return self

    def _check_entry(self, name: str, entry: "Entry") -> None:
        names.check_name(name)
        folder = names.parent(name)
        if not folder:
            if name not in CONTENT[self.kind]:
                raise ValueError(f"a package of kind {self.kind} has no such member")
            if isinstance(entry, Folder) == (name == "update") or isinstance(entry, Link):
                raise ValueError("`update` is a file, `assets` and `files` are folders")
        elif not isinstance(self.files.get(folder), Folder):
            raise ValueError("the folder that it is in is not listed")
        if name == f"files/{LABEL}":
            raise ValueError("that name is otaflow's own")
        if isinstance(entry, Link):
            # `files` becomes a tree of its own: what leads out of it would lead to another application.
            names.check_target(name.removeprefix("files/"), entry.link)

    def _check_removed(self) -> None:
        """What goes is not put there by the same package, nor is the folder that it was in something else by then."""
        for name in self.remove:
            if f"files/{name}" in self.files:
                raise ValueError(f"remove: {name!r} is in `files/`, too")
            folder = names.parent(name)
            while folder:
                entry = self.files.get(f"files/{folder}")
                if entry is not None and not _is_folder(entry):
                    raise ValueError(f"remove: {name!r} is in {folder!r}, which is no folder in `files/`")
                folder = names.parent(folder)

    def _check_scripts(self) -> None:
        """Each migration finds in the package what it uses."""
        root = "files" if self.kind == "application" else "assets"
        fits = {"file": _is_file, "folder": _is_folder, "program": _is_program}
        words = {"file": "file", "folder": "folder", "program": "program that its owner may execute"}
        for place, migration in enumerate(self.migrations):
            for name, kind in migration.needs():
                if not fits[kind](self.files.get(f"{root}/{name}")):
                    raise ValueError(f"migrations.{place}: there is no {words[kind]} {name!r} in `{root}/`")


def _is_file(entry: "Entry | None") -> bool:
    return isinstance(entry, File)


def _is_folder(entry: "Entry | None") -> bool:
    return isinstance(entry, Folder)


def _is_program(entry: "Entry | None") -> bool:
    return isinstance(entry, File) and bool(int(entry.mode, 8) & 0o100)


Model = TypeVar("Model", bound=Source)


def parse(text: bytes) -> Metadata:
    """The metadata of a package. InvalidManifest names the key that is wrong."""
    return _parse(text, Metadata)


def parse_source(text: bytes) -> Source:
    """The metadata as an author wrote it, without `size` and `files`. InvalidManifest names the key that is wrong."""
    return _parse(text, Source)


def complete(source: Source, files: dict[str, File | Folder | Link]) -> Metadata:
    """The metadata of the package that holds `files`. InvalidManifest where they do not make a package."""
    total = sum(entry.size for entry in files.values() if isinstance(entry, File))
    size = {"installed_bytes": total, "files": len(files)}
    return _check(Metadata, {**source.model_dump(), "size": size, "files": files})


def _parse(text: bytes, model: type[Model]) -> Model:
    try:
        value = strict_yaml.read_yaml(text)
    except ValueError as error:
        raise InvalidManifest(f"cannot read the metadata: {error}") from error
    return _check(model, value)


def _check(model: type[Model], value: Any) -> Model:
    """`value` as `model`. InvalidManifest names the first key that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidManifest(
            f"cannot use the metadata: {_explain(error)}", hint="docs/package-format.md lists every key"
        ) from None


def _explain(error: ValidationError) -> str:
    """The first wrong key, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    loc = [str(part) for part in first["loc"]]
    if loc[:1] == ["files"] and len(loc) > 2:
        del loc[2]
    key = ".".join(part[:200] if part.isprintable() else ascii(part[:200]) for part in loc)
    reason = first["msg"].removeprefix("Value error, ")
    return f"{key}: {reason}" if key else reason


def dump(metadata: Metadata) -> bytes:
    """The one text of `metadata`: YAML, its `files` as JSON with one entry a line, sorted. `parse` is its inverse."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes a text with NEL, LS or PS in a way that escapes them; by itself PyYAML writes NEL wrongly."""

    Dumper.add_representer(
        str,
        lambda dumper, text: dumper.represent_scalar(
            "tag:yaml.org,2002:str", text, style='"' if _NOT_YAML.search(text) else None
        ),
    )
    values = metadata.model_dump(exclude={"files"}, exclude_none=True)
    head = yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=4096)
    lines = [f"  {_json(name)}: {_json(metadata.files[name].model_dump())}" for name in sorted(metadata.files)]
    return (head + "files: {\n" + ",\n".join(lines) + "\n}\n").encode()


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a package's metadata, as published in metadata.schema.json."""
    schema = Metadata.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "otaflow package metadata"}


def _json(value: Any) -> str:
    """`value` in JSON that is YAML, too: what YAML does not take as it is, or takes for a line's end, is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return _NOT_YAML.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
