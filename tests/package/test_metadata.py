"""The metadata: what is accepted, how it is written, and that what is published is true."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
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
    "services": {"reload": ["nginx.service"], "restart": ["app@1.service"]},
    "health": [{"name": "web", "command": ["curl", "-f", "http://localhost"], "timeout_seconds": 5, "tries": 2}],
    "migrations": [
        {"database": {"kind": "postgresql", "name": "notes"}, "alembic": {"folder": "moves"}},
        {
            "database": {"kind": "sqlite", "path": "a.db", "application": "a"},
            "sql": ["moves/2.sql"],
            "irreversible": True,
        },
    ],
    "description": "What is new:\n\nfiles: {\n- é\u2028\x85 'quoted' # no comment\n",
}
FILES: dict[str, File | Folder | Link] = {
    "update": File(mode="0755", size=3, sha256="a" * 64),
    "assets": Folder(mode="0755"),
    "assets/moves": Folder(mode="0755"),
    "assets/moves/2.sql": File(mode="0644", size=0, sha256="b" * 64),
    "assets/\u2028\ufeff\\\"'#: {é}": Link(link="../update"),
}


class Plain(yaml.SafeDumper):
    """Writes what stands twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def text(values: dict[str, Any]) -> bytes:
    return yaml.dump(values, Dumper=Plain, allow_unicode=True).encode()


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
@settings(deadline=None)
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
    "migration of the past": ({"migration": {"kind": "sqlite"}}, "migration"),
    "service without its type": ({"services": {"restart": ["nginx"]}}, "services.restart.0"),
    "service that is an option": ({"services": {"reload": ["--now.service"]}}, "services.reload.0"),
    "service that is a path": ({"services": {"restart": ["../a.service"]}}, "services.restart.0"),
    "remove from a system": ({"remove": ["a"]}, "remove"),
    "unknown key": ({"prioritiy": True}, "prioritiy"),
    "unknown key inside": ({"services": {"start": []}}, "services.start"),
    "size, which the build adds": ({"size": {"installed_bytes": 0, "files": 0}}, "size"),
}


@pytest.mark.parametrize(("change", "key"), REFUSED.values(), ids=REFUSED)
def test_wrong_value_is_refused_with_its_key(change: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidManifest, match=f"cannot use the metadata: {key}: "):
        parse_source(text({**PLAIN, **change}))


SQLITE = {"kind": "sqlite", "path": "notes.db"}
SQL = {"database": SQLITE, "sql": ["moves/2.sql"]}
UPDATE = {**PLAIN, "name": "notes", "kind": "application", "applies_to": {"versions": "1.0.0"}}
APPLICATION: dict[str, File | Folder | Link] = {
    "files": Folder(mode="0755"),
    "files/bin": Folder(mode="0755"),
    "files/bin/migrate": File(mode="0755", size=1, sha256="a" * 64),
    "files/bin/link": Link(link="migrate"),
    "files/moves": Folder(mode="0755"),
    "files/moves/2.sql": File(mode="0644", size=2, sha256="b" * 64),
}


def of(**database: Any) -> dict[str, Any]:
    return {"migrations": [{"database": database, "program": ["bin/migrate", "up"]}]}


