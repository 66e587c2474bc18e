"""The embedded server's database is damaged: its server cannot start, which is said, and nothing else depends on it."""

import socket
from pathlib import Path

import pytest

from otaflow.config import parse
from otaflow.embedded import Embedded
from otaflow.platform.device import Device


def test_a_database_that_is_damaged_is_told_and_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {"device": {"name": "d", "model": "m", "root": str(tmp_path)}, "prefect": {"port": port}}
    server = Embedded(Device(parse(values, tmp_path / "otaflow.toml")))
    server.folder.mkdir(parents=True)
    database = server.folder / "prefect.db"
    database.write_bytes(b"not a database " * 5000)
    server.start()
    try:
        assert server.tried.wait(180)
        assert not server.runs
        assert "cannot start Prefect's server" in server.problem
        assert "it is tried again" in caplog.text
    finally:
        server.stop()
    assert database.read_bytes() == b"not a database " * 5000
