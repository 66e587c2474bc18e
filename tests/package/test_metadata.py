"""The metadata: what is accepted, how it is written, and that what is published is true."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from otaflow.errors import InvalidManifest
from otaflow.package import metadata, strict_yaml
from otaflow.package.metadata import (
    File,
    Folder,
    Link,
    Metadata,
    Source,
    complete,
    dump,
    json_schema,
    parse,
    parse_source,
)

PLAIN = {"format": 1, "name": "system", "kind": "system", "version": "1.1.0", "update_number": 2}
FULL = {
    **PLAIN,
    "applies_to": {"models": ["s16"], "versions": ">=1.0.0,<1.1.0"},
    "priority": True,
    "dependencies": [{"name": "kernel", "versions": ">=6.1.0"}],
    "conflicts": [{"name": "old-shell", "versions": "<2.0.0"}],
    "services": {"reload": ["nginx"], "restart": ["app@1.service"]},
    "health": [{"name": "web", "command": ["curl", "-f", "http://localhost"], "timeout_seconds": 5, "tries": 2}],
    "migration": {"kind": "sqlite", "irreversible": False},
    "description": "What is new:\n\nfiles: {\n- é\u2028\x85 'quoted' # no comment\n",
}
FILES: dict[str, File | Folder | Link] = {
    "update": File(mode="0755", size=3, sha256="a" * 64),
    "assets": Folder(mode="0755"),
    "assets/\u2028\ufeff\\\"'#: {é}": Link(link="../update"),
}


def text(values: dict[str, Any]) -> bytes:
    return yaml.safe_dump(values, allow_unicode=True).encode()


def test_written_and_read_again() -> None:
    made = complete(parse_source(text(FULL)), FILES)
    again = parse(dump(made))
    assert again == made
    assert dump(again) == dump(made)
    assert strict_yaml.read_yaml(dump(made)) == yaml.safe_load(dump(made)), "the fast reader reads YAML"
    assert made.size.installed_bytes == 3


@example("\x85")
@example("a\r\n\x85 \u2028\u2029\ufeff\x7f b")
@example("x\nfiles: {\n}\n")
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_description(description: str) -> None:
    made = complete(Source.model_validate({**PLAIN, "description": description}), FILES)
    assert made.description == description
    assert parse(dump(made)) == made


REFUSED = {
    "format of the future": ({"format": 2}, "format"),
    "kind": ({"kind": "firmware"}, "kind"),
    "name with a slash": ({"name": "a/b"}, "name"),
    "name with a newline": ({"name": "a\n"}, "name"),
    "name with a dot first": ({"name": ".."}, "name"),
    "version as a number": ({"version": 1.1}, "version"),
    "version with v": ({"version": "v1.1.0"}, "version"),
    "version of two parts": ({"version": "1.1"}, "version"),
    "version with a newline": ({"version": "1.1.0\n"}, "version"),
    "version with a leading zero": ({"version": "1.01.0"}, "version"),
    "update number 0": ({"update_number": 0}, "update_number"),
    "update number as a text": ({"update_number": "2"}, "update_number"),
    "priority as a text": ({"priority": "yes"}, "priority"),
    "constraint": ({"applies_to": {"versions": "~=1.0"}}, "applies_to.versions"),
    "constraint of nothing": ({"applies_to": {"versions": ""}}, "applies_to.versions"),
    "dependency without versions": ({"dependencies": [{"name": "a"}]}, "dependencies.0.versions"),
    "check without a command": ({"health": [{"name": "a", "command": []}]}, "health.0.command"),
    "check as a shell line": ({"health": [{"name": "a", "command": "true"}]}, "health.0.command"),
    "check without time": (
        {"health": [{"name": "a", "command": ["true"], "timeout_seconds": 0}]},
        "health.0.timeout_seconds",
    ),
    "check for ever": (
        {"health": [{"name": "a", "command": ["true"], "timeout_seconds": float("inf")}]},
        "health.0.timeout_seconds",
    ),
    "migration": ({"migration": {"kind": "oracle"}}, "migration.kind"),
    "unknown key": ({"prioritiy": True}, "prioritiy"),
    "unknown key inside": ({"services": {"start": []}}, "services.start"),
    "size, which the build adds": ({"size": {"installed_bytes": 0, "files": 0}}, "size"),
}


@pytest.mark.parametrize(("change", "key"), REFUSED.values(), ids=REFUSED)
def test_wrong_value_is_refused_with_its_key(change: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidManifest, match=f"cannot use the metadata: {key}: "):
        parse_source(text({**PLAIN, **change}))


def test_wrong_entry_is_refused_with_its_key() -> None:
    made = dump(complete(parse_source(text(PLAIN)), FILES)).replace(b'"0755", "size"', b'"755", "size"')
    with pytest.raises(InvalidManifest, match=r"cannot use the metadata: files\.update\.mode: "):
        parse(made)


def test_published_schema_is_this_one() -> None:
    published = Path(metadata.__file__).with_name("metadata.schema.json")
    assert json.loads(published.read_text()) == json_schema(), "write it again: otaflow package schema"


def test_published_schema_accepts_and_refuses() -> None:
    check = jsonschema.Draft202012Validator(json_schema())
    check.check_schema(json_schema())
    good = yaml.safe_load(dump(complete(parse_source(text(FULL)), FILES)))
    assert list(check.iter_errors(good)) == []
    for change in ({"colour": 1}, {"version": "1"}, {"files": {"update": {}}}, {"format": 2}):
        assert list(check.iter_errors({**good, **change})), change


def test_start_imports_little() -> None:
    """`otaflow recover` reads metadata, and must start at once."""
    code = "import sys, otaflow.package.metadata; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"yaml", "semver", "rich", "cyclopts", "prefect", "httpx", "tuf", "tarfile"}
    assert not heavy & set(done.stdout.split())


def test_every_key_is_documented() -> None:
    page = Path(__file__).parents[2].joinpath("docs/package-format.md").read_text()
    keys = [*Metadata.model_fields]
    for model in (metadata.AppliesTo, metadata.Relation, metadata.Services, metadata.Check, metadata.Migration):
        keys += model.model_fields
    assert [key for key in keys if f"`{key}`" not in page] == []
