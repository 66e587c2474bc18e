"""The device's own Prefect server where it cannot start, and what earlier ones left behind. No server is started."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from otaflow import embedded
from otaflow.config import parse
from otaflow.embedded import Embedded
from otaflow.platform.device import Device


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "")  # so that it is restored, also where only the tested code sets it
        monkeypatch.delenv(name)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def make_server(folder: Path, port: int = 4200) -> Embedded:
    values = {"device": {"name": "d", "model": "m", "root": str(folder)}, "prefect": {"port": port}}
    return Embedded(Device(parse(values, folder / "otaflow.toml")))


def test_a_server_that_cannot_start_is_tried_again(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "AGAIN_SECONDS", 0.01)
    server = make_server(tmp_path, taken)
    server.use()
    server.start()
    assert server.tried.wait(60)
    assert not server.runs
    server.stop()
    assert os.environ["PREFECT_API_URL"] == f"{server.url}/api"
    assert caplog.text.count("another program listens") == 1  # not told at each try


def test_the_login_stays(tmp_path: Path) -> None:
    first = make_server(tmp_path)
    first._keep_login()
    assert make_server(tmp_path).login == first.login
    assert (first.folder / "login").stat().st_mode & 0o777 == 0o600


def test_a_record_that_a_power_cut_left_is_not_believed(tmp_path: Path, taken: int) -> None:
    """Its port is another program's now: that is not given the login."""
    server = make_server(tmp_path, taken)
    server._keep_login()
    record = {"url": f"{server.url}/api", "port": taken, "pid": 1}
    (server.folder / "server.json").write_text(json.dumps(record))
    embedded.use(server.folder)
    assert "PREFECT_API_URL" not in os.environ


def test_its_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server(tmp_path)
    server._keep_login()
    monkeypatch.setattr(server, "_start", lambda: None)
    said = server.folder / "server.log"
    said.write_bytes(b"x" * (embedded.LOG_BYTES + 1))
    server._look()
    assert said.stat().st_size == 0
