"""SQLite databases of applications: dumped by SQLite's online backup, brought back by one rename.

A dump is a database file itself. The `-wal`, `-shm` and `-journal` files beside a database belong to its content:
SQLite would replay them into whatever file has the database's name, so they go before a restored file takes it.
"""

import errno
import os
import shutil
import signal
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from otaflow.errors import CommandFailed, DatabaseFailed, MigrationFailed
from otaflow.files import fsync_file, fsync_folder
from otaflow.platform import sqlite_copy
from otaflow.platform.copying import PIECE, copy_file, copy_metadata
from otaflow.platform.directories import hidden
from otaflow.platform.run import run
from otaflow.platform.sqlite_script import run_script

HEADER = b"SQLite format 3\0"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
BESIDE = ("-wal", "-shm", "-journal")
LOCK_SECONDS = 5.0
COPY_SECONDS = 24 * 3600.0


class SqliteDatabase:
    """The Database protocol (protocols.py) on the SQLite file `path`, which must be no symbolic link."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def size(self) -> int:
        files = [self.path, self._beside("-wal")]
        return sum(file.stat().st_size for file in files if file.is_file())

    def dump(self, target: Path) -> None:
        """A consistent copy, whoever writes meanwhile; a `target` that is there already is replaced as a whole.

        It has the owners and the mode of the database. DatabaseFailed also when a writer keeps it locked.
        """
        self._require_file()
        new = hidden(target, "new")
        new.unlink(missing_ok=True)
        with self._explain("dump"):
            try:
                self._copy_to(new)
                copy_metadata(self.path, new)
                fsync_file(new)
                os.rename(new, target)
                fsync_folder(target.parent)
            except BaseException:
                new.unlink(missing_ok=True)
                raise

    def check(self, dump: Path) -> None:
        """Every page of it is read, and the structure verified (PRAGMA quick_check)."""
        try:
            _read_through(dump)
            # immutable: a dump has nothing beside it, and nobody writes it
            with closing(sqlite3.connect(f"{dump.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as opened:
                found = _quick_check(opened)
                opened.execute("PRAGMA user_version").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise DatabaseFailed(f"cannot use the dump {dump} of {self.path}: {error}") from error
        if found != ["ok"]:
            raise DatabaseFailed(
                f"cannot use the dump {dump} of {self.path}: it is damaged: {found[0]}",
                hint="is the database itself damaged? see `PRAGMA integrity_check`",
            )

    def restore(self, dump: Path | None) -> None:
        """The file as it was dumped, with its owners and mode. DatabaseFailed while a program has it open."""
        new = hidden(self.path, "restored")
        self._refuse_users()
        with self._explain("restore"):
            new.unlink(missing_ok=True)
            if dump is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._copy_back(dump, new)
            self._remove_beside()
            if dump is not None:
                os.rename(new, self.path)
            else:
                self.path.unlink(missing_ok=True)
            if self.path.parent.is_dir():
                fsync_folder(self.path.parent)

    def _copy_back(self, dump: Path, new: Path) -> None:
        """What is there goes first where there is no room for both: the dump stays, and a restore is begun again."""
        try:
            _copy_durably(dump, new)
        except OSError as error:
            there = [path for path in (self.path, *map(self._beside, BESIDE)) if path.exists()]
            room = shutil.disk_usage(new.parent).free + sum(path.stat().st_size for path in there)
            if error.errno not in NO_ROOM or dump.stat().st_size > room:
                raise
            for path in there:
                path.unlink()
            fsync_folder(self.path.parent)
            _copy_durably(dump, new)

    def execute(self, script: Path, timeout: float, cancelled: Callable[[], bool] | None = None) -> None:
        """Its statements in one transaction; foreign keys are not enforced meanwhile but checked at the end.

        Where there is no database, the script makes it. DatabaseFailed when a program keeps it locked.
        """
        made = self._make_empty()
        try:
            with self._explain("migrate"), closing(self._open()) as opened:
                opened.execute("PRAGMA synchronous = EXTRA")
                opened.execute("BEGIN IMMEDIATE")
                run_script(opened, script, timeout, cancelled)
        except BaseException as error:
            if made:
                self._remove_beside()
                self.path.unlink(missing_ok=True)
            elif isinstance(error, MigrationFailed):
                self._finish_rollback()
            raise

    def _finish_rollback(self) -> None:
        """After a full disk SQLite leaves what was written to whoever opens the database next."""
        with suppress(sqlite3.Error), closing(self._open()) as opened:
            opened.execute("PRAGMA user_version").fetchone()

    def _copy_to(self, new: Path) -> None:
        # -I and -S: as little as possible has to be loaded
        program: list[str | Path] = [sys.executable, "-I", "-S", Path(sqlite_copy.__file__)]
        run([*program, self.path.absolute(), new.absolute(), str(LOCK_SECONDS)], timeout=COPY_SECONDS)

    def _open(self) -> sqlite3.Connection:
        """Writable, since what a killed program left beside the database is to be taken in."""
        address = f"{self.path.absolute().as_uri()}?mode=rw"
        return sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS, isolation_level=None)

    def _make_empty(self) -> bool:
        """A new empty database is its folder's owner's, not ours."""
        if os.path.lexists(self.path):
            self._require_file()
            return False
        folder = self.path.parent.stat()
        with self._explain("make"):
            self._remove_beside()
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                if os.geteuid() == 0:
                    os.fchown(fd, folder.st_uid, folder.st_gid)
                os.fchmod(fd, stat.S_IMODE(folder.st_mode) & 0o666)
            finally:
                os.close(fd)
        return True

    def _require_file(self) -> None:
        if self.path.is_symlink() or not self.path.is_file():
            what = "it is no plain file" if os.path.lexists(self.path) else "there is no such file"
            raise DatabaseFailed(f"cannot use the database {self.path}: {what}")

    def _refuse_users(self) -> None:
        if users := find_users([self.path, *map(self._beside, BESIDE)]):
            raise DatabaseFailed(
                f"cannot restore the database {self.path}: it is open in {', '.join(users)}",
                hint="end the program; it would go on writing into what is restored",
            )

    def _remove_beside(self) -> None:
        found = [path for path in map(self._beside, BESIDE) if os.path.lexists(path)]
        for path in found:
            path.unlink()
        if found:
            fsync_folder(self.path.parent)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    @contextmanager
    def _explain(self, verb: str) -> Iterator[None]:
        """Errors of SQLite and of the system as DatabaseFailed, with what can be said about them."""
        try:
            yield
        except (OSError, sqlite3.Error, CommandFailed) as error:
            hint, why = "", str(error)
            if isinstance(error, CommandFailed):
                why = "the disk cannot be read" if error.returncode == -signal.SIGBUS else error.output.strip() or why
            if _is_locked(error):
                users = find_users([self.path, *map(self._beside, BESIDE)])
                why = f"it is locked by {', '.join(users) or 'another program'}"
                hint = "end the program that writes it"
            raise DatabaseFailed(f"cannot {verb} the database {self.path}: {why}", hint=hint) from error


def _is_locked(error: Exception) -> bool:
    if isinstance(error, CommandFailed):
        return error.returncode == sqlite_copy.LOCKED
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def find_users(paths: list[Path]) -> list[str]:
    """The processes that have one of the files open: `name (pid)`; without root, only our own user's."""
    wanted = set()
    for path in paths:
        with suppress(OSError):
            seen = path.stat()
            wanted.add((seen.st_dev, seen.st_ino))
    return [name for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int) for name in _uses(pid, wanted)]


def _uses(pid: str, wanted: set[tuple[int, int]]) -> Iterator[str]:
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd") if wanted else ():
            with suppress(OSError):
                seen = os.stat(f"/proc/{pid}/fd/{fd}")
                if (seen.st_dev, seen.st_ino) in wanted:
                    yield f"{Path(f'/proc/{pid}/comm').read_text().strip()} ({pid})"
                    return


def _copy_durably(dump: Path, new: Path) -> None:
    try:
        copy_file(dump, new)
        fsync_file(new)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _read_through(dump: Path) -> None:
    with dump.open("rb", buffering=0) as file:
        if file.read(len(HEADER)) != HEADER:
            raise OSError("it is no SQLite database")
        while file.read(PIECE):
            pass


def _quick_check(opened: sqlite3.Connection) -> list[str]:
    """What PRAGMA quick_check finds in the structure; whether rows keep their rules is not the dump's business."""
    opened.execute("PRAGMA ignore_check_constraints = ON")
    found = [str(row[0]) for row in opened.execute("PRAGMA quick_check(100)")]
    return [line for line in found if not line.startswith("NULL value in ")] or ["ok"]
