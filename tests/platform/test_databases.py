"""What every database promises (protocols.py, Database), and what is a trap of one kind only; all on real ones."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Set
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from postgres import Cluster, find_programs, run_cluster

from otaflow.errors import DatabaseFailed, MigrationFailed, ProcessSwPackageCancelled
from otaflow.platform import sqlite
from otaflow.platform.btrfs import BtrfsTrees
from otaflow.platform.data_folder import DataFolder
from otaflow.platform.describe import describe
from otaflow.platform.directories import FolderTrees
from otaflow.platform.open_files import find_users
from otaflow.platform.postgresql import PostgresDatabase
from otaflow.platform.protocols import Database
from otaflow.platform.sqlite import SqliteDatabase

ROWS = 300
FILL = f"""
CREATE TABLE notes (id integer PRIMARY KEY, text text NOT NULL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
INSERT INTO notes SELECT i, 'note ' || i || ' of ' || i * 7919 % 10007 FROM n;
"""
MIGRATE = """
ALTER TABLE notes ADD COLUMN done boolean;
CREATE TABLE tags (name text PRIMARY KEY);
INSERT INTO tags VALUES ('a;b'), ('c');
DELETE FROM notes WHERE id > 100;
"""
DEFERRED = """
CREATE TABLE k (of_note integer REFERENCES notes DEFERRABLE INITIALLY DEFERRED);
INSERT INTO k VALUES (9999);
"""
ENDLESS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n;",
    "postgresql": "SELECT pg_sleep(1000);",
}


class Rig:
    """A database of one kind, with rows (or files) in it."""

    def __init__(self, kind: str, folder: Path, database: Database) -> None:
        self.kind, self.folder, self.database = kind, folder, database
        self.dump = folder / "dumps" / "0"
        self.dump.parent.mkdir()

    def fill(self) -> None:
        self.run(FILL)

    def change(self) -> None:
        """As a migration that was carried through."""
        self.run(MIGRATE)

    def run(self, text: str, timeout: float = 60, cancelled: Callable[[], bool] | None = None) -> None:
        script = self.folder / "2.sql"
        script.write_text(text)
        self.database.execute(script, timeout, cancelled)

    def content(self) -> Any:
        """All that is in it."""
        raise NotImplementedError

    def left_over(self) -> list[str]:
        """What is beside it that should not be."""
        raise NotImplementedError

    def damage(self) -> None:
        """Cut the dump in the middle."""
        os.truncate(self.dump, self.dump.stat().st_size // 2)


class SqliteRig(Rig):
    def __init__(self, kind: str, folder: Path) -> None:
        self.path = folder / "data" / "notes 1%.db"
        self.path.parent.mkdir()
        super().__init__("sqlite", folder, SqliteDatabase(self.path))
        self.mode = "wal" if kind == "sqlite-wal" else "delete"

    def fill(self) -> None:
        super().fill()
        with closing(sqlite3.connect(self.path)) as opened:
            opened.execute(f"PRAGMA journal_mode = {self.mode}")
        self.path.chmod(0o640)

    def content(self) -> Any:
        return read_sqlite(self.path)

    def left_over(self) -> list[str]:
        return sorted(set(os.listdir(self.path.parent)) - {self.path.name}) + sorted(
            set(os.listdir(self.dump.parent)) - {"0"}
        )


class PostgresRig(Rig):
    def __init__(self, cluster: Cluster, folder: Path, name: str, user: str, password: str) -> None:
        self.cluster, self.name, self.user, self.password = cluster, name, user, password
        secret = folder / "password"
        secret.write_text(password + "\n")
        super().__init__("postgresql", folder, PostgresDatabase(cluster.url(user, name), secret, 30))

    def content(self) -> Any:
        listed = self.cluster.call("pg_dump", "-U", "admin", "--inserts", self.name).stdout.splitlines()
        text = [line for line in listed if not line.startswith("\\")]
        about = self.cluster.sql(
            "SELECT pg_get_userbyid(datdba), encoding, datcollate, datallowconn, datacl, "
            "(SELECT array_agg(setconfig) FROM pg_db_role_setting WHERE setdatabase = d.oid) "
            f"FROM pg_database d WHERE datname = '{self.name}'"
        )
        return about, text

    def left_over(self) -> list[str]:
        found = self.cluster.sql(f"SELECT datname FROM pg_database WHERE datname LIKE '{self.name}_otaflow%'")
        return found.split() + sorted(set(os.listdir(self.dump.parent)) - {"0"})


class FolderRig(Rig):
    def __init__(self, folder: Path, trees: Any) -> None:
        self.path = folder / "data" / "uploads"
        self.path.parent.mkdir()
        super().__init__("files", folder, DataFolder(self.path, trees))

    def fill(self) -> None:
        (self.path / "deep").mkdir(parents=True)
        for number in range(5):
            (self.path / "deep" / f"{number}").write_bytes(bytes([number]) * 70_000)
        (self.path / "link").symlink_to("deep/1")
        os.link(self.path / "deep" / "1", self.path / "hard")
        (self.path / "deep" / "2").chmod(0o400)

    def change(self) -> None:
        (self.path / "deep" / "1").write_text("changed")
        (self.path / "deep" / "2").unlink()
        (self.path / "new").mkdir()

    def content(self) -> Any:
        return describe(self.path, times=True)

    def left_over(self) -> list[str]:
        return sorted(set(os.listdir(self.path.parent)) - {"uploads"}) + sorted(
            set(os.listdir(self.dump.parent)) - {"0"}
        )

    def damage(self) -> None:
        with (self.dump / "files" / "deep" / "3").open("r+b") as file:
            file.write(b"x")


def read_sqlite(path: Path) -> Any:
    with closing(sqlite3.connect(path)) as opened:
        names = ("user_version", "application_id", "page_size", "auto_vacuum", "journal_mode", "encoding")
        settings = [opened.execute(f"PRAGMA {name}").fetchone() for name in names]
        return settings, list(opened.iterdump()), path.stat().st_mode, path.stat().st_uid


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with run_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def app_password(cluster: Cluster) -> str:
    return cluster.make_user("the app")


@pytest.fixture
def postgres(cluster: Cluster, app_password: str, tmp_path: Path) -> Iterator[PostgresRig]:
    """A database of PostgreSQL with rows in it, and settings and rights of its own."""
    name = f"notes {os.urandom(3).hex()}"
    rig = PostgresRig(cluster, tmp_path, name, "the app", app_password)
    cluster.sql(f"""CREATE DATABASE "{name}" OWNER "the app" TEMPLATE template0 LOCALE 'C'""")
    rig.fill()
    for setting in ("work_mem = '5MB'", "default_transaction_read_only = off"):
        cluster.sql(f'ALTER DATABASE "{name}" SET {setting}')
    cluster.sql(f'GRANT CONNECT ON DATABASE "{name}" TO pg_monitor')
    yield rig
    cluster.sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


KINDS = ["sqlite", "sqlite-wal", "postgresql", "directories", pytest.param("btrfs", marks=pytest.mark.btrfs)]


def make_rig(kind: str, request: pytest.FixtureRequest, folder: Path) -> Rig:
    if kind == "postgresql":
        rig: Rig = request.getfixturevalue("postgres")
        return rig
    if kind.startswith("sqlite"):
        rig = SqliteRig(kind, folder)
    elif kind == "btrfs":
        rig = FolderRig(request.getfixturevalue("btrfs_tmp"), BtrfsTrees())
    else:
        rig = FolderRig(folder, FolderTrees())
    rig.fill()
    return rig


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    """Each kind of database."""
    return make_rig(request.param, request, tmp_path)


@pytest.fixture(params=KINDS[:3])
def sql(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    """Each kind of database that knows SQL."""
    return make_rig(request.param, request, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for 100 KB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


# --- dump, check, restore -----------------------------------------------------------------------------------------


def test_what_was_dumped_comes_back(rig: Rig) -> None:
    before = rig.content()
    assert rig.database.exists()
    assert rig.database.size() > 0
    rig.database.dump(rig.dump)
    rig.database.check(rig.dump)
    rig.change()
    assert rig.content() != before
    for _ in range(2):
        rig.database.restore(rig.dump)
        assert rig.content() == before
    assert rig.left_over() == []


def test_where_there_was_none_there_is_none_again(rig: Rig) -> None:
    for _ in range(2):
        rig.database.restore(None)
        assert not rig.database.exists()
    assert rig.left_over() == []


def test_it_is_made_anew_from_the_dump(rig: Rig) -> None:
    before = rig.content()
    rig.database.dump(rig.dump)
    rig.database.restore(None)
    rig.database.restore(rig.dump)
    assert rig.content() == before


def test_what_is_not_there_cannot_be_dumped(rig: Rig) -> None:
    rig.database.restore(None)
    with pytest.raises(DatabaseFailed):
        rig.database.dump(rig.dump)
    assert os.listdir(rig.dump.parent) == []


def test_a_later_dump_takes_the_place_of_an_earlier_one(rig: Rig) -> None:
    rig.database.dump(rig.dump)
    rig.change()
    after = rig.content()
    rig.database.dump(rig.dump)
    rig.database.check(rig.dump)
    rig.database.restore(rig.dump)
    assert rig.content() == after


def test_a_damaged_dump_is_found(rig: Rig) -> None:
    rig.database.dump(rig.dump)
    rig.damage()
    with pytest.raises(DatabaseFailed, match="cannot use the dump"):
        rig.database.check(rig.dump)


@pytest.mark.parametrize(
    "content", [b"", b"SQLite format 3\0", b"PGDMP", b"\0" * 8192], ids=["empty", "s", "p", "zeros"]
)
def test_no_dump_at_all(rig: Rig, content: bytes) -> None:
    with pytest.raises(DatabaseFailed):
        rig.database.check(rig.dump)
    rig.dump.write_bytes(content)
    with pytest.raises(DatabaseFailed):
        rig.database.check(rig.dump)


def test_a_dump_for_which_there_is_no_room(rig: Rig, small_disk: Path) -> None:
    before = rig.content()
    with (small_disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    with pytest.raises(DatabaseFailed):
        rig.database.dump(small_disk / "0")
    assert os.listdir(small_disk) == ["ballast"]
    assert rig.content() == before


# --- a power cut at every moment ------------------------------------------------------------------------------------

PROGRAMS = {"subprocess.Popen"}
CHANGES = {
    *PROGRAMS,
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.link",
    "os.symlink",
}


def die_before(number: int, work: Callable[[], None], events: Set[str]) -> bool:
    """Do the work in a process that is gone before its change `number` of anything; whether it came to its end."""
    child = os.fork()
    if child == 0:
        count = 0

        def hear(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in events and (writes or event != "open"):
                count += 1
                if count > number:
                    os._exit(9)

        try:
            sys.addaudithook(hear)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 0


@pytest.fixture(params=["sqlite-wal", "postgresql", "directories"])
def cut(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return make_rig(request.param, request, tmp_path)


def test_a_restore_that_is_cut_off_anywhere_is_repeated(cut: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(cut.folder))
    before = cut.content()
    cut.database.dump(cut.dump)
    # what changes a server is done by programs
    number, done, events = 0, False, PROGRAMS if cut.kind == "postgresql" else CHANGES
    while not done:
        if cut.content() == before:
            cut.change()
        done = die_before(number, lambda: cut.database.restore(cut.dump), events)
        cut.database.restore(cut.dump)
        assert cut.content() == before, number
        assert cut.left_over() == [], number
        number += 1
    assert number > 3


def test_a_dump_that_is_cut_off_anywhere_is_none(cut: Rig) -> None:
    before = cut.content()
    number = 0
    while not die_before(number, lambda: cut.database.dump(cut.dump), CHANGES):
        assert not cut.dump.exists()
        number += 1
    cut.database.check(cut.dump)
    assert cut.left_over() == []
    assert cut.content() == before


# --- scripts ---------------------------------------------------------------------------------------------------------


def test_a_script(sql: Rig) -> None:
    sql.change()
    with pytest.raises(MigrationFailed, match=r"done|tags"):
        sql.change()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (MIGRATE + "INSERT INTO nowhere VALUES (1);", "nowhere"),
        (MIGRATE + "INSERT INTO tags VALUES ('c');", "(?i)unique"),
        (MIGRATE + "SELECT 'not closed", "(?i)unrecognized token|unterminated"),
        (MIGRATE + "SELEC 1;", "syntax error"),
        (MIGRATE + "-- yes\n COMMIT; INSERT INTO tags VALUES ('d');", "line 7: COMMIT"),
        (MIGRATE + "/* ; */ ROLLBACK;", "line 6: ROLLBACK"),
        ("BEGIN;" + MIGRATE, "line 1: BEGIN"),
        (MIGRATE + "VACUUM;", "VACUUM"),
        (MIGRATE + DEFERRED, "foreign key"),
    ],
    ids=["table", "unique", "quote", "syntax", "commit", "rollback", "begin", "vacuum", "foreign key"],
)  # fmt: skip
def test_a_script_that_fails_changes_nothing(sql: Rig, text: str, why: str) -> None:
    before = sql.content()
    with pytest.raises(MigrationFailed, match=why):
        sql.run(text)
    assert sql.content() == before


def test_a_script_that_hangs(sql: Rig) -> None:
    before = sql.content()
    with pytest.raises(MigrationFailed, match=r"did not end within 0\.5 s"):
        sql.run(MIGRATE + ENDLESS[sql.kind], timeout=0.5)
    assert sql.content() == before


def test_a_script_that_is_cancelled(sql: Rig) -> None:
    before = sql.content()
    started = time.monotonic()
    with pytest.raises(ProcessSwPackageCancelled):
        sql.run(MIGRATE + ENDLESS[sql.kind], cancelled=lambda: time.monotonic() > started + 0.5)
    assert sql.content() == before


@pytest.mark.parametrize("content", [None, b"SELECT '\xff';"], ids=["missing", "no text"])
def test_a_script_that_cannot_be_read(sql: Rig, content: bytes | None) -> None:
    script = sql.folder / "bad.sql"
    if content:
        script.write_bytes(content)
    with pytest.raises(MigrationFailed, match=r"cannot read the script bad\.sql"):
        sql.database.execute(script, 9)


def test_a_script_makes_the_database_or_leaves_none(sql: Rig) -> None:
    sql.database.restore(None)
    with pytest.raises(MigrationFailed):
        sql.run(FILL + "SELEC 1;")
    assert not sql.database.exists()
    sql.run(FILL)
    assert sql.database.exists()
    assert sql.left_over() == []


def test_a_folder_knows_no_sql(tmp_path: Path) -> None:
    with pytest.raises(MigrationFailed, match="knows no SQL"):
        DataFolder(tmp_path, FolderTrees()).execute(tmp_path / "2.sql", 9)


# --- writers ---------------------------------------------------------------------------------------------------------

WRITER = """
import sqlite3, sys, time
opened = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
opened.execute("PRAGMA wal_autocheckpoint = 10")
for number in range(1000, 10**9):
    opened.execute("INSERT INTO notes VALUES (?, 'x' || hex(randomblob(900)))", (number,))
    print(number, flush=True)
    time.sleep(0.002)
"""


def start_writer(sql: Rig, start_python: Any) -> "subprocess.Popen[str]":
    """Commits numbered notes one after the other, and says so after each."""
    if isinstance(sql, SqliteRig):
        writer: subprocess.Popen[str] = start_python(WRITER, sql.path)
        return writer
    assert isinstance(sql, PostgresRig)
    script = sql.folder / "writer.sql"
    script.write_text("".join(f"INSERT INTO notes VALUES ({n}, 'x');\n\\echo {n}\n" for n in range(1000, 60_000)))
    code = "import os, sys; os.execvp('psql', ['psql', '-Xq', '-U', 'the app', '-f', *sys.argv[1:]])"
    os.environ.update(PGHOST=str(sql.cluster.folder), PGPASSWORD=sql.password)
    try:
        writer = start_python(code, script, sql.name)
    finally:
        del os.environ["PGHOST"], os.environ["PGPASSWORD"]
    return writer


def test_a_dump_while_a_writer_commits(sql: Rig, start_python: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 60.0)
    writer = start_writer(sql, start_python)
    assert writer.stdout is not None
    for _ in range(20):
        acknowledged = int(writer.stdout.readline())
    sql.database.dump(sql.dump)
    writer.kill()
    writer.wait()
    sql.database.check(sql.dump)
    sql.database.restore(sql.dump)
    if isinstance(sql, SqliteRig):
        with closing(sqlite3.connect(sql.path)) as opened:
            numbers = [row[0] for row in opened.execute("SELECT id FROM notes WHERE id >= 1000 ORDER BY id")]
    else:
        assert isinstance(sql, PostgresRig)
        found = sql.cluster.sql("SELECT id FROM notes WHERE id >= 1000 ORDER BY id", sql.name)
        numbers = list(map(int, found.split()))
    assert numbers == list(range(1000, 1000 + len(numbers)))
    assert numbers[-1] >= acknowledged


# --- SQLite ----------------------------------------------------------------------------------------------------------

LEAVE = """
import os, sqlite3, sys
opened = sqlite3.connect(sys.argv[1], isolation_level=None)
opened.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
opened.execute("PRAGMA cache_size = 2")
opened.execute("BEGIN")
opened.execute("UPDATE notes SET text = 'later' || hex(zeroblob(300))")
if sys.argv[2] == "wal":
    opened.execute("COMMIT")
print("on", flush=True)
os._exit(0)
"""


@pytest.fixture
def lite(tmp_path: Path) -> SqliteRig:
    rig = SqliteRig("sqlite", tmp_path)
    rig.fill()
    return rig


def leave(rig: SqliteRig, mode: str, start_python: Any) -> None:
    """A program ends without closing the database."""
    start_python(LEAVE, rig.path, mode).wait()
    assert len(rig.left_over()) > 0


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_what_was_left_beside_it_is_not_replayed(lite: SqliteRig, mode: str, start_python: Any) -> None:
    before = lite.content()
    lite.database.dump(lite.dump)
    leave(lite, mode, start_python)
    lite.database.restore(lite.dump)
    assert lite.left_over() == []
    assert lite.content() == before


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_what_was_left_beside_it_belongs_to_the_dump(lite: SqliteRig, mode: str, start_python: Any) -> None:
    """Commits in the -wal are in; a transaction in a hot journal, that never was one, is out."""
    before = lite.content()
    leave(lite, mode, start_python)
    lite.database.dump(lite.dump)
    found = read_sqlite(lite.dump)
    assert any("later" in line for line in found[1]) == (mode == "wal")
    assert found == lite.content()
    assert (found == before) == (mode == "delete")


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_settings_of_the_file_are_kept(tmp_path: Path, page_size: int, mode: str) -> None:
    rig = SqliteRig("sqlite", tmp_path)
    with closing(sqlite3.connect(rig.path)) as opened:
        for setting in (f"page_size = {page_size}", "auto_vacuum = 2", "encoding = 'UTF-16le'", "user_version = 7"):
            opened.execute(f"PRAGMA {setting}")
        opened.execute("PRAGMA application_id = 99")
        opened.executescript(FILL)
        opened.execute(f"PRAGMA journal_mode = {mode}")
    if os.geteuid() == 0:
        os.chown(rig.path, 1234, 4321)
    before = rig.content()
    rig.database.dump(rig.dump)
    rig.database.check(rig.dump)
    rig.run("DROP TABLE notes; PRAGMA user_version = 8;")
    rig.path.chmod(0o600)
    rig.database.restore(rig.dump)
    assert rig.content() == before
    assert rig.path.stat().st_size == rig.dump.stat().st_size


def test_a_database_without_any_table(tmp_path: Path) -> None:
    rig = SqliteRig("sqlite", tmp_path)
    rig.path.touch()
    rig.database.dump(rig.dump)
    rig.database.check(rig.dump)
    rig.database.restore(rig.dump)
    assert read_sqlite(rig.path)[1] == ["BEGIN TRANSACTION;", "COMMIT;"]


HOLD = """
import sqlite3, sys, time
opened = sqlite3.connect(sys.argv[1], isolation_level=None)
opened.execute(sys.argv[2])
opened.execute("SELECT count(*) FROM notes").fetchone()
print("on", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("verb", ["dump", "migrate"])
def test_a_locked_database_says_who_has_it(
    lite: SqliteRig, verb: str, start_python: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 0.1)
    holder = start_python(HOLD, lite.path, "BEGIN EXCLUSIVE")
    holder.stdout.readline()
    with pytest.raises(DatabaseFailed, match=rf"cannot {verb} .*locked by \S+ \({holder.pid}\)"):
        lite.database.dump(lite.dump) if verb == "dump" else lite.change()
    assert os.listdir(lite.dump.parent) == []


def test_nothing_is_restored_under_a_program_that_has_it_open(lite: SqliteRig, start_python: Any) -> None:
    lite.database.dump(lite.dump)
    lite.change()
    after = lite.content()
    holder = start_python(HOLD, lite.path, "PRAGMA user_version")
    holder.stdout.readline()
    with pytest.raises(DatabaseFailed, match=rf"open in \S+ \({holder.pid}\)"):
        lite.database.restore(lite.dump)
    holder.kill()
    holder.wait()
    assert lite.content() == after


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("SELECT 1;\nATTACH 'other.db' AS other;", "line 2: ATTACH"),
        ("VACUUM INTO 'other.db';", "line 1: VACUUM"),
        ("PRAGMA writable_schema = 1;", "line 1: PRAGMA writable_schema"),
        ("PRAGMA journal_mode = OFF;", "line 1: PRAGMA journal_mode"),
        ("\n\nPRAGMA foreign_keys = ON;", "line 3: PRAGMA foreign_keys"),
        ("SELECT load_extension('x');", "not authorized"),
        ("INSERT INTO notes VALUES (1000, ?);", "line 1"),
        ("EXPLAIN COMMIT; SAVEPOINT a; RELEASE a; END", "COMMIT"),
    ],
    ids=lambda value: value.split(";")[0].strip() if isinstance(value, str) else "",
)
def test_what_a_script_may_not(lite: SqliteRig, text: str, why: str) -> None:
    before = lite.content()
    with pytest.raises(MigrationFailed, match=why):
        lite.run(MIGRATE.replace("\n", " ") + text)
    assert lite.content() == before
    assert lite.left_over() == []


