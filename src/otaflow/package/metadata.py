"""A package's metadata: what it is, what it applies to, what it holds. docs/package-format.md lists every key.

`Source` is what an author writes; `Metadata` is what a package carries: the same, with `size` and `files`, which
`package build` adds. Values in, values out; nothing here touches a disk.
"""

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from otaflow.errors import InvalidManifest
from otaflow.package import names, strict_yaml, versions

FORMAT = 1
MAX_BYTES = strict_yaml.MAX_BYTES
CONTENT = {"system": ("update", "assets"), "application": ("files",)}

_SEMVER = (
    r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$"
)

_NOT_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")

Version = Annotated[
    str,
    AfterValidator(versions.check_version),
    WithJsonSchema({"type": "string", "pattern": _SEMVER, "maxLength": 128}),
]
Constraint = Annotated[str, AfterValidator(versions.check_constraint), Field(max_length=1024)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Command = Annotated[list[Annotated[str, Field(max_length=4096)]], Field(min_length=1, max_length=256)]
Mode = Annotated[str, Field(pattern=r"^0[0-7]{3}$")]


class Section(BaseModel):
    """A mapping of the file; an unknown key is an error, and a value is never converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AppliesTo(Section):
    """`applies_to`: the device models (none named: every model) and the installed versions that it can replace."""

    models: list[Annotated[str, Field(min_length=1, max_length=64)]] = []
    versions: Constraint | None = None


class Relation(Section):
    """An entry of `dependencies` or `conflicts`: another package, and which versions of it."""

    name: Name
    versions: Constraint


class Services(Section):
    """`services`: what is reloaded, and what is restarted, after the update."""

    reload: list[Annotated[str, Field(min_length=1, max_length=256)]] = []
    restart: list[Annotated[str, Field(min_length=1, max_length=256)]] = []


class Check(Section):
    """An entry of `health`: a command that must exit 0 in the new system."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    command: Command
    timeout_seconds: float = Field(default=30, gt=0, le=86400)
    tries: int = Field(default=3, ge=1, le=1000)
    wait_seconds: float = Field(default=1, ge=0, le=86400)


class Migration(Section):
    """`migration`: reserved. Data that changes with the update, and whether there is a way back."""

    kind: Literal["sqlite", "postgresql", "program"]
    irreversible: bool = False


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
    dependencies: list[Relation] = []
    conflicts: list[Relation] = []
    services: Services = Services()
    health: list[Check] = []
    migration: Migration | None = None
    description: str = ""


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
        if self.kind == "system":
            program = self.files.get("update")
            if not isinstance(program, File) or not int(program.mode, 8) & 0o100:
                raise ValueError("files: a system package has a program `update` that its owner may execute")
        total = sum(entry.size for entry in self.files.values() if isinstance(entry, File))
        if (self.size.installed_bytes, self.size.files) != (total, len(self.files)):
            raise ValueError("size: it is not what `files` adds up to")
        return self

    def _check_entry(self, name: str, entry: File | Folder | Link) -> None:
        names.check_name(name)
        folder = names.parent(name)
        if not folder:
            if name not in CONTENT[self.kind]:
                raise ValueError(f"a package of kind {self.kind} has no such member")
            if isinstance(entry, Folder) == (name == "update") or isinstance(entry, Link):
                raise ValueError("`update` is a file, `assets` and `files` are folders")
        elif not isinstance(self.files.get(folder), Folder):
            raise ValueError("the folder that it is in is not listed")
        if isinstance(entry, Link):
            names.check_target(name, entry.link)


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
