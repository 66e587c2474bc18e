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
PLAIN = """
[alembic]
path_separator = os
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = plain
[logger_root]
level = INFO
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = plain
[formatter_plain]
format = %(message)s
"""
"""Alembic's own env.py reads the settings of Python's logging from here."""

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
    """`alembic upgrade revision` with what is in `folder`: `env.py` and `versions/`, or an `alembic.ini` beside them.

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
    words = _Words(output, urlsplit(env.get(URL, "")).password or "")
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
    parser, here = configparser.RawConfigParser(), Path(_escape(str(folder)))
    own = folder / INI
    if own.is_file():
        try:
            parser.read_string(own.read_text(encoding="utf-8").replace("%(here)s", str(here)))
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            raise MigrationFailed(f"cannot read {own.name} of the migration: {error}") from error
    elif (folder / "env.py").is_file():
        parser.read_string(PLAIN)
    else:
        raise MigrationFailed(f"cannot migrate: {folder.name} has neither env.py nor {INI}")
    if not parser.has_section("alembic"):
        parser.add_section("alembic")
    scripts = parser.get("alembic", "script_location", fallback=".")
    if ":" not in scripts:  # else they are inside a Python package
        parser.set("alembic", "script_location", str(here / scripts))
    if parser.get("alembic", "prepend_sys_path", fallback=".") == ".":
        parser.set("alembic", "prepend_sys_path", str(here))
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
        for secret in filter(None, (self._password, unquote(self._password))):
            text = text.replace(secret, "***")
        return text

    def last(self) -> str:
        """The last line that says something: SQLAlchemy goes on after the error, with the statement and a link."""
        said = [line.strip() for line in self._kept if line.strip()] or ["it said nothing"]
        errors = [line for line in said if re.match(r"[\w.]+(Error|Exception): ", line)]
        return errors[-1] if errors and said[-1].startswith(("(Background on", "[SQL:")) else said[-1]
