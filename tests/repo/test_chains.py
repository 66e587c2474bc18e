"""Which updates bring an application where, in which order; and which link is missing where nothing does."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otaflow.errors import IncompatibleDelta, OldVersion
from otaflow.package.metadata import AppliesTo
from otaflow.package.versions import newer
from otaflow.repo.chains import choose_updates, find_chain
from otaflow.repo.choice import Target, choose


def make(version: str, base: str | None = None, **more: Any) -> Target:
    """The package that brings `version`; its hash is `base>version`, or what is given."""
    values: dict[str, Any] = {"name": "notes", "kind": "application", "models": [], **more}
    values.setdefault("hash", f"{(base or 'None').removeprefix('==')}>{version}")
    applies = AppliesTo(models=values.pop("models"), versions=base)
    hashes = {"sha256": values.pop("hash")}
    path = f"{values['name']}-{version}.nua"
    return Target(path, 1, hashes, version=version, update_number=1, applies_to=applies, **values)


def needs(name: str) -> dict[str, Any]:
    return {"dependencies": [{"name": name, "versions": ">=1.0.0"}]}


ROW = [make("1.0.0"), make("1.1.0", "1.0.0"), make("1.2.0", "==1.1.0"), make("1.3.0", "1.2.0")]
SHORT = [*ROW, make("1.3.0", "1.0.0")]

FOUND: dict[str, tuple[list[Target], str | None, str | None, list[str]]] = {
    # the repository, installed, to, the chain
    "install": (ROW, None, "1.0.0", ["None>1.0.0"]),
    "install and update": (ROW, None, "1.1.0", ["None>1.0.0", "1.0.0>1.1.0"]),
    "install the highest": (ROW[:2], None, None, ["None>1.0.0", "1.0.0>1.1.0"]),
    "update": (ROW, "1.1.0", "1.2.0", ["1.1.0>1.2.0"]),
    "update over others": (ROW, "1.0.0", "1.2.0", ["1.0.0>1.1.0", "1.1.0>1.2.0"]),
    "update to the highest": (ROW, "1.1.0", None, ["1.1.0>1.2.0", "1.2.0>1.3.0"]),
    "the fewest packages": (SHORT, "1.0.0", "1.3.0", ["1.0.0>1.3.0"]),
    "the fewest packages, from nothing": (SHORT, None, None, ["None>1.0.0", "1.0.0>1.3.0"]),
    "install anew at once": ([*ROW, make("1.2.0")], None, "1.3.0", ["None>1.2.0", "1.2.0>1.3.0"]),
    "never installed anew over what is there": ([make("2.0.0"), *ROW], "1.2.0", None, ["1.2.0>1.3.0"]),
    "is there": (ROW, "1.1.0", "1.1.0", []),
    "is there, nothing higher": (ROW, "1.3.0", None, []),
    "no such application, nothing higher": ([], "1.3.0", None, []),
    "other build": ([make("1.1.0", "1.0.0+b")], "1.0.0+a", None, ["1.0.0+b>1.1.0"]),
    "other model": ([make("1.1.0", "1.0.0", models=["b"])], "1.0.0", None, []),
    "its model": ([make("1.1.0", "1.0.0", models=["m"])], "1.0.0", None, ["1.0.0>1.1.0"]),
    "other application": ([make("1.1.0", "1.0.0", name="other")], "1.0.0", None, []),
    "a system of that name": ([make("1.1.0", "1.0.0", kind="system")], "1.0.0", None, []),
    "a range": ([make("1.1.0", ">=1.0.0")], "1.0.0", None, []),
    "downwards": ([make("1.0.0", "1.1.0"), make("0.9.0", "1.1.0")], "1.1.0", None, []),
    "a circle": (
        [make("1.1.0", "1.0.0"), make("1.0.0", "1.1.0"), make("1.0.0", "1.0.0")],
        "1.0.0",
        None,
        ["1.0.0>1.1.0"],
    ),
}


def chain(way: list[Target]) -> list[str]:
    return [target.hashes["sha256"] for target in way]


@pytest.mark.parametrize(("targets", "installed", "to", "expected"), FOUND.values(), ids=FOUND)
def test_find_chain(targets: list[Target], installed: str | None, to: str | None, expected: list[str]) -> None:
    for known in (targets, targets[::-1]):
        assert chain(find_chain(known, name="notes", installed=installed, to=to, model="m")) == expected


NOTHING = "nothing in the repository"
MISSING: dict[str, tuple[list[Target], str | None, str | None, str]] = {
    # the repository, installed, to, what is said
    "a link is missing": (
        [make("1.3.0", "1.2.0")],
        "1.1.0",
        "1.3.0",
        f"cannot update notes to 1.3.0: {NOTHING} updates 1.1.0; 1.3.0 applies to 1.2.0 and no package brings 1.2.0",
    ),
    "a link is missing in the middle": (
        [make("1.1.0", "1.0.0"), make("1.3.0", "1.2.0"), make("1.4.0", "1.3.0")],
        "1.0.0",
        "1.4.0",
        f"cannot update notes to 1.4.0: {NOTHING} updates 1.1.0; 1.3.0 applies to 1.2.0 and no package brings 1.2.0",
    ),
    "the last one": (
        ROW,
        "1.0.0",
        "1.4.0",
        f"cannot update notes to 1.4.0: {NOTHING} updates 1.3.0; no package brings 1.4.0",
    ),
    "what is there leads past it": (
        [make("1.4.0", "1.0.0"), make("1.3.0", "1.2.0")],
        "1.0.0",
        "1.3.0",
        "cannot update notes to 1.3.0: what updates 1.0.0 brings 1.4.0; "
        "1.3.0 applies to 1.2.0 and no package brings 1.2.0",
    ),
    "applies to a lower one": (
        [make("1.3.0", "1.0.0")],
        "1.1.0",
        "1.3.0",
        f"cannot update notes to 1.3.0: {NOTHING} updates 1.1.0; 1.3.0 applies to 1.0.0, and 1.1.0 is installed",
    ),
    "installs anew only": (
        [make("1.3.0")],
        "1.1.0",
        "1.3.0",
        f"cannot update notes to 1.3.0: {NOTHING} updates 1.1.0; "
        "1.3.0 is there only as a package that installs it anew, and 1.1.0 is installed",
    ),
    "for another model": (
        [make("1.2.0", "1.1.0", models=["b", "c"]), make("1.3.0", "1.2.0")],
        "1.1.0",
        "1.3.0",
        f"cannot update notes to 1.3.0: {NOTHING} updates 1.1.0; "
        "1.3.0 applies to 1.2.0 and 1.2.0 is there for b, c only, and this device is a m",
    ),
    "nothing installs it": (
        [make("1.1.0", "1.0.0"), make("1.2.0", "1.1.0")],
        None,
        "1.2.0",
        f"cannot install notes 1.2.0: {NOTHING} installs notes; 1.1.0 applies to 1.0.0 and no package brings 1.0.0",
    ),
    "nothing installs it, any version": (
        [make("1.1.0", "1.0.0")],
        None,
        None,
        f"cannot install notes: {NOTHING} installs notes; 1.1.0 applies to 1.0.0 and no package brings 1.0.0",
    ),
    "installed, and then no further": (
        [make("1.0.0"), make("1.2.0", "1.1.0")],
        None,
        "1.2.0",
        f"cannot install notes 1.2.0: {NOTHING} updates 1.0.0; 1.2.0 applies to 1.1.0 and no package brings 1.1.0",
    ),
    "for another model, not installed": (
        [make("1.0.0", models=["b"])],
        None,
        None,
        f"cannot install notes: {NOTHING} installs notes; 1.0.0 is there for b only, and this device is a m",
    ),
    "no such application": (
        [make("1.0.0", name="other"), make("1.0.0", kind="system")],
        None,
        None,
        "cannot install notes: the repository has no application of that name",
    ),
}


@pytest.mark.parametrize(("targets", "installed", "to", "said"), MISSING.values(), ids=MISSING)
def test_missing_link_is_named(targets: list[Target], installed: str | None, to: str | None, said: str) -> None:
    for known in (targets, targets[::-1]):
        with pytest.raises(IncompatibleDelta, match=f"^{re.escape(said)}$"):
            find_chain(known, name="notes", installed=installed, to=to, model="m")


def test_no_way_down() -> None:
    with pytest.raises(OldVersion, match=r"cannot update notes to 1\.0\.0: 1\.1\.0 is installed"):
        find_chain([*ROW, make("1.0.0", "1.1.0")], name="notes", installed="1.1.0", to="1.0.0", model="m")


def test_what_failed_is_gone_around() -> None:
    known = [*SHORT, make("1.4.0", "1.3.0")]

    def go(*avoid: str) -> list[str]:
        return chain(find_chain(known, name="notes", installed="1.0.0", to=None, model="m", avoid=avoid))

    assert go() == ["1.0.0>1.3.0", "1.3.0>1.4.0"]
    assert go("1.0.0>1.3.0") == ["1.0.0>1.1.0", "1.1.0>1.2.0", "1.2.0>1.3.0", "1.3.0>1.4.0"]
    assert go("1.0.0>1.3.0", "1.1.0>1.2.0", "1.2.0>1.3.0") == ["1.0.0>1.3.0", "1.3.0>1.4.0"]
    assert go("1.3.0>1.4.0") == ["1.0.0>1.3.0", "1.3.0>1.4.0"], "the highest version comes first, as with systems"


def test_updates_of_all_applications() -> None:
    known = [
        make("2.0.0", kind="system", name="base"),
        make("1.1.0", "1.0.0", name="a", **needs("b"), hash="a"),
        make("1.1.0", "1.0.0", name="b", hash="b1"),
        make("1.2.0", "1.1.0", name="b", hash="b2"),
        make("1.1.0", "1.0.0", name="c", hash="c"),
        make("1.0.0", name="d", hash="d"),
    ]

    def go(**installed: str) -> list[str]:
        return chain(choose_updates(known, installed, "m"))

    assert go() == []
    assert go(c="1.0.0") == ["c"]
    assert go(a="1.0.0", b="1.0.0", c="1.1.0") == ["b1", "b2", "a"], "what is depended on comes first"
    assert go(a="1.0.0", c="1.0.0") == ["a", "c"]
    assert choose(known, installed="1.0.0", model="m", name="base") == known[:1]


def test_updates_that_depend_on_each_other() -> None:
    known = [
        make("1.1.0", "1.0.0", name="a", **needs("b"), hash="a"),
        make("1.1.0", "1.0.0", name="b", **needs("a"), hash="b"),
    ]
    assert chain(choose_updates(known, {"b": "1.0.0", "a": "1.0.0"}, "m")) == ["a", "b"]


versions = st.sampled_from([f"1.{minor}.0" for minor in range(5)])
packages = st.lists(st.builds(make, versions, st.none() | versions), max_size=8)


@settings(deadline=None)
@given(targets=packages, installed=st.none() | versions, to=st.none() | versions, avoid=st.sets(versions))
def test_any_repository(targets: list[Target], installed: str | None, to: str | None, avoid: set[str]) -> None:
    """A chain begins where the device is, goes up link by link, and ends where it was asked to; else it is refused."""
    try:
        way = find_chain(targets, name="notes", installed=installed, to=to, model="m", avoid=avoid)
    except OldVersion:
        assert installed is not None
        assert to is not None
        assert newer(installed, to)
        return
    except IncompatibleDelta:
        return
    at = installed
    for target in way:
        assert target.applies_to.versions == at
        assert at is None or newer(target.version, at)
        at = target.version
    assert to is None or at == to