def test_what_a_script_may(lite: SqliteRig) -> None:
    lite.run(
        """
        PRAGMA foreign_keys = OFF;  -- as scripts say when they make a table anew
        SAVEPOINT a; DELETE FROM notes; ROLLBACK TO a; RELEASE a;
        CREATE TRIGGER tell AFTER INSERT ON notes BEGIN UPDATE notes SET text = 'a;b' WHERE id = 1; SELECT 1; END;
        INSERT INTO notes VALUES (1000, 'it''s; "not" -- a comment');
        PRAGMA user_version = 4
        """
    )
    with closing(sqlite3.connect(lite.path)) as opened:
        assert opened.execute("SELECT text FROM notes WHERE id IN (1, 1000)").fetchall() == [
            ("a;b",),
            ('it\'s; "not" -- a comment',),
        ]
        assert opened.execute("PRAGMA user_version").fetchone() == (4,)


def test_a_script_that_fills_the_disk(small_disk: Path, tmp_path: Path) -> None:
    rig = SqliteRig("sqlite", tmp_path)
    rig.database = SqliteDatabase(small_disk / "notes.db")
    rig.run("CREATE TABLE notes (id integer PRIMARY KEY, text text)")
    with pytest.raises(MigrationFailed, match="the disk is full"):
        rig.run("INSERT INTO notes VALUES (1, 'x'); INSERT INTO notes VALUES (2, hex(zeroblob(200000)));")
    with closing(sqlite3.connect(small_disk / "notes.db")) as opened:
        assert opened.execute("SELECT count(*) FROM notes").fetchone() == (0,)


