"""A SQL script run on an open SQLite database, all of it in the transaction that is open, or nothing."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from otaflow.errors import MigrationFailed, ProcessSwPackageCancelled
from otaflow.platform.sql_text import Statement, read_script, split_statements

OPERATIONS = 20_000
"""Of SQLite's machine, between two looks at the clock; a few milliseconds."""
REFUSED = {
    **dict.fromkeys(["BEGIN", "COMMIT", "END", "ROLLBACK"], "the whole script is one transaction already"),
    **dict.fromkeys(["ATTACH", "DETACH"], "a script may use its own database only"),
    "VACUUM": "it cannot be part of a transaction",
}
PRAGMAS = {
    *("user_version", "application_id", "defer_foreign_keys", "legacy_alter_table", "recursive_triggers"),
    *("foreign_key_check", "foreign_key_list", "table_info", "table_xinfo", "table_list", "index_list", "index_info"),
    *("index_xinfo", "integrity_check", "quick_check", "case_sensitive_like", "optimize", "page_count", "page_size"),
}


def run_script(
    opened: sqlite3.Connection, script: Path, timeout: float, cancelled: Callable[[], bool] | None = None
) -> None:
    """Run it and commit. MigrationFailed (ProcessSwPackageCancelled when `cancelled()`), and all is rolled back."""
    run = _Run(opened, script.name, timeout, cancelled)
    opened.set_progress_handler(run.look, OPERATIONS)
    try:
        broken = run.count_broken_keys()
        for statement in split_statements(read_script(script), complete=sqlite3.complete_statement):
            run.execute(statement)
        if run.count_broken_keys() > broken:
            raise MigrationFailed(f"cannot commit {script.name}: it breaks foreign keys: {run.broken_key}")
        opened.set_authorizer(None)
        run.step("the end", "COMMIT")
    finally:
        opened.set_progress_handler(None, 0)
        opened.set_authorizer(None)
        with suppress(sqlite3.Error):
            opened.rollback()


class _Run:
    def __init__(
        self, opened: sqlite3.Connection, name: str, timeout: float, cancelled: Callable[[], bool] | None
    ) -> None:
        self.opened, self.name, self.timeout = opened, name, timeout
        self.deadline = time.monotonic() + timeout
        self.cancelled = cancelled or (lambda: False)
        self.broken_key = ""

    def look(self) -> bool:
        """Whether SQLite has to stop."""
        return time.monotonic() > self.deadline or self.cancelled()

    def execute(self, statement: Statement) -> None:
        """One statement of the script, unless it would leave the transaction or the database."""
        where, words = f"line {statement.line}", statement.words
        if words[0] in REFUSED and words != ["ROLLBACK", "TO"]:
            raise MigrationFailed(f"cannot run {self.name}, {where}: {words[0]}: {REFUSED[words[0]]}")
        denied: list[str] = []
        self.opened.set_authorizer(lambda action, one, two, *_: _authorize(action, one, two, denied))
        try:
            self.step(f"{where}: `{statement.show()}`", statement.text)
        except MigrationFailed as error:
            if denied:
                raise MigrationFailed(f"cannot run {self.name}, {where}: {denied[0]}") from error
            raise
        finally:
            self.opened.set_authorizer(None)

    def step(self, where: str, text: str) -> list[tuple[object, ...]]:
        """Run one statement to its end; the first rows of it."""
        if self.look():
            self._give_up(None)
        try:
            cursor = self.opened.execute(text)
            rows = cursor.fetchmany(1)
            while cursor.fetchmany(1000):
                pass
            return rows
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_INTERRUPT or (self.look() and code == sqlite3.SQLITE_ABORT):
                self._give_up(error)
            hint = "make room; nothing was changed" if code == sqlite3.SQLITE_FULL else ""
            why = "the disk is full" if code == sqlite3.SQLITE_FULL else str(error)
            raise MigrationFailed(f"cannot run {self.name}, {where}: {why}", hint=hint) from error

    def count_broken_keys(self) -> int:
        [(count,)] = self.step("foreign keys", "SELECT count(*) FROM pragma_foreign_key_check")
        if count:
            [(table, row, parent, _)] = self.step("foreign keys", "SELECT * FROM pragma_foreign_key_check LIMIT 1")
            self.broken_key = f"row {row} of {table} names a row of {parent} that is not there"
        assert isinstance(count, int)
        return count

    def _give_up(self, cause: Exception | None) -> None:
        if self.cancelled():
            raise ProcessSwPackageCancelled(f"cannot finish {self.name}: it was cancelled") from cause
        raise MigrationFailed(f"cannot finish {self.name}: it did not end within {self.timeout:g} s") from cause


def _authorize(action: int, one: str | None, two: str | None, denied: list[str]) -> int:
    """SQLite asks before each action of a statement, also of those inside triggers."""
    if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
        denied.append(f"ATTACH: {REFUSED['ATTACH']}")
    elif action == sqlite3.SQLITE_TRANSACTION:
        denied.append(f"{one}: {REFUSED['BEGIN']}")
    elif action == sqlite3.SQLITE_PRAGMA and (one or "").lower() == "foreign_keys":
        if (two or "").lower() in ("1", "on", "true", "yes"):
            denied.append("PRAGMA foreign_keys = ON has no effect here: they are checked when the script ends")
    elif action == sqlite3.SQLITE_PRAGMA and (one or "").lower() not in PRAGMAS:
        denied.append(f"PRAGMA {one} is not for a migration")
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK
