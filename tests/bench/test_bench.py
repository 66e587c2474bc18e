"""The measurements run, on small systems without root, and print what they promise."""

import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]

CASES = {
    "update": (
        ["--kind", "directories", "--rounds", "1", "--mb", "1", "--files", "40"],
        ["| whole | tar |", "ms for each of"],
    ),
    "memory": (["--kind", "directories", "--mb", "1", "2"], ["| 1 |", "| 2 |"]),
    "recover": (["--rounds", "1"], ["`otaflow recover`", "heavy ones: none"]),
    "poll": (["--rounds", "1", "--rest", "0.2"], ["| runner |", "| worker |", "The runner's requests: POST"]),
}


@pytest.mark.parametrize(("name", "arguments", "promised"), [(n, *c) for n, c in CASES.items()], ids=list(CASES))
def test_it_prints_its_tables(name: str, arguments: list[str], promised: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", *arguments], cwd=TOP, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for text in promised:
        assert text in done.stdout


def test_the_same_seed_makes_the_same_system(tmp_path: Path) -> None:
    sys.path.insert(0, str(TOP))
    try:
        from bench.system import make_system
    finally:
        sys.path.remove(str(TOP))
    for name in ("one", "other"):
        make_system(tmp_path / name, 200_000, 50)
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("f*")} for n in ("one", "other"))
    assert one == other
    assert len(one) == 50