def test_a_database_is_restored_where_there_is_no_room_for_two(small_disk: Path, tmp_path: Path) -> None:
    rig = SqliteRig("sqlite", tmp_path)
    path = small_disk / "notes.db"
    rig.database = SqliteDatabase(path)
    rig.run("CREATE TABLE notes (text text); INSERT INTO notes VALUES (hex(zeroblob(20000)));")
    before = path.read_bytes()
    assert len(before) < 60_000
    rig.database.dump(rig.dump)
    rig.run("INSERT INTO notes SELECT text || 'x' FROM notes;")
    rig.database.restore(rig.dump)
    assert path.read_bytes() == before
    assert os.listdir(small_disk) == ["notes.db"]
    os.truncate(path, 0)
    (small_disk / "ballast").write_bytes(bytes(70_000))
    with pytest.raises(DatabaseFailed, match="No space left"):
        rig.database.restore(rig.dump)
    assert sorted(os.listdir(small_disk)) == ["ballast", "notes.db"], "what could not be replaced stays"


def test_a_new_database_is_its_folders_owners(tmp_path: Path) -> None:
    rig = SqliteRig("sqlite", tmp_path)
    if os.geteuid() == 0:
        os.chown(rig.path.parent, 1234, 4321)
    rig.path.parent.chmod(0o750)
    rig.run(FILL)
    seen, folder = rig.path.stat(), rig.path.parent.stat()
    assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o777) == (folder.st_uid, folder.st_gid, 0o640)


