"""The Prefect server of one device: SQLite in its nvm, on loopback, with a login of its own.

`otaflow up` starts it; other commands on the device find it by `nvm/prefect/server.json`, unless PREFECT_API_URL names
another one.
"""

import json
import logging
import os
import secrets
import socket
import sys
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

START_SECONDS = 120.0
USER = "otaflow"
WATCH_SECONDS = 5.0

log = logging.getLogger("otaflow.prefect")


class Embedded:
    """The server of `device`. `start` and `stop` enclose its life."""

    def __init__(self, device: Device) -> None:
        self.folder = device.nvm / "prefect"
        self.port = device.config.prefect.port
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: Server | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="otaflow-prefect", daemon=True)

    @property
    def login(self) -> str:
        """`user:password`, made once, readable by its owner alone."""
        path = self.folder / "login"
        if not path.exists():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, f"{USER}:{secrets.token_urlsafe(12)}\n".encode(), mode=0o600)
        return path.read_text().strip()

    def start(self) -> None:
        """Start it, and return when it answers; from then on it is started again when it dies, until `stop`.

        Raises OtaflowError with its last words when it does not answer.
        """
        self._start()
        self._thread.start()

    def _start(self) -> None:
        if _listens(self.port):
            raise OtaflowError(
                f"cannot start Prefect's server: another program listens on port {self.port}",
                hint="set prefect.port in the configuration, or PREFECT_API_URL to the server that is to be used",
            )
        environment = {
            "HOME": str(self.folder),
            "PREFECT_HOME": str(self.folder),
            "PREFECT_SERVER_API_AUTH_STRING": self.login,
            "PREFECT_SERVER_UI_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",  # a device runs for years
            "DO_NOT_TRACK": "1",
            "NO_COLOR": "1",
        }
        program = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        log = self.folder / "server.log"
        log.unlink(missing_ok=True)
        self._server = start(program, env=environment, log=log)
        self._wait()
        record = {"url": f"{self.url}/api", "port": self.port, "pid": self._server.pid}
        write_atomic(self.folder / "server.json", json.dumps(record).encode())
        use(self.folder)

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(START_SECONDS)
        (self.folder / "server.json").unlink(missing_ok=True)
        if self._server:
            stop(self._server)

    def _watch(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            if self._server and not is_running(self._server):
                log.warning("Prefect's server has died, and is started again")
                try:
                    self._start()
                except OtaflowError as error:
                    log.warning("%s", error)

    def _wait(self) -> None:
        assert self._server is not None
        end = time.monotonic() + START_SECONDS
        while is_running(self._server) and time.monotonic() < end and not self._ended.is_set():
            if self._answers():
                return
            time.sleep(0.1)
        said = (self.folder / "server.log").read_text(errors="replace").strip().splitlines()
        stop(self._server)
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
        if not _listens(int(record["port"])):
            return
    except (OSError, ValueError, KeyError):
        return
    os.environ["PREFECT_API_URL"] = record["url"]
    os.environ["PREFECT_API_AUTH_STRING"] = login


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
