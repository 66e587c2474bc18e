"""The methods of applications, over the wire: what is taken, what is refused, what is answered."""

from typing import Any

import httpx
import pytest

from otaflow import errors
from otaflow.api.serve import Server
from otaflow.client import Client
from otaflow.ucm.states import State


def test_what_is_asked_for_arrives(client: Client, stub: Any) -> None:
    assert client.request_update("notes")["searching"] is True
    assert client.defer("notes") == {"secondsLeft": 299.5, "defersLeft": 2}
    assert stub.asked[-2:] == [("request_update", "notes"), ("defer", "notes")]


@pytest.mark.parametrize("method", ["request_update", "defer", "remove"])
def test_what_is_not_installed(client: Client, method: str) -> None:
    kind = errors.NothingToRevert if method == "remove" else errors.OperationNotPermitted
    with pytest.raises(kind, match="radio: it is not installed"):
        getattr(client, method)("radio")


@pytest.mark.parametrize("state", [State.PROCESSING, State.VERIFYING, State.ACTIVATED], ids=str)
def test_a_removal_is_refused_as_a_package_is(client: Client, stub: Any, state: State) -> None:
    stub.state = state
    with pytest.raises(errors.ServiceBusy if state is State.PROCESSING else errors.OperationNotPermitted):
        client.remove("notes")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("otaflow/Remove", {}),
        ("otaflow/Remove", {"name": "../notes"}),
        ("otaflow/Remove", {"name": "notes", "unattended": "yes"}),
        ("otaflow/RequestUpdate", {"name": ""}),
        ("otaflow/RequestUpdate", {"name": "notes", "version": "1.0.0"}),
        ("otaflow/Defer", {"name": "x" * 65}),
        ("otaflow/Defer", {"name": None}),
        ("ucm/ProcessSwPackage", {"id": "x", "acceptIrreversible": 1}),
    ],
    ids=lambda value: str(value),
)
def test_what_is_malformed_reaches_nobody(server: Server, stub: Any, path: str, body: dict[str, Any]) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(server.socket)), base_url="http://ucm") as http:
        answer = http.post(f"/{path}", json=body)
    assert (answer.status_code, answer.json()["error"]) == (422, "GeneralReject")
    assert stub.asked == []