def test_no_database_at_all(tmp_path: Path) -> None:
    rig = SqliteRig("sqlite", tmp_path)
    rig.path.write_bytes(b"x" * 8192)
    with pytest.raises(DatabaseFailed, match="file is not a database"):
        rig.database.dump(rig.dump)
    assert rig.left_over() == []


def test_somebody_who_only_reads_is_no_hindrance(lite: SqliteRig, start_python: Any) -> None:
    """Whoever may read it could hold up a restore for ever."""
    before = lite.content()
    lite.database.dump(lite.dump)
    lite.change()
    code = "import sys, time; file = open(sys.argv[1], 'rb'); print('on', flush=True); time.sleep(1000)"
    reader = start_python(code, lite.path)
    reader.stdout.readline()
    assert find_users([lite.path]) != []
    lite.database.restore(lite.dump)
    assert lite.content() == before


@pytest.mark.parametrize("read", [False, True], ids=["nobody", "a reader"])
def test_a_migration_that_fills_the_disk_is_taken_back_whenever_it_is_cut_off(
    small_disk: Path, tmp_path: Path, start_python: Any, read: bool
) -> None:
    rig = SqliteRig("sqlite", tmp_path)
    path = small_disk / "notes.db"
    rig.database = SqliteDatabase(path, small_disk)
    rig.run("CREATE TABLE notes (text text); INSERT INTO notes VALUES (hex(zeroblob(20000)));")
    before = path.read_bytes()
    rig.database.dump(rig.dump)
    number, done = 0, False
    while not done:
        with suppress(MigrationFailed):
            while True:
                rig.run("INSERT INTO notes VALUES (hex(zeroblob(2000)));")
        with path.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        assert shutil.disk_usage(small_disk).free == 0
        if read:
            code = "import sys, time; file = open(sys.argv[1], 'rb'); print('on', flush=True); time.sleep(1000)"
            reader = start_python(code, path)
            reader.stdout.readline()
        done = die_before(number, lambda: rig.database.restore(rig.dump), CHANGES)
        rig.database.restore(rig.dump)
        assert path.read_bytes() == before, number
        assert os.listdir(small_disk) == ["notes.db"], number
        if read:
            reader.kill()
            reader.wait()
        number += 1
    assert number > 3


