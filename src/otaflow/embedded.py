"""The Prefect server of one device: SQLite in its nvm, on loopback, with a login of its own.

`otaflow up` starts it; other commands on the device find it by `nvm/prefect/server.json`, unless PREFECT_API_URL names
another one.
"""

import json
import logging
import os
import secrets
import socket
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

from otaflow.errors import OtaflowError
from otaflow.files import write_atomic
from otaflow.platform.device import Device
from otaflow.platform.run import Server, is_running, start, stop
from otaflow.prefect_server import PROGRAM, server_environment

START_SECONDS = 120.0
USER = "otaflow"
WATCH_SECONDS = 5.0
AGAIN_SECONDS = 30.0
"""How long after a start that failed the next one is tried."""
LOG_BYTES = 4 * 2**20
"""What it says between two starts, at most."""

log = logging.getLogger("otaflow.prefect")


class Embedded:
    """The server of `device`. `start` and `stop` enclose its life."""

    def __init__(self, device: Device) -> None:
        self.folder = device.nvm / "prefect"
        self.port = device.config.prefect.port
        self.url = f"http://127.0.0.1:{self.port}"
        self.tried = threading.Event()
        """Set when the first start has succeeded or failed."""
        self.problem = ""
        """Why the last start that failed did."""
        self._login = ""
        self._server: Server | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="otaflow-prefect", daemon=True)

    @property
    def login(self) -> str:
        """`user:password`, made once; `_start` keeps it for the next time."""
        if not self._login:
            try:
                self._login = (self.folder / "login").read_text().strip()
            except (OSError, ValueError):
                self._login = ""
            self._login = self._login or f"{USER}:{secrets.token_urlsafe(12)}"
        return self._login

    @property
    def runs(self) -> bool:
        """Whether it was started, and has not died since."""
        return self._server is not None and is_running(self._server)

    def use(self) -> None:
        """Let this process's Prefect client use it, also before it answers: until then it counts as away."""
        os.environ["PREFECT_API_URL"] = f"{self.url}/api"
        os.environ["PREFECT_API_AUTH_STRING"] = self.login

    def start(self) -> None:
        """Start it in the background, again when that fails, and again when it dies, until `stop`. Never raises."""
        self._thread.start()

    def _keep_login(self) -> None:
        """Readable by its owner alone."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / "login"
        if not path.exists() or path.read_text(errors="replace").strip() != self.login:
            write_atomic(path, f"{self.login}\n".encode(), mode=0o600)

    def _start(self) -> None:
        """Start it, and return when it answers. Raises OtaflowError with its last words when it does not, OSError."""
        self._keep_login()
        if _listens(self.port):
            raise OtaflowError(
                f"cannot start Prefect's server: another program listens on port {self.port}",
                hint="set prefect.port in the configuration, or PREFECT_API_URL to the server that is to be used",
            )
        environment = {
            **server_environment(self.folder, self.url),
            "HOME": str(self.folder),
            "PREFECT_SERVER_API_AUTH_STRING": self.login,
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",  # a device runs for years
        }
        log = self.folder / "server.log"
        log.unlink(missing_ok=True)
        self._server = start([*PROGRAM, str(self.port)], env=environment, log=log)
        self._wait()
        record = {"url": f"{self.url}/api", "port": self.port, "pid": self._server.pid}
        write_atomic(self.folder / "server.json", json.dumps(record).encode())

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(START_SECONDS)
        if self._server:
            (self.folder / "server.json").unlink(missing_ok=True)
            stop(self._server)

    def _watch(self) -> None:
        said = ""
        while not self._ended.is_set():
            wait = WATCH_SECONDS
            try:
                self._look()
                said = ""
            except Exception as error:  # a full disk, a port that is taken: the device does its work without it
                if self._put_aside_damaged():
                    continue
                wait = AGAIN_SECONDS
                if str(error) != said:
                    log.warning("%s; it is tried again", error)
                said = self.problem = str(error)
            self.tried.set()
            self._ended.wait(wait)

    def _look(self) -> None:
        """Start it unless it runs; what it says must not fill the disk."""
        if self._server is None:
            (self.folder / "server.json").unlink(missing_ok=True)  # of one that a power cut ended
            self._start()
        elif not is_running(self._server):
            log.warning("Prefect's server has died, and is started again")
            self._server = None
            self._start()
        said = self.folder / "server.log"
        if said.stat().st_size > LOG_BYTES:
            os.truncate(said, 0)

    def _put_aside_damaged(self) -> bool:
        """Whether its database is damaged: then it is renamed, and the next start makes a new one.

        What is lost is the look of former runs. The journal and the history have the truth, and the sessions that the
        journal still knows are shown again. The last damaged one is kept, as `prefect.db.damaged`.
        """
        path = self.folder / "prefect.db"
        if self._server is not None or not _is_damaged(path):
            return False
        try:
            for end in ("-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
            os.rename(path, path.with_name(f"{path.name}.damaged"))
        except OSError as error:
            log.warning("cannot put the damaged database of Prefect's server aside: %s", error)
            return False
        log.warning("the database of Prefect's server was damaged: it is %s.damaged now, and made anew", path)
        return True

    def _wait(self) -> None:
        assert self._server is not None
        end = time.monotonic() + START_SECONDS
        while is_running(self._server) and time.monotonic() < end and not self._ended.is_set():
            if self._answers():
                return
            time.sleep(0.1)
        said = (self.folder / "server.log").read_text(errors="replace").strip().splitlines()
        stop(self._server)
        self._server = None
        raise OtaflowError(f"cannot start Prefect's server: {said[-1] if said else 'it does not answer'}")

    def _answers(self) -> bool:
        request = urllib.request.Request(f"{self.url}/api/health")
        request.add_header("Authorization", f"Basic {b64encode(self.login.encode()).decode()}")
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def use_embedded(device: Device) -> None:
    """Let this process's Prefect client use the device's own server, where that runs and no other one is named."""
    if "PREFECT_API_URL" not in os.environ:
        use(device.nvm / "prefect")


def use(folder: Path) -> None:
    """Let this process's Prefect client use the server in `folder`, if it runs and we may know its login."""
    try:
        record = json.loads((folder / "server.json").read_text())
        login = (folder / "login").read_text().strip()
        if not _is_prefect(int(record["pid"])) or not _listens(int(record["port"])):
            return
    except (OSError, ValueError, KeyError, TypeError):
        return
    os.environ["PREFECT_API_URL"] = record["url"]
    os.environ["PREFECT_API_AUTH_STRING"] = login


def _is_prefect(pid: int) -> bool:
    """Whether that process is Prefect: a record that a power cut left may name a port that is another program's now."""
    import psutil  # slow to import

    try:
        return any("prefect" in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _is_damaged(database: Path) -> bool:
    """Whether SQLite says so; what it cannot tell now (no file, no right to read it, a lock) is no damage."""
    if not database.is_file() or not database.stat().st_size:
        return False
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",))
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
