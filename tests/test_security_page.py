"""docs/security.md is true: each test that it names is collected, and no case of the attack tables is missing there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs/security.md").read_text()
TABLES = ("repo/test_tuf_attacks.py", "package/test_hostile.py", "flows/test_bad_networks.py")
"""Every test of these, with each of its cases, is on the page."""
NAME = re.compile(r"(?P<file>[\w/]+\.py)::(?P<test>\w+)(?P<case>\[.*\])?$")

Test = tuple[str, str, str]
"""File below `tests`, function, and case in brackets, or an empty text."""


def read_names() -> list[Test]:
    """Every test that the page names; brackets alone are a case of the test before them."""
    names: list[Test] = []
    for line in PAGE.splitlines():
        last = ("", "")
        for word in re.findall(r"`([^`]+)`", line) if line.startswith("|") else []:
            if found := NAME.match(word):
                last = (found["file"], found["test"])
                names.append((*last, found["case"] or ""))
            elif word.startswith("["):
                assert last[0], f"no test before {word}"
                names.append((*last, word))
    return names


NAMED = read_names()


def read_functions(file: str) -> list[str]:
    """The names of the file's tests."""
    return re.findall(r"^\s*def (test_\w+)\(", (TESTS / file).read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def collected() -> set[Test]:
    """What pytest finds in the files of which the page names cases, without running it; of others, the functions."""
    files = sorted({file for file, _, case in NAMED if case} | set(TABLES))
    found = {(file, test, "") for file, _, _ in NAMED for test in read_functions(file)}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
            *(TESTS / f for f in files),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS.parent,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    lines = [NAME.match(line.removeprefix("tests/")) for line in done.stdout.splitlines()]
    return {(one["file"], one["test"], one["case"] or "") for one in lines if one} | {
        one for one in found if one[0] not in files
    }


def is_there(name: Test, collected: set[Test]) -> bool:
    """A case may stand for itself on each kind of storage."""
    file, test, case = name
    cases = [one for found, function, one in collected if (found, function) == (file, test)]
    on_each = re.compile(rf"\[(directories|btrfs)-{re.escape(case[1:])}$")
    return any(not case or one == case or on_each.match(one) for one in cases)


def test_every_test_that_is_named_is_there(collected: set[Test]) -> None:
    assert [name for name in NAMED if not is_there(name, collected)] == []


def test_every_case_of_the_attack_tables_is_named(collected: set[Test]) -> None:
    tables = {test for test in collected if test[0] in TABLES or test[1] == "test_hostile_archive"}
    assert {file for file, _, _ in tables} >= set(TABLES)
    assert sorted(tables - set(NAMED)) == []


@pytest.mark.parametrize(
    "attack",
    [
        *("arbitrary installation", "endless data", "extraneous dependencies", "fast-forward", "indefinite freeze"),
        *("malicious mirrors", "mix-and-match", "rollback", "slow retrieval", "key compromises", "wrong software"),
        *("eavesdrop", "drop-request", "partial bundle", "denial of service", "mixed-bundles", "arbitrary software"),
    ],
)
def test_every_attack_of_the_papers_has_a_row(attack: str) -> None:
    assert re.search(rf"^\| [^|]*{attack}[^|]*\|", PAGE, re.MULTILINE)
