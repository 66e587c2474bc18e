"""Versions and constraints."""

from itertools import pairwise

import pytest

from otaflow.package.versions import check_constraint, matches, newer, read_version

MATCHES = {
    "exact": ("1.0.0", "1.0.0", True),
    "exact, other": ("1.0.1", "1.0.0", False),
    "range, low end": ("1.0.0", ">=1.0.0,<2.0.0", True),
    "range, high end": ("2.0.0", ">=1.0.0,<2.0.0", False),
    "range with blanks": ("1.5.0", ">= 1.0.0, < 2.0.0", True),
    "not one": ("1.5.0", "!=1.5.0", False),
    "equal": ("1.5.0", "==1.5.0", True),
    "greater": ("1.10.0", ">1.9.0", True),
    "at most": ("1.0.0", "<=1.0.0", True),
    "before its release": ("2.0.0-rc.1", "<2.0.0", True),
    "build does not count": ("1.0.0+b1", "1.0.0", True),
}


@pytest.mark.parametrize(("version", "constraint", "answer"), MATCHES.values(), ids=MATCHES)
def test_matches(version: str, constraint: str, answer: bool) -> None:
    assert matches(version, constraint) is answer


@pytest.mark.parametrize(
    "text", ["", ",", ">=1.0.0,", "1.0", "~1.0.0", ">= 1", "1.0.0 2.0.0", "=1.0.0", ">>1.0.0", "1.0.0\n\n,x"]
)
def test_constraint_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"constraint|version"):
        check_constraint(text)


@pytest.mark.parametrize("text", ["", "1", "1.0", "v1.0.0", "1.0.0 ", "1.0.0\n", "01.0.0", "١.0.0", "1" * 129])
def test_version_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"version|canonical"):
        read_version(text)


def test_newer() -> None:
    order = ["1.0.0-alpha", "1.0.0-alpha.2", "1.0.0-alpha.10", "1.0.0", "1.0.10", "1.1.0", "10.0.0"]
    assert [newer(b, a) for a, b in pairwise(order)] == [True] * 6
    assert not newer("1.0.0", "1.0.0")
    assert not newer("1.0.0+b", "1.0.0+a")
