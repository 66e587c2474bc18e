"""schemathesis against the running interface, over TLS: no failure of the server, no answer that is not documented."""

import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from otaflow import errors
from otaflow.client import Client
from otaflow.ucm.states import State
from otaflow.ucm.table import TABLE

END = {
    State.ACTIVATING: State.VERIFYING,
    State.CLEANING_UP: State.IDLE,
    State.ROLLING_BACK: State.ROLLED_BACK,
}

# What is refused for the state of a transfer is 422 by contract, whatever the document says of the request's form.
CONFIG = """
[[operations]]
include-name = ["POST /ucm/TransferData", "POST /ucm/TransferExit"]
checks.positive_data_acceptance.enabled = false
"""


def answer_at_once(stub: Any) -> None:
    """Let the stub's work be done as soon as it is asked for, so that the calls of a fuzzer are answered."""

    def fire(method: str, *arguments: Any) -> Future[None]:
        row = TABLE[stub.state, f"<{method}"]
        if row.error:
            raise getattr(errors, row.error)(f"cannot {method}: the update manager is {stub.state}")
        if arguments:
            stub._known(arguments[0])
        done: Future[None] = Future()
        done.set_result(None)
        stub.go(State.READY if method == "ProcessSwPackage" else END.get(row.next[0], row.next[0]))
        return done

    stub._fire = fire
    stub.quota = 10**400


def test_schemathesis(serve: Any, pki: Any, stub: Any, folder: Path) -> None:
    answer_at_once(stub)
    (folder / "schemathesis.toml").write_text(CONFIG)
    server = serve(
        listen="127.0.0.1:0", certificate=pki.server[0], key=pki.server[1], token_file=pki.token_file, client_ca=pki.ca
    )
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {pki.token_file.read_text().strip()}", "--tls-verify", pki.ca]
    command += ["--max-examples", "25", "--seed", "1", "--request-timeout", "120", "--suppress-health-check", "all"]
    ran = subprocess.run([*command, "--generation-database", ":memory:"], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(stub.asked) > 100
    with Client(socket=server.socket) as client:
        assert client.current_status()["status"] in list(State)
