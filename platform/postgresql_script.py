"""What a SQL script for psql must not hold: commands of psql itself, and the end of its one transaction."""

import re
from collections.abc import Iterator
from pathlib import Path

from otaflow.errors import MigrationFailed
from otaflow.platform.sql_text import Statement, read_script, split_statements

# What may hold a `;` or a `\` as mere text. An unclosed one reaches to the end.
QUOTED = re.compile(
    r"--[^\n]*|/\*(?:(?!/\*|\*/).)*\*/|/\*|(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z)|'[^']*(?:'|\Z)|\"[^\"]*(?:\"|\Z)|"
    r"(?<![\w$])\$((?:[^\W\d]\w*)?)\$.*?(?:\$\1\$|\Z)|\\\S*|;",
    re.DOTALL,
)
ENDING = {"BEGIN", "COMMIT", "END", "ABORT", "ROLLBACK"}
WITH_BODY = re.compile(r"CREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE)\b.*\bBEGIN\s+ATOMIC\b", re.I | re.DOTALL)


def list_statements(text: str) -> Iterator[Statement]:
    """The statements of a script."""
    return split_statements(text, QUOTED, _is_complete)


def check_script(script: Path) -> None:
    """MigrationFailed, with the line, when it holds what it must not."""
    text = read_script(script)
    for found in QUOTED.finditer(text):
        if found[0].startswith("\\") or found[0] == "/*":
            what = "comments inside comments" if found[0] == "/*" else f"{found[0]}: commands of psql"
            _refuse(script, text.count("\n", 0, found.start()) + 1, f"{what} are not for a migration")
    for statement in list_statements(text):
        words = [*statement.words, ""]
        if words[0] in ENDING and words[:2] != ["ROLLBACK", "TO"]:
            _refuse(script, statement.line, f"{words[0]}: the whole script is one transaction already")
        if words[:2] in (["START", "TRANSACTION"], ["PREPARE", "TRANSACTION"]):
            _refuse(script, statement.line, f"{' '.join(words[:2])}: the whole script is one transaction already")
        if words[0] == "COPY" and re.search(r"\b(FROM\s+STDIN|TO\s+STDOUT)\b", statement.text, re.IGNORECASE):
            _refuse(script, statement.line, "COPY: a script cannot hold its data; write INSERT")


def _refuse(script: Path, line: int, why: str) -> None:
    raise MigrationFailed(f"cannot run {script.name}, line {line}: {why}")


def _is_complete(text: str) -> bool:
    """A function whose body is SQL ends with the END of its BEGIN ATOMIC."""
    if not WITH_BODY.search(text):
        return True
    words = [word.upper() for word in re.findall(r"\w+", text)]
    return words.count("END") >= words.count("BEGIN") + words.count("CASE")