# --- symbolic links in the data -------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "files"])
def owned(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    """A database in `data/deep/er`, where `data` is what others may write in, with a dump."""
    inner = tmp_path / "data" / "deep" / "er"
    inner.mkdir(parents=True)
    (tmp_path / "rig").mkdir()
    if request.param == "sqlite":
        rig: Any = SqliteRig("sqlite", tmp_path / "rig")
        rig.path = inner / "notes"
        rig.database = SqliteDatabase(rig.path, tmp_path / "data")
    else:
        rig = FolderRig(tmp_path / "rig", FolderTrees())
        rig.path = inner / "notes"
        rig.database = DataFolder(rig.path, FolderTrees(), tmp_path / "data")
    rig.fill()
    rig.database.dump(rig.dump)
    return rig  # type: ignore[no-any-return]


@pytest.mark.parametrize("link", ["data", "data/deep", "data/deep/er", "data/deep/er/notes"])
@pytest.mark.parametrize("verb", ["exists", "size", "dump", "restore", "restore none", "execute"])
def test_no_link_is_followed(owned: Any, tmp_path: Path, link: str, verb: str) -> None:
    work: dict[str, Callable[[], Any]] = {
        "exists": owned.database.exists,
        "size": owned.database.size,
        "dump": lambda: owned.database.dump(owned.dump.with_name("1")),
        "restore": lambda: owned.database.restore(owned.dump),
        "restore none": lambda: owned.database.restore(None),
        "execute": owned.change if owned.kind == "sqlite" else owned.database.exists,
    }
    os.rename(tmp_path / link, tmp_path / "elsewhere")
    (tmp_path / link).symlink_to(tmp_path / "elsewhere")
    before = describe(tmp_path / "elsewhere", times=True)
    with pytest.raises(DatabaseFailed, match=rf"cannot use {tmp_path / link}: it is a symbolic link"):
        work[verb]()
    assert describe(tmp_path / "elsewhere", times=True) == before
    assert os.listdir(owned.dump.parent) == ["0"]


def test_without_a_root_the_parent_is_it(owned: Any, tmp_path: Path) -> None:
    owned.database.root = None
    owned.database.restore(owned.dump)
    os.rename(tmp_path / "data/deep/er", tmp_path / "elsewhere")
    (tmp_path / "data/deep/er").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatabaseFailed, match="er: it is a symbolic link"):
        owned.database.restore(owned.dump)


