"""`otaflow up` where Prefect's server cannot start: the update manager is there all the same."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from update_world import World

from otaflow.client import Client


def test_the_agent_answers_although_the_port_is_taken(trusting: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        trusting.configure(f"[prefect]\nport = {taken.getsockname()[1]}\n")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        up = subprocess.Popen(
            [sys.executable, "-c", "from otaflow.cli import main; main()", "up", "-c", str(trusting.config)],
            env=environment | {"PREFECT_HOME": str(trusting.folder / "prefect")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert up.stdout is not None
            said = ""
            while "another program listens" not in said:
                line = up.stdout.readline()
                assert line, said
                said += line
            assert "Idle, answering on" in said
            with Client(Path(said.split("answering on ")[1].split()[0])) as client:
                assert client.current_status()["status"] == "Idle"
        finally:
            up.kill()
            up.wait()
