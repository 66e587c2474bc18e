"""Migrations that are programs: alembic's revisions, and the package's own; enclosed, bounded, nothing left running."""

import configparser
import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from otaflow.errors import CommandFailed, MigrationFailed, ProcessSwPackageCancelled
from otaflow.platform.sandbox import CANCELLED, TIMED_OUT, run_program

URL = "OTAFLOW_DATABASE_URL"
REVISION = re.compile(r"[\w@:.+][\w@:.+-]*")
INI = "alembic.ini"
KEPT_LINES = 20

Hear = Callable[[str], None] | None
Ask = Callable[[], bool] | None


def run_alembic(
    folder: Path,
    revision: str,
    url: str,
    *,
    timeout: float,
    output: Hear,
    cancelled: Ask,
    cwd: Path,
    env: Mapping[str, str],
    writable: Sequence[Path] = (),
    protected: Sequence[Path] = (),
) -> None:
    """`alembic upgrade revision` with the revisions in `folder`, which holds `env.py` and `versions/`, or `alembic.ini`.

    The URL is in the environment (OTAFLOW_DATABASE_URL) and in the configuration (`sqlalchemy.url`).
    """
    if not REVISION.fullmatch(revision):
        raise MigrationFailed(f"cannot migrate to the revision {revision!r}: it is no name of a revision")
    with tempfile.TemporaryDirectory(prefix="otaflow-alembic-") as temporary:
        configuration = Path(temporary) / INI
        descriptor = os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            _configure(folder.absolute(), url).write(file)
        # what python would write beside the scripts is no part of the package
        environment = {**env, URL: url, "PYTHONDONTWRITEBYTECODE": "1"}
        run_migration_program(
            [sys.executable, "-m", "alembic", "-c", configuration, "upgrade", revision],
            name=f"alembic upgrade {revision}",
            cwd=cwd,
            env=environment,
            timeout=timeout,
            output=output,
            cancelled=cancelled,
            writable=writable,
            protected=protected,
        )


def run_migration_program(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout: float,
    output: Hear,
    cancelled: Ask,
    writable: Sequence[Path],
    protected: Sequence[Path],
    name: str = "",
) -> None:
    """Run the program to its end. MigrationFailed with its last words; ProcessSwPackageCancelled when `cancelled()`.

    The password of the URL in OTAFLOW_DATABASE_URL is in no line that `output` hears.
    """
    name = name or Path(argv[0]).name
    words = _Words(output, unquote(urlsplit(env.get(URL, "")).password or ""))
    try:
        status = run_program(
            argv,
            cwd=cwd,
            env=env,
            timeout=timeout,
            writable=writable,
            protected=protected,
            output=words.take,
            cancelled=cancelled,
        )
    except (CommandFailed, OSError) as error:
        hint = getattr(error, "hint", "")
        raise MigrationFailed(f"cannot run the migration {name}: {words.hide(str(error))}", hint=hint) from error
    if status == CANCELLED:
        raise ProcessSwPackageCancelled(f"cannot finish the migration {name}: it was cancelled")
    if status == TIMED_OUT:
        raise MigrationFailed(f"cannot finish the migration {name}: it did not end within {timeout:g} s")
    if status != 0:
        raise MigrationFailed(f"cannot finish the migration {name}: exit code {status}: {words.last()}")


def _configure(folder: Path, url: str) -> configparser.RawConfigParser:
    """The package's own alembic.ini, as it would be read in its folder, with our URL; or one with what is needed."""
    parser = configparser.RawConfigParser()
    own = folder / INI
    if own.is_file():
        try:
            parser.read_string(own.read_text(encoding="utf-8").replace("%(here)s", _escape(str(folder))))
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            raise MigrationFailed(f"cannot read {own.name} of the migration: {error}") from error
    elif not (folder / "env.py").is_file():
        raise MigrationFailed(f"cannot migrate: {folder.name} has neither env.py nor {INI}")
    if not parser.has_section("alembic"):
        parser.add_section("alembic")
    given = parser.get("alembic", "script_location", fallback=".")
    if ":" not in given:  # else it is inside a Python package
        parser.set("alembic", "script_location", _escape(str(folder)) if given == "." else str(folder / given))
    paths = parser.get("alembic", "prepend_sys_path", fallback=".")
    parser.set("alembic", "prepend_sys_path", str(folder / paths) if paths == "." else paths)
    parser.set("alembic", "path_separator", "os")
    parser.set("alembic", "sqlalchemy.url", _escape(url))
    return parser


def _escape(text: str) -> str:
    """Alembic takes `%` for the beginning of another key's value."""
    return text.replace("%", "%%")


class _Words:
    """A program's lines on their way to `output`: without the password, and the last of them kept."""

    def __init__(self, output: Hear, password: str) -> None:
        self._output, self._password = output, password
        self._kept: deque[str] = deque(maxlen=KEPT_LINES)

    def take(self, line: str) -> None:
        line = self.hide(line)
        self._kept.append(line)
        if self._output is not None:
            self._output(line)

    def hide(self, text: str) -> str:
        return text.replace(self._password, "***") if self._password else text

    def last(self) -> str:
        """The last line that says something: SQLAlchemy ends with where to read on."""
        said = [line.strip() for line in self._kept if line.strip()]
        if any(line.startswith("Traceback") for line in said) or not said:
            errors = [line for line in said if re.match(r"[\w.]+(Error|Exception|Warning|Exit)?: ", line)]
            return (errors or said or ["it said nothing"])[-1]
        return next((line for line in reversed(said) if not line.startswith("(Background on")), said[-1])
