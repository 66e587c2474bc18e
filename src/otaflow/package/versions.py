"""Versions and constraints on them. Rules without I/O; what cannot be read is a ValueError with the reason.

* a version is a semantic version 2.0.0 in its one canonical text (`1.4.0`, `2.0.0-rc.1`; no `v`, no blanks);
* order is SemVer's precedence: `2.0.0-rc.1 < 2.0.0`, and build data (`+…`) does not count;
* a constraint is comparisons joined by commas that must all hold (`>=1.0.0,<2.0.0`), or one bare version, which means
  exactly that one. Comparisons: `>= > <= < == !=`.
"""

import operator
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semver import Version

MAX_LENGTH = 128

_TERM = re.compile(r"(>=|<=|==|!=|>|<)?\s*(\S+)")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


def read_version(text: str) -> "Version":
    """The version that `text` is. ValueError where it is none, or not in canonical form."""
    from semver import Version

    if len(text) > MAX_LENGTH or not text.isascii():
        raise ValueError(f"{text[:MAX_LENGTH]!r} is not a semantic version")
    try:
        version = Version.parse(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{text!r} is not a semantic version such as 1.4.0") from error
    if str(version) != text:
        raise ValueError(f"{text!r} is not in canonical form, {version} is")
    return version


def check_version(text: str) -> str:
    """Return `text` when it is a version; ValueError says why not."""
    read_version(text)
    return text


def check_constraint(text: str) -> str:
    """Return `text` when it is a constraint; ValueError says why not."""
    _terms(text)
    return text


def matches(version: str, constraint: str) -> bool:
    """Whether `version` meets every comparison of `constraint`. ValueError when either cannot be read."""
    have = read_version(version)
    return all(_COMPARE[sign](have, wanted) for sign, wanted in _terms(constraint))


def newer(a: str, b: str) -> bool:
    """Whether version `a` is higher than version `b`. ValueError when either cannot be read."""
    return bool(read_version(a) > read_version(b))


def find_exact(constraint: str) -> str | None:
    """The one version that `constraint` names (`1.0.0`, `==1.0.0`); None where it allows others."""
    terms = _terms(constraint)
    return str(terms[0][1]) if len(terms) == 1 and terms[0][0] == "==" else None


def same(a: str, b: str) -> bool:
    """Whether versions `a` and `b` are equally high. ValueError when either cannot be read."""
    return bool(read_version(a) == read_version(b))


def _terms(constraint: str) -> "list[tuple[str, Version]]":
    """The comparisons of a constraint, as sign and version."""
    terms = []
    for part in constraint.split(","):
        term = _TERM.fullmatch(part.strip())
        if term is None:
            raise ValueError(f"{constraint!r} is not a constraint such as '>=1.0.0,<2.0.0' or '1.0.0'")
        terms.append((term[1] or "==", read_version(term[2])))
    return terms
