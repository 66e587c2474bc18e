"""PostgreSQL databases of applications, by PostgreSQL's own client programs.

A dump is an archive of pg_dump's custom format. It is brought back into a new database, from template0, so that nothing
of a failed migration remains; then the two change names in one transaction. Each beginning finds what a power cut left
by its name, and removes it.
"""

import hashlib
import logging
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from otaflow.errors import CommandFailed, DatabaseFailed, MigrationFailed, ProcessSwPackageCancelled
from otaflow.files import fsync_file, fsync_folder
from otaflow.platform.directories import hidden
from otaflow.platform.postgresql_script import check_script, list_statements
from otaflow.platform.run import CANCELLED, TIMED_OUT, Completed, run

log = logging.getLogger("otaflow.postgresql")

LONG = 24 * 3600.0
"""Seconds that a dump, and what reads it, may take; the caller's timeout is for what is soon done."""
LONGEST_NAME = 63
DURABLE = "-c synchronous_commit=local"
"""What is answered is on the server's own disk, whatever the server, the database or the user is set to."""
MAINTENANCE = ("postgres", "template1")
"""Databases to connect to while ours is made, renamed or dropped."""
OPTIONS = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "connect_timeout": "PGCONNECT_TIMEOUT"}
OPTIONS |= {f"ssl{word}": f"PGSSL{word.upper()}" for word in ("mode", "cert", "key", "rootcert", "crl")}
ABOUT = re.compile(
    r"(CREATE DATABASE|ALTER DATABASE|COMMENT ON DATABASE|(?:GRANT|REVOKE)\b.*? ON DATABASE|"
    r'ALTER ROLE (?:"(?:[^"]|"")+"|\w+) IN DATABASE) ("(?:[^"]|"")+"|\w+)',
    re.DOTALL,
)


