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
from otaflow.files import fsync_file, fsync_folder, sync_file_system
from otaflow.platform import sqlite_copy
from otaflow.platform.copying import PIECE, copy_file, copy_metadata, delete_tree
from otaflow.platform.directories import hidden
from otaflow.platform.held import hold_parent, hold_private
from otaflow.platform.open_files import find_users
from otaflow.platform.run import run
from otaflow.platform.sqlite_script import run_script

HEADER = b"SQLite format 3\0"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
BESIDE = ("-wal", "-shm", "-journal")
LOCK_SECONDS = 5.0
COPY_SECONDS = 24 * 3600.0


class SqliteDatabase:
    """The Database protocol (protocols.py) on the SQLite file `path`.

    Neither `root` (None: the parent), which others may write in, nor anything from there to `path` may be a symbolic
    link: DatabaseFailed. Inside, `file` is the path in the folder that is held open (held.py).
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path, self.root = path, root

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def exists(self) -> bool:
        with suppress(FileNotFoundError), hold_parent(self.path, self.root) as file:
            return os.path.lexists(file)
        return False

    def size(self) -> int:
        with suppress(FileNotFoundError), hold_parent(self.path, self.root) as file:
            return sum(path.lstat().st_size for path in (file, _beside(file)[0]) if os.path.lexists(path))
        return 0

    def sync(self) -> None:
        with suppress(FileNotFoundError), hold_parent(self.path, self.root) as path:
            sync_file_system(path.parent)

    def dump(self, target: Path) -> None:
        """A consistent copy, whoever writes meanwhile; a `target` that is there already is replaced as a whole.

        It has the owners and the mode of the database. DatabaseFailed also when a writer keeps it locked.
        """
        new = hidden(target, "new")
        new.unlink(missing_ok=True)
        with self._explain("dump"), hold_parent(self.path, self.root) as file:
            self._require_file(file)
            try:
                _copy_to(file, new)
                copy_metadata(file, new)
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
        """The file as it was dumped, with its owners and mode. DatabaseFailed while a program has it open to write."""
        if dump is None and not self.path.parent.exists():
            return
        with self._explain("restore"), hold_parent(self.path, self.root, make=dump is not None) as file:
            self._refuse_writers(file)
            new = hidden(file, "restored")
            delete_tree(new)
            if dump is None:
                _remove_beside(file)
                file.unlink(missing_ok=True)
            else:
                _bring_back(dump, file, new)
            fsync_folder(file.parent)

    def execute(self, script: Path, timeout: float, cancelled: Callable[[], bool] | None = None) -> None:
        """Its statements in one transaction; foreign keys are not enforced meanwhile but checked at the end.

        Where there is no database, the script makes it. DatabaseFailed when a program keeps it locked.
        """
        with self._explain("migrate"), hold_parent(self.path, self.root) as file:
            made = self._make_empty(file)
            try:
                with closing(_open(file)) as opened:
                    opened.execute("PRAGMA synchronous = EXTRA")
                    opened.execute("BEGIN IMMEDIATE")
                    run_script(opened, script, timeout, cancelled)
            except BaseException as error:
                if made:
                    _remove_beside(file)
                    file.unlink(missing_ok=True)
                elif isinstance(error, MigrationFailed):
                    _finish_rollback(file)
                raise

    def _make_empty(self, file: Path) -> bool:
        """A new empty database is its folder's owner's, not ours."""
        if os.path.lexists(file):
            self._require_file(file)
            return False
        folder = file.parent.stat()
        _remove_beside(file)
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            if os.geteuid() == 0:
                os.fchown(fd, folder.st_uid, folder.st_gid)
            os.fchmod(fd, stat.S_IMODE(folder.st_mode) & 0o666)
        finally:
            os.close(fd)
        return True

    def _require_file(self, file: Path) -> None:
        if file.is_symlink() or not file.is_file():
            what = "it is no plain file" if os.path.lexists(file) else "there is no such file"
            raise DatabaseFailed(f"cannot use the database {self.path}: {what}")

    def _refuse_writers(self, file: Path) -> None:
        """Who only reads keeps the file that was; whoever may read it could hold up a restore for ever."""
        if users := find_users([file, *_beside(file)], writing=True):
            raise DatabaseFailed(
                f"cannot restore the database {self.path}: it is open in {', '.join(users)}",
                hint="end the program; it would go on writing into what is restored",
            )

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
                users = find_users([self.path, *_beside(self.path)])
                why = f"it is locked by {', '.join(users) or 'another program'}"
                hint = "end the program that writes it"
            raise DatabaseFailed(f"cannot {verb} the database {self.path}: {why}", hint=hint) from error


def _copy_to(file: Path, new: Path) -> None:
    seen = file.lstat()
    # -I and -S: as little as possible has to be loaded
    program: list[str | Path] = [sys.executable, "-I", "-S", Path(sqlite_copy.__file__)]
    identity = f"{seen.st_dev}:{seen.st_ino}"
    run([*program, file.absolute(), new.absolute(), str(LOCK_SECONDS), identity], timeout=COPY_SECONDS)


def _bring_back(dump: Path, file: Path, new: Path) -> None:
    """What is there goes first where there is no room for both: the dump stays, and a restore is begun again."""
    try:
        _replace(dump, file, new)
    except OSError as error:
        there = [path for path in (file, *_beside(file)) if os.path.lexists(path)]
        room = shutil.disk_usage(file.parent).free + sum(path.lstat().st_size for path in there)
        if error.errno not in NO_ROOM or dump.stat().st_size > room:
            raise
        for path in there:
            _give_up(path)
        fsync_folder(file.parent)
        _replace(dump, file, new)


def _replace(dump: Path, file: Path, new: Path) -> None:
    with hold_private(new) as private:
        copy_file(dump, private / "database")
        fsync_file(private / "database")
        _remove_beside(file)
        os.rename(private / "database", file)


def _give_up(path: Path) -> None:
    """Its room is free at once, even if somebody has it open to read; what has another name is left there."""
    with suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            seen = os.fstat(fd)
            if stat.S_ISREG(seen.st_mode) and seen.st_nlink == 1:
                os.ftruncate(fd, 0)
        finally:
            os.close(fd)
    path.unlink()


def _finish_rollback(file: Path) -> None:
    """After a full disk SQLite leaves what was written to whoever opens the database next."""
    with suppress(OSError, sqlite3.Error), closing(_open(file)) as opened:
        opened.execute("PRAGMA user_version").fetchone()


def _open(file: Path) -> sqlite3.Connection:
    """Writable, since what a killed program left beside the database is to be taken in."""
    seen = file.lstat()
    return sqlite_copy.open_file(file.absolute(), (seen.st_dev, seen.st_ino), LOCK_SECONDS)


def _remove_beside(file: Path) -> None:
    found = [path for path in _beside(file) if os.path.lexists(path)]
    for path in found:
        path.unlink()
    if found:
        fsync_folder(file.parent)


def _beside(file: Path) -> list[Path]:
    return [file.with_name(file.name + suffix) for suffix in BESIDE]


def _is_locked(error: Exception) -> bool:
    if isinstance(error, CommandFailed):
        return error.returncode == sqlite_copy.LOCKED
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


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
