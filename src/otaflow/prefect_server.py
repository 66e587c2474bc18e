"""Prefect's server as otaflow starts it: its settings, and one fault of what it is built on kept off.

`python -m otaflow.prefect_server server start …` is `prefect server start …`, but for that fault: a server on SQLite
stands still for a minute at a time (docs/decisions/0014-a-server-that-stands-still.md).
"""

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext

PROGRAM = (sys.executable, "-m", "otaflow.prefect_server", "server", "start", "--host", "127.0.0.1", "--port")
"""The command that serves on loopback; the port follows."""


def home_environment(home: Path) -> dict[str, str]:
    """Prefect's settings for a program that keeps to the folder `home` and tells nobody."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
    }


def server_environment(home: Path, url: str) -> dict[str, str]:
    """The same for the server at `url`, whose UI asks port 4200 unless it is told another one."""
    return {**home_environment(home), "PREFECT_SERVER_UI_API_URL": f"{url}/api"}


def renew_after_errors() -> None:
    """Use no SQLite connection again on which a statement failed.

    SQLAlchemy leaves such a statement open. Whoever frees it later, the garbage collector in the event loop's thread,
    waits for the connection; where that waits for another one's transaction, which only the event loop can end, all
    stands still until SQLite gives up, after 60 s.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    event.listen(Engine, "handle_error", _renew)


def _renew(context: "ExceptionContext") -> None:
    """Who takes the connection out of the pool next gets a new one. What goes on with it now is not disturbed."""
    connection = context.connection
    if context.dialect.name == "sqlite" and connection and not connection.closed and not connection.invalidated:
        connection.connection.invalidate(soft=True)


if __name__ == "__main__":
    renew_after_errors()
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