class PostgresDatabase:
    """The Database protocol (protocols.py) on `postgresql://USER@HOST:PORT/NAME`, or with `?host=FOLDER`.

    The user owns the database and may create others. `timeout` is for one statement or connection, in seconds.
    """

    def __init__(self, url: str, password_file: Path | None, timeout: float) -> None:
        parts = urlsplit(url)
        self.name = unquote(parts.path.removeprefix("/"))
        self.timeout = timeout
        self._parts, self._password_file = parts, password_file
        options = dict(parse_qsl(parts.query))
        if not self.name or (unknown := options.keys() - OPTIONS.keys()):
            why = f"it has {', '.join(sorted(unknown))}" if self.name else "it names no database"
            raise DatabaseFailed(f"cannot use the URL of the database {self.name}: {why}".replace("  ", " "))
        host, user = unquote(parts.hostname or ""), unquote(parts.username or "")
        given = {"host": host, "port": str(parts.port or ""), "user": user, **options}
        self._options = {OPTIONS[key]: value for key, value in given.items() if value}
        self._new, self._aside = _derive_name(self.name, "new"), _derive_name(self.name, "old")

    @property
    def url(self) -> str:
        parts, password = self._parts, self._read_password()
        user, _, place = parts.netloc.rpartition("@")
        user = user.partition(":")[0] + (f":{quote(password, safe='')}" if password else "")
        query = f"?{parts.query}" if parts.query else ""
        # SQLAlchemy takes the database's name as it is
        return f"postgresql://{user}@{place}/{self.name}{query}" if user else f"postgresql://{place}/{self.name}{query}"

    def exists(self) -> bool:
        with self._explain("find"):
            return bool(self._ask(f"SELECT 1 FROM pg_database WHERE datname = {_literal(self.name)}"))

    def size(self) -> int:
        """As it is on the server's disk; a dump is compressed."""
        found = f"SELECT pg_database_size(datname) FROM pg_database WHERE datname = {_literal(self.name)}"
        with self._explain("measure"):
            return int(self._ask(found) or 0)

    def sync(self) -> None:
        """A server may answer before a commit is on its disk (`synchronous_commit`): after one that is, all are."""
        with self._explain("sync"):
            self._ask("SELECT pg_logical_emit_message(true, 'otaflow', 'sync')")  # a commit that writes something

    def dump(self, target: Path) -> None:
        """The database at one moment, whoever writes meanwhile; a `target` that is there is replaced as a whole."""
        new = hidden(target, "new")
        with self._explain("dump"):
            self._remove_left_over()
            new.unlink(missing_ok=True)
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            try:
                lock = f"--lock-wait-timeout={int(self.timeout * 1000)}"
                self._call(
                    "pg_dump", "--format=custom", "--compress=1", lock, f"--file={new}", self._connect(self.name)
                )
                fsync_file(new)
                os.rename(new, target)
                fsync_folder(target.parent)
            except BaseException:
                new.unlink(missing_ok=True)
                raise

    def check(self, dump: Path) -> None:
        with self._explain(f"use the dump {dump} of"):
            self._call("pg_restore", "--list", dump)
            self._call("pg_restore", "--file=/dev/null", dump)

    def restore(self, dump: Path | None) -> None:
        """Whoever is connected is disconnected. DatabaseFailed, and all is as it was, when the dump cannot be used."""
        with self._explain("restore"):
            self._remove_left_over()
            if dump is None:
                self._drop(self.name)
                return
            with tempfile.TemporaryDirectory(prefix="otaflow-") as folder:
                create, *settings = self._read_properties(dump, Path(folder))
            self._ask(create)
            self._call("pg_restore", "--exit-on-error", "--dbname", self._connect(self._new), dump)
            for setting in settings:  # after the content: a database may be set to be read only
                self._ask(setting)
            self._switch()
            try:
                self._drop(self._aside)
            except CommandFailed as error:
                log.warning("the former database %s is left over: %s", self._aside, _find_reason(error))

    def execute(self, script: Path, timeout: float, cancelled: Callable[[], bool] | None = None) -> None:
        """Where there is no such database, it is made. Commands of psql (`\\!`, `\\copy`) are refused."""
        check_script(script)
        made = not self.exists()
        try:
            with self._explain("migrate"):
                if made:
                    self._ask(f"CREATE DATABASE {_identifier(self.name)}")
                self._run_script(script, timeout, cancelled)
        except BaseException:
            if made:
                with suppress(CommandFailed):
                    self._drop(self.name)
            raise

    def _run_script(self, script: Path, timeout: float, cancelled: Callable[[], bool] | None) -> None:
        mark = f"otaflow-{uuid.uuid4()}"
        milliseconds = max(1, int(timeout * 1000))
        environment = {"PGAPPNAME": mark, "PGOPTIONS": f"{DURABLE} -c statement_timeout={milliseconds}"}
        try:
            self._psql(
                self.name,
                *("--single-transaction", *self._restrict(), f"--file={script}"),
                timeout=timeout,
                environment=environment,
                cancelled=cancelled,
            )
        except CommandFailed as error:
            self._end_marked(mark)
            if error.returncode == CANCELLED:
                raise ProcessSwPackageCancelled(f"cannot finish {script.name}: it was cancelled") from error
            reason = self._hide(_find_reason(error))
            if error.returncode == TIMED_OUT or "due to statement timeout" in reason:
                raise MigrationFailed(f"cannot finish {script.name}: it did not end within {timeout:g} s") from error
            hint = "make room; nothing was changed" if "No space left on device" in reason else ""
            raise MigrationFailed(
                f"cannot run {script.name} on the database {self.name}: {reason}", hint=hint
            ) from error

    def _end_marked(self, mark: str) -> None:
        """A statement goes on in the server when the program that sent it is killed."""
        with suppress(CommandFailed):
            self._wait_for_none(f"application_name = {_literal(mark)}")

    def _restrict(self) -> list[str]:
        """Newer psql can be kept from its own commands; check_script has found them already."""
        known = "\\restrict" in run(["psql", "--help=commands"], timeout=self.timeout).output
        return ["--command", f"\\restrict {uuid.uuid4().hex}"] if known else []

    def _read_properties(self, dump: Path, folder: Path) -> list[str]:
        """The statements that make the database itself as it was: CREATE DATABASE first, its settings and grants."""
        entries, text = folder / "list", folder / "sql"
        self._call("pg_restore", "--create", "--list", f"--file={entries}", dump)
        lines = entries.read_text().splitlines(keepends=True)
        about = r"\d+; \d+ \d+ (DATABASE( PROPERTIES)? - |(ACL|COMMENT) - DATABASE )"
        entries.write_text("".join(line for line in lines if re.match(about, line)))
        self._call("pg_restore", "--create", f"--use-list={entries}", f"--file={text}", dump)
        new = _identifier(self._new)
        found = []
        for statement in list_statements(re.sub(r"^\\.*$", "", text.read_text(), flags=re.MULTILINE)):
            if named := ABOUT.match(statement.text):
                found.append(f"{named[1]} {new}{statement.text[named.end() :]}")
        if not found or not found[0].startswith("CREATE DATABASE"):
            raise DatabaseFailed(
                f"cannot use the dump {dump} of the database {self.name}: it does not say how to make it"
            )
        return found

    def _switch(self) -> None:
        name, new, aside = map(_identifier, (self.name, self._new, self._aside))
        renames = [f"ALTER DATABASE {new} RENAME TO {name}"]
        there = self.exists()
        try:
            if there:
                renames.insert(0, f"ALTER DATABASE {name} RENAME TO {aside}")
                self._ask(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
                self._wait_for_none(f"datname = {_literal(self.name)}")
            self._ask(*renames)
        except BaseException:
            if there:
                with suppress(CommandFailed):
                    self._ask(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            raise

    def _wait_for_none(self, which: str) -> None:
        """End the connections that `which` is true of, and return when they are gone."""
        deadline = time.monotonic() + self.timeout
        others = f"FROM pg_stat_activity WHERE {which} AND pid <> pg_backend_pid()"
        while self._ask(f"SELECT pg_terminate_backend(pid) {others} AND backend_type = 'client backend'"):
            if time.monotonic() > deadline:
                who = self._ask(f"SELECT DISTINCT usename || ' (' || application_name || ')' {others}")
                raise DatabaseFailed(f"cannot disconnect from the database {self.name}: {who}")
            time.sleep(0.05)

    def _remove_left_over(self) -> None:
        self._drop(self._new, self._aside)

    def _drop(self, *names: str) -> None:
        """Drop those that are there."""
        listed = ", ".join(map(_literal, names))
        for name in self._ask(f"SELECT datname FROM pg_database WHERE datname IN ({listed})").splitlines():
            self._ask(f"DROP DATABASE IF EXISTS {_identifier(name)} WITH (FORCE)")

    def _ask(self, *statements: str) -> str:
        """Statements, several in one transaction, on a database that is not ours; the rows, one a line."""
        commands = [f"--command={statement}" for statement in statements]
        if len(commands) > 1:
            commands.insert(0, "--single-transaction")
        failed: CommandFailed | None = None
        for maintenance in MAINTENANCE:
            try:
                return self._psql(maintenance, "--tuples-only", "--no-align", *commands).output.strip()
            except CommandFailed as error:
                failed = failed or error
                if error.returncode != 2 or "FATAL" not in error.output:  # 2: no connection
                    raise
        assert failed is not None
        raise failed

    def _psql(
        self,
        database: str,
        *arguments: str,
        timeout: float | None = None,
        environment: dict[str, str] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Completed:
        start = ["psql", "--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"]
        return run(
            [*start, f"--dbname={self._connect(database)}", *arguments],
            timeout=self.timeout if timeout is None else timeout,
            env={**self._environment(), **(environment or {})},
            cancelled=cancelled,
        )

    def _call(self, program: str, *arguments: str | Path) -> None:
        """One of the programs for dumps."""
        run([program, *arguments], timeout=LONG, env=self._environment())

    def _connect(self, name: str) -> str:
        """The name in the form that no program takes for anything else."""
        escaped = name.replace("\\", "\\\\").replace("'", "\\'")
        return f"dbname='{escaped}'"

    def _environment(self) -> dict[str, str]:
        """Where and who, for PostgreSQL's programs; the password is never among their arguments."""
        given = {"PGCLIENTENCODING": "UTF8", "PGCONNECT_TIMEOUT": str(max(2, int(self.timeout))), **self._options}
        given["PGOPTIONS"] = DURABLE
        password = self._read_password()
        return {**given, "PGPASSWORD": password} if password else given

    def _read_password(self) -> str:
        if self._password_file is None:
            return unquote(self._parts.password or "")
        try:
            return self._password_file.read_text().rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DatabaseFailed(f"cannot read the password of the database {self.name}: {error}") from error

    def _hide(self, text: str) -> str:
        password = self._read_password()
        return text.replace(password, "***") if password else text

    @contextmanager
    def _explain(self, verb: str) -> Iterator[None]:
        """Errors of the programs and of the system as DatabaseFailed, in PostgreSQL's words."""
        try:
            yield
        except CommandFailed as error:
            reason, hint = _find_reason(error), error.hint
            if "version mismatch" in error.output:
                found = re.search(r"server version: (\d+(?:\.\d+)?)", error.output)
                server = found[1] if found else "newer"
                reason = f"its server ({server}) is newer than our programs"
                hint = f"apt-get install postgresql-client-{server.split('.')[0]}"
            raise DatabaseFailed(f"cannot {verb} the database {self.name}: {self._hide(reason)}", hint=hint) from error
        except OSError as error:
            raise DatabaseFailed(f"cannot {verb} the database {self.name}: {error}") from error


def _find_reason(error: CommandFailed) -> str:
    """What PostgreSQL said went wrong, of all that its program wrote."""
    lines = [line.strip() for line in error.output.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if re.search(r"\b(ERROR|FATAL|error):", line):
            detail = [more for more in lines[number + 1 :] if more.startswith("DETAIL:")][:1]
            return " ".join([line, *detail])
    return lines[-1] if lines else str(error)


def _derive_name(name: str, what: str) -> str:
    """A name of our own for each database, short enough for PostgreSQL."""
    suffix = f"_otaflow_{what}"
    if len((name + suffix).encode()) <= LONGEST_NAME:
        return name + suffix
    return f"{hashlib.sha256(name.encode()).hexdigest()[:32]}{suffix}"


def _identifier(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _literal(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
