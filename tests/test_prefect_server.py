"""The fault that otaflow keeps off Prefect's server (decision 14): a statement that failed stays open in SQLAlchemy."""

import asyncio
import gc
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from otaflow import prefect_server

INSERT = "INSERT INTO numbers VALUES (1)"


@pytest.fixture
def collected_by_hand() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.fixture
def renewed() -> Iterator[None]:
    prefect_server.renew_after_errors()
    yield
    sa.event.remove(Engine, "handle_error", prefect_server._renew)


async def connection_of(engine: AsyncEngine) -> sqlite3.Connection:
    """The one that the pool gives out."""
    async with engine.connect() as connection:
        raw: Any = await connection.get_raw_connection()
        found: sqlite3.Connection = raw.driver_connection._conn
        return found


async def fail_on(path: Path) -> tuple[bool, int]:
    """Let a statement fail: whether its connection is used again, and how many cursors of the next one are open."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE numbers (number INTEGER PRIMARY KEY)"))
        await connection.execute(sa.text(INSERT))
    former = await connection_of(engine)
    with pytest.raises(sa.exc.IntegrityError):
        async with engine.connect() as connection:
            await connection.execute(sa.text(INSERT))
    found = await connection_of(engine)
    left = [one for one in gc.get_objects() if isinstance(one, sqlite3.Cursor) and one.connection is found]
    answer = found is former, len(left)
    left.clear()
    await engine.dispose()
    return answer


def test_a_connection_on_which_a_statement_failed_is_not_used_again(
    tmp_path: Path, collected_by_hand: None, renewed: None
) -> None:
    assert asyncio.run(fail_on(tmp_path / "numbers.db")) == (False, 0)


def test_what_goes_on_after_an_error_is_not_disturbed(tmp_path: Path, renewed: None) -> None:
    """A savepoint that fails ends no transaction."""

    async def fail_within() -> list[int]:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'numbers.db'}")
        async with engine.begin() as connection:
            await connection.execute(sa.text("CREATE TABLE numbers (number INTEGER PRIMARY KEY)"))
            await connection.execute(sa.text(INSERT))
            with pytest.raises(sa.exc.IntegrityError):
                async with connection.begin_nested():
                    await connection.execute(sa.text(INSERT))
            await connection.execute(sa.text("INSERT INTO numbers VALUES (2)"))
        async with engine.connect() as connection:
            found = list((await connection.execute(sa.text("SELECT number FROM numbers ORDER BY number"))).scalars())
        await engine.dispose()
        return found

    assert asyncio.run(fail_within()) == [1, 2]


def test_the_fault_is_still_there(tmp_path: Path, collected_by_hand: None) -> None:
    """A canary: where it is gone, `prefect server start` will do."""
    assert asyncio.run(fail_on(tmp_path / "numbers.db")) == (True, 1)
