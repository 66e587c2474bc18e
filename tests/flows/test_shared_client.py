"""The clients of Prefect's API: one for all steps, patient with an API that is away, quick with one that is busy."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.context import SyncClientContext
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED, temporary_settings

from otaflow.config import parse
from otaflow.flows.clients import rest_shortly
from otaflow.flows.session import PrefectRuns
from otaflow.platform.device import Device
from otaflow.ucm.states import State


@pytest.fixture
def busy_server() -> Iterator[tuple[str, list[int]]]:
    """A server that is busy twice before it answers, as Prefect's is with SQLite; its address and its answers."""
    answers: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.append(503 if len(answers) < 2 else 200)
            self.send_response(answers[-1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api", answers
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_busy_api_is_asked_again_after_a_short_rest(busy_server: tuple[str, list[int]]) -> None:
    """A canary too: Prefect's client must go on to honour Retry-After, and to retry a 503."""
    url, answers = busy_server
    rests: list[str] = []
    with temporary_settings({PREFECT_API_URL: url}):
        client = get_client(sync_client=True)
        hooks = client._client.event_hooks["response"]
        hooks += [rest_shortly, lambda response: rests.append(response.headers.get("Retry-After", ""))]
        assert client.request("GET", "/hello").status_code == 200
    assert answers == [503, 503, 200]
    assert rests == ["0.02", "0.06", ""]


def test_an_api_that_is_away_stops_nothing(tmp_path: Path) -> None:
    device = Device(parse({"device": {"name": "d", "model": "m", "root": "device"}}, tmp_path / "otaflow.toml"))
    device.nvm.mkdir(parents=True)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_SERVER_EPHEMERAL_ENABLED: False}):
        runs = PrefectRuns(device)
        runs.publish(State.IDLE, "")
        runs.close()
    assert SyncClientContext.get() is None


TOO_SLOW = """
from contextlib import ExitStack
from otaflow.flows.clients import connect
try:
    connect(ExitStack())
except RuntimeError as error:
    print(error)
"""


def test_a_server_of_prefects_own_that_is_too_slow_is_not_left_behind(tmp_path: Path) -> None:
    """Prefect forgets the first one where it is asked twice."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "0"}
    environment |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TOO_SLOW], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.startswith("Prefect's own server does not start")
    assert [one for one in psutil.process_iter() if _home(one) == str(tmp_path)] == []


def _home(process: psutil.Process) -> str:
    try:
        return process.environ().get("PREFECT_HOME", "")
    except psutil.Error:
        return ""