GOOD: dict[str, dict[str, Any]] = {
    "update": {},
    "update, written with ==": {"applies_to": {"versions": "==1.0.0"}},
    "install": {"applies_to": {}},
    "install, for a model": {"applies_to": {"models": ["s16"]}},
    "removes": {"remove": ["old", "bin/old", "a/b"]},
    "services": {"services": {"restart": ["notes.service", "a@1.socket"], "reload": ["a_b.timer"]}},
    "sql": {"migrations": [SQL]},
    "alembic": {"migrations": [{"database": SQLITE, "alembic": {"folder": "moves", "revision": "12ab@head"}}]},
    "program": of(kind="files", path="uploads"),
    "another one's data": of(kind="sqlite", path="a.db", application="other"),
    "one database twice": {"migrations": [SQL, {**SQL, "timeout_seconds": 1}]},
    "databases side by side": {"migrations": [SQL, *of(kind="files", path="notes")["migrations"]]},
    "the same path, of another one": {
        "migrations": [SQL, *of(kind="files", path="notes.db", application="other")["migrations"]]
    },
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "applies to a range": ({"applies_to": {"versions": ">=1.0.0"}}, "applies_to.versions: .* exactly one version"),
    "applies to two": ({"applies_to": {"versions": "==1.0.0,!=1.0.1"}}, "applies_to.versions: .* exactly one version"),
    "applies to itself": ({"applies_to": {"versions": "1.1.0"}}, "1.1.0 is not higher than 1.1.0"),
    "applies to a later one": ({"applies_to": {"versions": "1.2.0"}}, "1.1.0 is not higher than 1.2.0"),
    "removes upwards": ({"remove": ["../other/a"]}, "remove.0: .*`..` part"),
    "removes a path": ({"remove": ["/etc/passwd"]}, "remove.0: the name is absolute"),
    "removes all": ({"remove": ["."]}, "remove.0"),
    "removes what it brings": ({"remove": ["bin/migrate"]}, "remove: 'bin/migrate' is in `files/`, too"),
    "removes a folder that it brings": ({"remove": ["bin"]}, "remove: 'bin' is in `files/`, too"),
    "removes below a file": ({"remove": ["moves/2.sql/a"]}, "remove: .* is no folder"),
    "removes below a link": ({"remove": ["bin/link/a/b"]}, "remove: .* is no folder"),
    "removes what is ours": ({"remove": [".otaflow-application.json"]}, "remove: .* otaflow's own"),
    "removes, and updates nothing": ({"remove": ["old"], "applies_to": {}}, "remove: only the update"),
    "no such script": ({"migrations": [{**SQL, "sql": ["moves/2.sql", "3.sql"]}]}, r"migrations\.0: .*file '3\.sql'"),
    "script in the package's root": ({"migrations": [{**SQL, "sql": ["files/moves/2.sql"]}]}, "no file"),
    "script outside": ({"migrations": [{**SQL, "sql": ["../a"]}]}, r"migrations\.0\.sql\.0"),
    "script that is a folder": ({"migrations": [{**SQL, "sql": ["moves"]}]}, "no file 'moves'"),
    "script that is a link": ({"migrations": [{**SQL, "sql": ["bin/link"]}]}, "no file 'bin/link'"),
    "alembic in a file": (
        {"migrations": [{"database": SQLITE, "alembic": {"folder": "moves/2.sql"}}]},
        "no folder 'moves/2.sql'",
    ),
    "alembic backwards": (
        {"migrations": [{"database": SQLITE, "alembic": {"folder": "moves", "revision": "-1"}}]},
        r"migrations\.0\.alembic\.revision",
    ),
    "program that is none": (
        {"migrations": [{"database": SQLITE, "program": ["moves/2.sql"]}]},
        "no program that its owner may execute 'moves/2.sql'",
    ),
    "program of the machine": ({"migrations": [{"database": SQLITE, "program": ["/bin/sh"]}]}, "no program"),
    "two ways": ({"migrations": [{**SQL, "program": ["bin/migrate"]}]}, r"migrations\.0: .*exactly one of"),
    "no way": ({"migrations": [{"database": SQLITE}]}, "exactly one of"),
    "no time": ({"migrations": [{**SQL, "timeout_seconds": 0}]}, r"migrations\.0\.timeout_seconds"),
    "sql on files": ({"migrations": [{**SQL, "database": {"kind": "files", "path": "a"}}]}, "by a `program`"),
    "unknown database": (of(kind="oracle", name="a"), r"migrations\.0\.database\.kind"),
    "sqlite without a path": (of(kind="sqlite"), r"migrations\.0\.database: .*has a `path`"),
    "sqlite with a name": (of(kind="sqlite", path="a", name="a"), "has a `path` and no `name`"),
    "files without a path": (of(kind="files"), "has a `path`"),
    "postgresql without a name": (of(kind="postgresql"), "has a `name`"),
    "postgresql with a path": (of(kind="postgresql", name="a", path="a"), "no `path`"),
    "postgresql of an application": (of(kind="postgresql", name="a", application="a"), "no `application`"),
    "database outside": (of(kind="sqlite", path="../other/a.db"), r"migrations\.0\.database\.path"),
    "database that is all data": (of(kind="files", path="."), r"migrations\.0\.database\.path"),
    "databases in each other": (
        {
            "migrations": [
                {**SQL, "database": {"kind": "sqlite", "path": "up/a"}},
                *of(kind="files", path="up")["migrations"],
            ]
        },
        "migrations: up/a of notes is inside of up",
    ),
    "a database as two kinds": (
        {"migrations": [SQL, *of(kind="files", path="notes.db")["migrations"]]},
        "migrations: notes.db of notes is two kinds",
    ),
}


@pytest.mark.parametrize("change", GOOD.values(), ids=GOOD)
def test_application(change: dict[str, Any]) -> None:
    made = complete(parse_source(text({**UPDATE, **change})), APPLICATION)
    assert parse(dump(made)) == made
    assert made.base == (None if "applies_to" in change and not change["applies_to"].get("versions") else "1.0.0")


@pytest.mark.parametrize(("change", "why"), BAD.values(), ids=BAD)
def test_application_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidManifest, match=f"^cannot use the metadata: .*{why}"):
        complete(parse_source(text({**UPDATE, **change})), APPLICATION)


ENTRIES: dict[str, tuple[str, File | Folder | Link, str]] = {
    "a link into another application": ("files/out", Link(link="../other"), "leads outside"),
    "a link up and out": ("files/bin/out", Link(link="../../update"), "leads outside"),
    "what is ours": ("files/.otaflow-application.json", File(mode="0644", size=0, sha256="c" * 64), "otaflow's own"),
}


@pytest.mark.parametrize(("name", "entry", "why"), ENTRIES.values(), ids=ENTRIES)
def test_application_may_not_hold(name: str, entry: File | Folder | Link, why: str) -> None:
    with pytest.raises(InvalidManifest, match=why):
        complete(parse_source(text(UPDATE)), {**APPLICATION, name: entry})


def test_a_systems_database_names_its_application() -> None:
    migration = {"database": {"kind": "files", "path": "uploads"}, "program": ["moves/run"]}
    with pytest.raises(InvalidManifest, match=r"migrations: .*names the `application`"):
        parse_source(text({**PLAIN, "migrations": [migration]}))


def test_irreversible() -> None:
    assert parse_source(text(FULL)).irreversible
    assert not parse_source(text({**UPDATE, "migrations": [SQL]})).irreversible
    [postgresql, sqlite] = parse_source(text(FULL)).migrations
    assert (postgresql.database.title("system"), postgresql.database.owner("system")) == ("the database notes", "")
    assert (sqlite.database.title("system"), sqlite.database.owner("system")) == ("the database a.db of a", "a")


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
    for model in (metadata.AppliesTo, metadata.Relation, metadata.Services, metadata.Check):
        keys += model.model_fields
    for model in (metadata.Migration, metadata.DatabaseSpec, metadata.Alembic):
        keys += model.model_fields
    assert [key for key in keys if f"`{key}`" not in page] == []
