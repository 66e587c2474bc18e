"""What the parts of the metadata are made of: strict mappings, and the texts that stand in several of them."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from otaflow.package import names, versions

_SEMVER = (
    r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$"
)

Version = Annotated[
    str,
    AfterValidator(versions.check_version),
    WithJsonSchema({"type": "string", "pattern": _SEMVER, "maxLength": 128}),
]
Constraint = Annotated[str, AfterValidator(versions.check_constraint), Field(max_length=1024)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Command = Annotated[list[Annotated[str, Field(max_length=4096)]], Field(min_length=1, max_length=256)]
Unit = Annotated[str, Field(max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9@._-]*\.(service|socket|timer)$")]
"""The name of a systemd unit; never an option, never a path."""
Place = Annotated[str, AfterValidator(names.check_name), Field(min_length=1, max_length=names.MAX_NAME_BYTES)]
"""A relative name of a file or folder, in plain form (see `otaflow.package.names`)."""


class Section(BaseModel):
    """A mapping of the file; an unknown key is an error, and a value is never converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
