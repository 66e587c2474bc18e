"""The embedded server's database is damaged: it is put aside and made anew, and nothing else depends on it."""

import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from otaflow.config import parse
from otaflow.embedded import Embedded
from otaflow.platform.device import Device


def write_nonsense(database: Path) -> None:
    database.write_bytes(b"not a database " * 5000)


def spoil_pages(database: Path) -> None:
    """A database whose header is sound, and whose pages are not."""
    with closing(sqlite3.connect(database)) as made, made:
        made.execute("CREATE TABLE alembic_version (version_num TEXT)")
        made.executemany("INSERT INTO alembic_version VALUES (?)", [(f"{number:0200}",) for number in range(500)])
    content = bytearray(database.read_bytes())
    content[4096:] = b"x" * (len(content) - 4096)
    database.write_bytes(content)


@pytest.fixture
def server(tmp_path: Path) -> Embedded:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {"device": {"name": "d", "model": "m", "root": str(tmp_path)}, "prefect": {"port": port}}
    made = Embedded(Device(parse(values, tmp_path / "otaflow.toml")))
    made.folder.mkdir(parents=True)
    return made


@pytest.mark.parametrize("spoil", [write_nonsense, spoil_pages])
def test_a_damaged_database_is_put_aside_and_made_anew(
    server: Embedded, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    database = server.folder / "prefect.db"
    spoil(database)
    damaged = database.read_bytes()
    server.start()
    try:
        assert server.tried.wait(300)
        assert server.runs, server.problem
        assert "was damaged" in caplog.text
    finally:
        server.stop()
    kept = (server.folder / "prefect.db.damaged").read_bytes()
    assert kept[4096:] == damaged[4096:]  # in the first page SQLite counts
    with closing(sqlite3.connect(database)) as made:
        assert made.execute("PRAGMA quick_check").fetchone() == ("ok",)


def test_what_is_no_damage_stays(server: Embedded, caplog: pytest.LogCaptureFixture) -> None:
    """A database that somebody holds, or of a newer Prefect: it is told, and nothing is put aside."""
    database = server.folder / "prefect.db"
    with closing(sqlite3.connect(database)) as made, made:
        made.execute("CREATE TABLE alembic_version (version_num TEXT)")
        made.execute("INSERT INTO alembic_version VALUES ('of the future')")
    server.start()
    try:
        assert server.tried.wait(300)
        assert not server.runs
        assert "cannot start Prefect's server" in server.problem
        assert "it is tried again" in caplog.text
    finally:
        server.stop()
    assert not (server.folder / "prefect.db.damaged").exists()
