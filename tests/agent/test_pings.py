"""The agent pings systemd's watchdog while its threads are there and its interface answers."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from update_world import World

from otaflow.agent.agent import Agent
from otaflow.api.app import make_app
from otaflow.api.serve import Server

COMMAND = [sys.executable, "-c", "from otaflow.cli import main; main()", "agent"]


@pytest.fixture
def kind() -> str:
    return "directories"


def test_it_pings_while_it_serves(world: World, tmp_path: Path) -> None:
    place = tmp_path / "notify"
    environment = {
        **os.environ,
        "OTAFLOW_CONFIG": str(world.config),
        "NOTIFY_SOCKET": str(place),
        "WATCHDOG_USEC": "300000",
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "PREFECT_HOME": str(tmp_path / "prefect"),
    }
    environment.pop("WATCHDOG_PID", None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(place))
        systemd.settimeout(120)
        agent = subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert agent.stdout
            assert "answering on" in agent.stdout.readline()
            for _ in range(5):
                assert systemd.recv(100) == b"WATCHDOG=1"
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.communicate(timeout=120)
    assert agent.returncode == 0


def test_a_thread_that_is_gone_is_no_answer(world: World) -> None:
    agent = Agent(world.device())
    server = Server(make_app(agent), world.device().config)
    assert not agent.is_alive
    assert not server.answers(0.1)
    agent.start()
    try:
        server.start()
        assert agent.is_alive
        assert server.answers(60)
        server.stop()
        assert not server.answers(0.1)
        agent.worker.end()
        agent.worker.thread.join()
        assert not agent.is_alive
    finally:
        agent.stop()
