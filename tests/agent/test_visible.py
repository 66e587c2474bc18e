"""The thread that listens for Prefect's buttons: it outlives whatever a button comes to."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from update_world import World

from otaflow.agent import visible
from otaflow.agent.visible import Visible
from otaflow.cli.agent import _connect
from otaflow.ucm.states import State


class Pressed:
    """Prefect's side, where *Resume* is pressed each time that somebody looks."""

    def __init__(self) -> None:
        self.put: list[str] = []
        self.twice = threading.Event()

    def behind(self) -> bool:
        return False

    def pressed(self) -> tuple[str, State]:
        return "Resume", State.READY

    def put_back(self, why: str) -> None:
        self.put.append(why)
        if len(self.put) == 2:
            self.twice.set()

    def close(self) -> None: ...


def test_a_disk_that_takes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is put back, and says why; the next button is heard."""
    monkeypatch.setattr(visible, "LOOK_SECONDS", 0.01)
    runs: Any = Pressed()

    def ask(call: str, state: State) -> None:
        raise OSError(28, "No space left on device")

    shown = Visible(runs, ask, lambda: State.READY)
    try:
        assert runs.twice.wait(60)
    finally:
        shown.close()
    assert "Resume came to nothing" in runs.put[0]
    assert "No space left" in runs.put[0]


def test_the_end_does_not_wait_for_a_server_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visible, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(visible, "FLUSH_SECONDS", 0.1)
    asked, answers = threading.Event(), threading.Event()

    class Standing(Pressed):
        def pressed(self) -> tuple[str, State]:
            asked.set()
            answers.wait(600)
            raise TimeoutError

    runs: Any = Standing()
    shown = Visible(runs, lambda call, state: None, lambda: State.READY)
    try:
        assert asked.wait(60)
        shown.close()
    finally:
        answers.set()


def test_an_api_that_is_another_program_is_asked_again_and_nothing_is_left_of_it(world: World) -> None:
    """A captive portal, or a proxy's page: connecting is tried each few seconds, for as long as it is there."""

    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>back soon</html>")

        do_GET = do_POST

        def log_message(self, *words: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
            before = threading.active_count()
            for _ in range(3):
                with pytest.raises(Exception):  # noqa: B017
                    _connect(world.device())
            assert not [one for one in threading.enumerate() if one.name == "otaflow-runs"]
            assert threading.active_count() <= before + 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
