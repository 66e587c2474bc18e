"""Which package goes on which device, case by case."""

from typing import Any

import pytest

from otaflow.errors import IncompatibleDelta, InvalidManifest, MissingDependencies, OldVersion, OtaflowError
from otaflow.package.metadata import File, Folder, Link, Metadata, Relation, Source, complete
from otaflow.package.rules import (
    Standing,
    check_application,
    check_clusters,
    check_dependencies,
    check_installable,
    check_removable,
)


def make(
    version: str, base: str | None = None, *, name: str = "notes", kind: str = "application", **more: Any
) -> Metadata:
    applies = {"models": more.pop("models", []), "versions": base}
    author = {"format": 1, "name": name, "kind": kind, "version": version, "update_number": 1, "applies_to": applies}
    empty, folder = File(mode="0755", size=0, sha256="a" * 64), Folder(mode="0755")
    system: dict[str, File | Folder | Link] = {"update": empty, "assets": folder, "assets/2.sql": empty}
    return complete(Source.model_validate({**author, **more}), system if kind == "system" else {"files": folder})


def relation(text: str) -> Relation:
    name, versions = text.split(" ")
    return Relation(name=name, versions=versions)


Refusal = tuple[type[OtaflowError], str] | None
APPLICATION: dict[str, tuple[Metadata, dict[str, Any], Refusal]] = {
    "update of what is there": (make("1.1.0", "1.0.0"), {"installed": "1.0.0"}, None),
    "update, written with ==": (make("1.1.0", "==1.0.0"), {"installed": "1.0.0"}, None),
    "update after a way back": (make("1.1.0", "1.0.0"), {"installed": "1.0.0", "highest": "1.2.0"}, None),
    "update of a later version": (
        make("1.2.0", "1.1.0"),
        {"installed": "1.0.0"},
        (IncompatibleDelta, r"notes 1\.2\.0: it applies to exactly 1\.1\.0, and 1\.0\.0 is installed"),
    ),
    "update of an earlier version": (
        make("1.1.0", "1.0.0"),
        {"installed": "1.1.0"},
        (IncompatibleDelta, r"exactly 1\.0\.0, and 1\.1\.0"),
    ),
    "update of what is not there": (make("1.1.0", "1.0.0"), {}, (IncompatibleDelta, "notes is not installed")),
    "update of what was removed": (make("1.1.0", "1.0.0"), {"highest": "1.0.0"}, (IncompatibleDelta, "not installed")),
    "install": (make("1.0.0"), {}, None),
    "install, higher than what was there": (make("1.1.0"), {"highest": "1.0.0"}, None),
    "install, as high as what was there": (make("1.0.0"), {"highest": "1.0.0"}, (OldVersion, r"1\.0\.0 was installed")),
    "install, lower than what was there": (make("0.9.0"), {"highest": "1.0.0"}, (OldVersion, r"1\.0\.0 was installed")),
    "install over a lower one": (make("1.1.0"), {"installed": "1.0.0"}, (IncompatibleDelta, r"notes 1\.0\.0 is there")),
    "install over itself": (make("1.0.0"), {"installed": "1.0.0"}, (OldVersion, r"1\.0\.0 is installed")),
    "install over a higher one": (make("1.0.0"), {"installed": "2.0.0"}, (OldVersion, r"2\.0\.0 is installed")),
    "its model": (make("1.0.0", models=["a", "m"]), {}, None),
    "another model": (make("1.0.0", models=["a", "b"]), {}, (InvalidManifest, "made for a, b, this device is a m")),
    "a system": (make("1.0.0", kind="system"), {}, (InvalidManifest, "it is a system package")),
    "the system's name": (make("1.0.0", name="base"), {}, (InvalidManifest, "system of this device has that name")),
}


@pytest.mark.parametrize(("metadata", "device", "refusal"), APPLICATION.values(), ids=APPLICATION)
def test_application(metadata: Metadata, device: dict[str, Any], refusal: Refusal) -> None:
    there = {"installed": None, "highest": None, "model": "m", "system": "base", **device}
    if refusal is None:
        check_application(metadata, **there)
        return
    with pytest.raises(refusal[0], match=refusal[1]):
        check_application(metadata, **there)


SYSTEM: dict[str, tuple[Metadata, Refusal]] = {
    "higher": (make("1.1.0", kind="system", name="base"), None),
    "range": (make("1.1.0", ">=0.9.0,<1.1.0", kind="system", name="base"), None),
    "services and data": (
        make(
            "1.1.0",
            kind="system",
            name="base",
            services={"restart": ["a.service"]},
            migrations=[{"database": {"kind": "postgresql", "name": "a"}, "sql": ["2.sql"]}],
        ),
        None,
    ),
    "application of that name": (make("1.1.0", name="base"), (InvalidManifest, "it is an application")),
    "other name": (make("1.1.0", kind="system"), (InvalidManifest, "this device runs base")),
    "same": (make("1.0.0", kind="system", name="base"), (OldVersion, "must be higher")),
    "another start": (make("1.1.0", "1.0.5", kind="system", name="base"), (IncompatibleDelta, r"applies to 1\.0\.5")),
    "another model": (make("1.1.0", kind="system", name="base", models=["x"]), (InvalidManifest, "made for x")),
}


