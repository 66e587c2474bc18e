"""SQL scripts as pieces: statements with their lines, cut where they end and not inside strings and bodies."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from otaflow.errors import MigrationFailed

# What may hold a `;` without ending a statement, longest first. An unclosed one reaches to the end.
SQLITE = re.compile(
    r"--[^\n]*|/\*.*?(?:\*/|\Z)|'[^']*(?:'|\Z)|\"[^\"]*(?:\"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*(?:\]|\Z)|;",
    re.DOTALL,
)
NOTHING = re.compile(r"(?:\s+|--[^\n]*|/\*.*?(?:\*/|\Z))*", re.DOTALL)
SHOWN = 120


class Statement(NamedTuple):
    """One statement of a script, and the line (from 1) that it begins in."""

    text: str
    line: int

    @property
    def words(self) -> list[str]:
        """Its first two words, in capitals, without comments."""
        return [word.upper() for word in re.findall(r"\w+", self.text[:SHOWN])[:2]]

    def show(self) -> str:
        """Its beginning, for error messages."""
        words = " ".join(self.text.split())
        return words if len(words) <= SHOWN else f"{words[:SHOWN]}…"


def read_script(script: Path) -> str:
    """The script's text. MigrationFailed when it cannot be read or is no UTF-8."""
    try:
        return script.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MigrationFailed(f"cannot read the script {script.name}: {error}") from error


def split_statements(
    text: str, ends: re.Pattern[str] = SQLITE, complete: Callable[[str], bool] = bool
) -> Iterator[Statement]:
    """The statements of `text`, each from its first word; `complete` says whether a `;` really ends one."""
    start = line = 0
    for found in ends.finditer(text):
        if found[0] == ";" and complete(text[start : found.end()]):
            yield from _cut(text, start, found.end(), line)
            line += text.count("\n", start, found.end())
            start = found.end()
    yield from _cut(text, start, len(text), line)


def _cut(text: str, start: int, end: int, line: int) -> Iterator[Statement]:
    """The statement without the blanks and comments before it; none where there is nothing else."""
    skipped = NOTHING.match(text, start, end)
    assert skipped is not None
    words = text[skipped.end() : end].strip()
    if words not in ("", ";"):
        yield Statement(words, line + text.count("\n", start, skipped.end()) + 1)