def test_what_is_outside_of_the_root_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "a" / ".." / "b", tmp_path.parent / "b", tmp_path):
        with pytest.raises(DatabaseFailed, match="is not inside"):
            SqliteDatabase(path, tmp_path).exists()


SWAP = """
import os, sys
folder, elsewhere = sys.argv[1:]
print("on", flush=True)
while True:
    try:
        os.rename(folder, folder + ".aside")
        os.symlink(elsewhere, folder)
        os.unlink(folder)
        os.rename(folder + ".aside", folder)
    except OSError:
        pass
"""


def test_links_that_come_and_go(owned: Any, tmp_path: Path, start_python: Any) -> None:
    """What is done happens in the data, or not at all."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "notes").mkdir(parents=True)
    (elsewhere / "notes" / "precious").write_text("root's")
    before = describe(elsewhere, times=True)
    swapper = start_python(SWAP, owned.path.parent, elsewhere)
    swapper.stdout.readline()
    for _ in range(30):
        with suppress(DatabaseFailed):
            owned.database.restore(owned.dump)
    assert describe(elsewhere, times=True) == before


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def test_the_client_of_a_driver_gets_the_password(postgres: PostgresRig) -> None:
    from sqlalchemy.engine import make_url

    url = make_url(postgres.database.url)
    assert (url.username, url.password, url.database) == ("the app", postgres.password, postgres.name)
    assert url.query == {"host": str(postgres.cluster.folder)}


def test_what_is_answered_is_on_the_servers_disk(postgres: PostgresRig) -> None:
    """Also where the server's administrator takes what is faster: the next thing that we record relies on it."""
    cluster = postgres.cluster
    cluster.sql('ALTER ROLE "the app" SET synchronous_commit = off')
    for setting in ("wal_writer_delay = '10s'", "wal_writer_flush_after = '1GB'"):
        cluster.sql(f"ALTER SYSTEM SET {setting}")
    cluster.sql("SELECT pg_reload_conf()")
    try:
        postgres.run("CREATE TABLE how AS SELECT current_setting('synchronous_commit') AS commit")
        assert cluster.sql("SELECT commit FROM how", postgres.name) == "local"
        how = {"user": "the app", "password": postgres.password}
        for _ in range(20):  # a checkpoint may come between, and write it
            cluster.sql("INSERT INTO how SELECT 'more' FROM generate_series(1, 1000)", postgres.name, **how)
            written = cluster.sql("SELECT pg_current_wal_insert_lsn()")
            if (before := cluster.sql(f"SELECT pg_current_wal_flush_lsn() < '{written}'")) == "t":
                break
        assert before == "t"
        postgres.database.sync()
        assert cluster.sql(f"SELECT pg_current_wal_flush_lsn() >= '{written}'") == "t"
    finally:
        cluster.sql("ALTER SYSTEM RESET ALL")
        cluster.sql("SELECT pg_reload_conf()")
        cluster.sql('ALTER ROLE "the app" RESET ALL')


