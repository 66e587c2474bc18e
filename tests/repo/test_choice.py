"""Which packages are installed, in which order."""

from typing import Any

import pytest
from tuf.api.metadata import TargetFile

from otaflow.package.metadata import AppliesTo
from otaflow.repo.choice import Target, choose, read_target


def _target(version: str, versions: str | None = None, **more: Any) -> Target:
    values: dict[str, Any] = {"name": "demo", "kind": "system", "models": [], **more}
    applies = AppliesTo(models=values.pop("models"), versions=versions)
    return Target(f"{version}.nsu", 1, {"sha256": "00"}, version=version, update_number=1, applies_to=applies, **values)


CASES: dict[str, tuple[list[Target], list[str]]] = {
    "nothing there": ([], []),
    "all, ascending": ([_target("1.10.0"), _target("1.2.0"), _target("1.1.0")], ["1.1.0", "1.2.0", "1.10.0"]),
    "not what is installed or older": ([_target("1.0.0"), _target("0.9.0")], []),
    "a release after its candidates": ([_target("2.0.0"), _target("2.0.0-rc.1")], ["2.0.0-rc.1", "2.0.0"]),
    "each applies to the former": (
        [_target("1.2.0", "1.1.0"), _target("1.1.0", "1.0.0"), _target("1.3.0", ">=1.2.0,<2.0.0")],
        ["1.1.0", "1.2.0", "1.3.0"],
    ),
    "a gap ends the row": ([_target("1.1.0"), _target("1.3.0", "1.2.0")], ["1.1.0"]),
    "the way to the highest leaves one out": ([_target("1.1.0"), _target("1.2.0", "1.0.0")], ["1.2.0"]),
    "the longest way to the highest": (
        [_target("1.1.0"), _target("1.2.0", "<1.2.0"), _target("1.3.0", ">=1.0.0")],
        ["1.1.0", "1.2.0", "1.3.0"],
    ),
    "other model": ([_target("1.1.0", models=["b"]), _target("1.2.0", models=["a", "b"])], ["1.2.0"]),
    "other system": ([_target("1.1.0", name="other")], []),
    "application": ([_target("1.1.0", kind="application")], []),
}


@pytest.mark.parametrize(("targets", "expected"), CASES.values(), ids=CASES)
def test_choose(targets: list[Target], expected: list[str]) -> None:
    chosen = choose(targets, installed="1.0.0", model="a", name="demo")
    assert [target.version for target in chosen] == expected


GOOD = {"name": "demo", "kind": "system", "version": "1.0.0", "update_number": 1}
CUSTOM: dict[str, tuple[Any, bool]] = {
    "good": (GOOD, True),
    "a key of a later otaflow": ({**GOOD, "colour": "red"}, True),
    "a condition of a later otaflow": ({**GOOD, "applies_to": {"hardware": "rev 2"}}, False),
    "no version": ({**GOOD, "version": "one"}, False),
    "no number": ({**GOOD, "update_number": "many"}, False),
    "cannot name another file": ({**GOOD, "path": "/etc/passwd"}, True),
    "a list": ([], False),
    "nothing": (None, False),
}


@pytest.mark.parametrize(("custom", "understood"), CUSTOM.values(), ids=CUSTOM)
def test_read_target(custom: Any, understood: bool) -> None:
    fields = {} if custom is None else {"custom": {"otaflow": custom}}
    target = read_target(TargetFile(1, {"sha256": "00"}, "a.nsu", fields))
    assert (target is not None) is understood
    if target is not None:
        assert target.path == "a.nsu"