@pytest.mark.parametrize(("metadata", "refusal"), SYSTEM.values(), ids=SYSTEM)
def test_system(metadata: Metadata, refusal: Refusal) -> None:
    if refusal is None:
        check_installable(metadata, name="base", version="1.0.0", model="m")
        return
    with pytest.raises(refusal[0], match=refusal[1]):
        check_installable(metadata, name="base", version="1.0.0", model="m")


def test_removable() -> None:
    check_removable(make("1.1.0", kind="system", name="base"), name="base", version="1.1.0")
    for metadata in (make("1.0.0", kind="system", name="base"), make("1.1.0", name="base")):
        with pytest.raises(IncompatibleDelta):
            check_removable(metadata, name="base", version="1.1.0")


def needs(version: str, *texts: str, name: str = "notes") -> Metadata:
    return make(version, name=name, dependencies=[relation(text).model_dump() for text in texts])


def hates(version: str, *texts: str, name: str = "notes") -> Metadata:
    return make(version, name=name, conflicts=[relation(text).model_dump() for text in texts])


def stands(name: str, needs: str = "", hates: str = "") -> Standing:
    return name, [relation(needs)] if needs else [], [relation(hates)] if hates else []


CLUSTERS: dict[str, tuple[list[Metadata], dict[str, str], list[Standing], str]] = {
    # the session's packages, what will be there, what is installed, what is said
    "nothing": ([], {"base": "1.0.0"}, [], ""),
    "depends on the session's other": (
        [needs("1.0.0", "base >=1.1.0"), make("1.1.0", name="base", kind="system")],
        {"base": "1.1.0", "notes": "1.0.0"},
        [],
        "",
    ),
    "depends on what stands": ([needs("1.0.0", "base >=1.0.0")], {"base": "1.0.0", "notes": "1.0.0"}, [], ""),
    "depends on what is not there": (
        [needs("1.0.0", "lib >=1.0.0")],
        {"notes": "1.0.0"},
        [],
        r"notes 1\.0\.0 depends on lib >=1\.0\.0, and none would be there",
    ),
    "takes from what stands": (
        [make("2.0.0", name="lib")],
        {"notes": "1.0.0", "lib": "2.0.0"},
        [stands("notes", "lib <2.0.0"), stands("lib")],
        r"notes depends on lib <2\.0\.0, and 2\.0\.0 would be there",
    ),
    "takes from what stands, which follows": (
        [make("2.0.0", name="lib"), needs("1.1.0", "lib >=2.0.0")],
        {"notes": "1.1.0", "lib": "2.0.0"},
        [stands("notes", "lib <2.0.0"), stands("lib")],
        "",
    ),
    "removes what another one needs": (
        [],
        {"notes": "1.0.0"},
        [stands("notes", "lib >=1.0.0"), stands("lib")],
        r"notes depends on lib >=1\.0\.0, and none would be there",
    ),
    "removes both": ([], {"base": "1.0.0"}, [stands("notes", "lib >=1.0.0"), stands("lib")], ""),
    "conflicts with what stands": (
        [hates("1.0.0", "lib <2.0.0")],
        {"notes": "1.0.0", "lib": "1.0.0"},
        [stands("lib")],
        r"notes 1\.0\.0 conflicts with lib <2\.0\.0, and 1\.0\.0 would be there",
    ),
    "what stands conflicts with it": (
        [make("1.0.0")],
        {"notes": "1.0.0", "lib": "1.0.0"},
        [stands("lib", hates="notes >=1.0.0")],
        "lib conflicts with notes",
    ),
    "a conflict that goes": ([hates("1.0.0", "lib <2.0.0")], {"notes": "1.0.0"}, [stands("lib")], ""),
    "only the last of a row counts": (
        [needs("1.1.0", "lib <2.0.0"), needs("1.2.0", "lib >=2.0.0")],
        {"notes": "1.2.0", "lib": "2.0.0"},
        [],
        "",
    ),
}


@pytest.mark.parametrize(("packages", "clusters", "standing", "said"), CLUSTERS.values(), ids=CLUSTERS)
def test_clusters(packages: list[Metadata], clusters: dict[str, str], standing: list[Standing], said: str) -> None:
    if not said:
        check_clusters(packages, clusters, standing)
        for package in packages[-1:]:
            check_dependencies(package, clusters)
        return
    with pytest.raises(MissingDependencies, match=f"^cannot activate: {said}"):
        check_clusters(packages, clusters, standing)