def test_nothing_of_a_failed_migration_remains(postgres: PostgresRig) -> None:
    before = postgres.content()
    postgres.database.dump(postgres.dump)
    postgres.run(
        """
        CREATE SCHEMA more; CREATE TYPE more.mood AS ENUM ('sad'); CREATE EXTENSION pgcrypto;
        CREATE TABLE more.t (m more.mood); DROP TABLE notes; CREATE SEQUENCE s; SELECT lo_create(77);
        CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END;
        DO $$ BEGIN PERFORM 1; END $$;
        """
    )
    postgres.cluster.sql(f"""ALTER DATABASE "{postgres.name}" SET work_mem = '9MB'""")
    postgres.cluster.sql(f'GRANT CREATE ON DATABASE "{postgres.name}" TO PUBLIC')
    postgres.database.restore(postgres.dump)
    assert postgres.content() == before


def test_who_is_connected_is_disconnected(postgres: PostgresRig, start_python: Any) -> None:
    postgres.database.dump(postgres.dump)
    writer = start_writer(postgres, start_python)
    writer.stdout.readline()
    before = postgres.cluster.sql("SELECT count(*) FROM notes WHERE id < 1000", postgres.name)
    postgres.database.restore(postgres.dump)
    writer.stdout.read()
    assert postgres.cluster.sql("SELECT count(*) FROM notes", postgres.name) == before


def test_a_database_that_is_read_only_by_its_settings(postgres: PostgresRig) -> None:
    postgres.cluster.sql(f'ALTER DATABASE "{postgres.name}" SET default_transaction_read_only = on')
    before = postgres.content()
    postgres.database.dump(postgres.dump)
    postgres.database.restore(postgres.dump)
    assert postgres.content() == before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("\\! touch {}", "line 6: .*commands of psql"),
        ("\\copy notes TO PROGRAM 'touch {}'", "commands of psql"),
        ("SELECT 1 \\g | touch {}", "commands of psql"),
        ("SELECT 'touch {}' \\gexec", "commands of psql"),
        ("\\connect postgres", "commands of psql"),
        ("COPY notes TO PROGRAM 'touch {}';", "permission denied|must be superuser"),
        ("COPY notes FROM STDIN;", "write INSERT"),
        ("/* /* */ ' */ COMMIT; --'", "comments inside comments"),
        ("START TRANSACTION;", "START TRANSACTION"),
        ("PREPARE TRANSACTION 'x';", "PREPARE TRANSACTION"),
        ("CREATE INDEX CONCURRENTLY i ON notes (text);", "cannot run inside a transaction block"),
    ],
    ids=lambda value: " ".join(value.split()[:3]) if isinstance(value, str) else "",
)
def test_what_a_script_for_psql_may_not(postgres: PostgresRig, text: str, why: str) -> None:
    before, touched = postgres.content(), postgres.folder / "touched"
    with pytest.raises(MigrationFailed, match=why):
        postgres.run(MIGRATE + text.replace("{}", str(touched)))
    assert not touched.exists()
    assert postgres.content() == before


def test_text_that_looks_like_a_command(postgres: PostgresRig) -> None:
    postgres.run(
        r"""
        INSERT INTO notes VALUES (1000, 'a \! b; COMMIT; ''c'), (1001, E'it\'s \\'), (1002, $x$ \copy; ' !$x$);
        -- \! no
        SAVEPOINT a; DELETE FROM notes; ROLLBACK TO a;
        """
    )
    assert postgres.cluster.sql("SELECT text FROM notes WHERE id > 999 ORDER BY id", postgres.name).splitlines() == [
        "a \\! b; COMMIT; 'c",
        "it's \\",
        " \\copy; ' !",
    ]


def test_psql_itself_refuses_its_commands(postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second fence, where psql has it."""
    monkeypatch.setattr("otaflow.platform.postgresql.check_script", lambda script: None)
    if "restrict" not in subprocess.run(["psql", "--help=commands"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this psql is older")
    with pytest.raises(MigrationFailed, match="restricted"):
        postgres.run(f"\\! touch {postgres.folder}/touched\n")
    assert not (postgres.folder / "touched").exists()


def test_a_statement_of_a_script_that_was_given_up_is_ended_in_the_server(postgres: PostgresRig) -> None:
    started = time.monotonic()
    with pytest.raises(ProcessSwPackageCancelled):
        postgres.run("SELECT pg_sleep(999);", cancelled=lambda: time.monotonic() > started + 0.5)
    assert postgres.cluster.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(999)%;'") == "0"


def test_a_script_that_fills_the_servers_disk(postgres: PostgresRig) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    before, folder = postgres.content(), postgres.cluster.folder / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    try:
        shutil.chown(folder, "nobody", "nogroup")
        postgres.cluster.sql(f"CREATE TABLESPACE small LOCATION '{folder}'")
        postgres.cluster.sql("GRANT CREATE ON TABLESPACE small TO PUBLIC")
        with pytest.raises(MigrationFailed, match="No space left on device") as failed:
            postgres.run(MIGRATE + "CREATE TABLE big TABLESPACE small AS SELECT generate_series(1, 1000000);")
        assert "make room" in failed.value.hint
        assert postgres.content() == before
        postgres.cluster.sql("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", folder], check=True)


def everything_said(error: BaseException) -> str:
    said = [str(error), getattr(error, "hint", ""), getattr(error, "output", "")]
    return " ".join([*said, everything_said(error.__cause__) if error.__cause__ else ""])


def test_a_wrong_password_is_not_told(postgres: PostgresRig) -> None:
    (postgres.folder / "password").write_text("wrong-secret")
    for work in (postgres.database.exists, lambda: postgres.database.dump(postgres.dump)):
        with pytest.raises(DatabaseFailed, match="password authentication failed") as failed:
            work()
        assert "wrong-secret" not in everything_said(failed.value)


def test_a_password_that_a_script_shows(postgres: PostgresRig) -> None:
    secret = postgres.password.replace("'", "''")
    with pytest.raises(MigrationFailed) as failed:
        postgres.run(f"""DO $$ BEGIN RAISE EXCEPTION USING MESSAGE = '{secret}'; END $$""")
    assert postgres.password not in str(failed.value)


@pytest.mark.parametrize(
    ("said", "why", "hint"),
    [
        (
            "pg_dump: error: aborting because of server version mismatch\n"
            "pg_dump: detail: server version: 17.2; pg_dump version: 15.18",
            r"its server \(17\.2\) is newer",
            "apt-get install postgresql-client-17",
        ),
        (None, "there is no such program", "apt-get install postgresql-client"),
    ],
    ids=["newer server", "no program"],
)
def test_programs_that_do_not_fit(
    postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch, said: str | None, why: str, hint: str
) -> None:
    if said is None:
        monkeypatch.setattr(
            "otaflow.platform.run.DEFAULT_PATH", str(Path(shutil.which("setpriv") or "").parent / "none")
        )
        folder = postgres.folder / "bin"
        folder.mkdir()
        for name in ("setpriv", "psql", "sh", "perl"):
            (folder / name).symlink_to(shutil.which(name) or "")
        monkeypatch.setenv("PATH", str(folder))
    else:
        program = postgres.folder / "bin" / "pg_dump"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\ncat <<END >&2\n{said}\nEND\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(DatabaseFailed, match=why) as failed:
        postgres.database.dump(postgres.dump)
    assert failed.value.hint == hint
    assert os.listdir(postgres.dump.parent) == []


@pytest.mark.parametrize("url", ["postgresql://x@/", "postgresql://x@/db?passfile=/etc/x"])
def test_urls_that_cannot_be_used(url: str) -> None:
    with pytest.raises(DatabaseFailed, match="cannot use the URL"):
        PostgresDatabase(url, None, 9)


def test_names_of_any_length_have_names_beside_them() -> None:
    one, other = (PostgresDatabase(f"postgresql:///{'x' * 62}{end}", None, 9) for end in "ab")
    assert len({one._new, one._aside, other._new, other._aside}) == 4
    assert all(len(name) <= 63 for name in (one._new, other._aside))


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_restored_where_there_is_no_room_for_two(small_disk: Path, tmp_path: Path) -> None:
    uploads = small_disk / "uploads"
    uploads.mkdir()
    for number in range(6):
        (uploads / f"{number}").write_bytes(b"1" * 8_000)
    database = DataFolder(uploads, FolderTrees())
    before = describe(uploads, times=True)
    database.dump(tmp_path / "dump")
    (uploads / "1").write_bytes(b"2" * 8_000)
    (uploads / "extra").write_bytes(b"3" * 30_000)
    database.restore(tmp_path / "dump")
    assert describe(uploads, times=True) == before
    assert os.listdir(small_disk) == ["uploads"]


def test_a_writer_in_a_folder_is_found(tmp_path: Path) -> None:
    rig = FolderRig(tmp_path, FolderTrees())
    rig.fill()
    rig.database.dump(rig.dump)
    manifest = rig.dump / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "bytes": 1}))
    with pytest.raises(DatabaseFailed, match="it has 420000 bytes and should have 1") as failed:
        rig.database.check(rig.dump)
    assert "still write" in failed.value.hint
