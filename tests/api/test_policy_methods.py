"""The update policy over the interface: offers and consent, and the applications' messages, listed, streamed, taken."""

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from otaflow import errors
from otaflow.agent.policy import Policy
from otaflow.client import Client
from otaflow.config import parse
from otaflow.platform.device import Device, using
from otaflow.policy.inbox import Kind
from otaflow.policy.offer import Offer
from otaflow.tasks import policy

OFFER = Offer("system", "1.1.0", "c0ffee" * 8, bytes=10, description="Better.")


@pytest.fixture
def device(folder: Path) -> Device:
    device = Device(parse({"device": {"name": "d", "model": "m", "root": "device"}}, folder / "otaflow.toml"))
    (device.nvm).mkdir(parents=True)
    return device


@pytest.fixture
def real(device: Device, stub: Any, serve: Any) -> Any:
    """The interface with the policy of a device."""
    stub.policy = Policy(device)
    with Client(socket=serve().socket) as client:
        yield client


def offer(device: Device) -> None:
    with using(device):
        policy.notify_user.do([OFFER], "")


def test_consent(real: Client, device: Device) -> None:
    with pytest.raises(errors.OperationNotPermitted, match="not on offer"):
        real.consent("now")
    offer(device)
    [found] = real.get_offers()
    assert (found["version"], found["verdict"], found["content"]) == ("1.1.0", "ask", OFFER.content)
    real.consent("now", "1.1.0", by="somebody in the cab")
    [found] = real.get_offers()
    assert found["verdict"] == "install"
    assert "somebody in the cab said `now`" in found["reasons"][0]["text"]
    real.consent("withdraw")
    assert real.get_offers()[0]["verdict"] == "ask"
    with pytest.raises(errors.OperationNotPermitted, match="no maintenance window"):
        real.consent("in-window")
    real.consent("not-this-one")
    assert real.get_offers()[0]["verdict"] == "refuse"


def test_messages(real: Client, device: Device) -> None:
    offer(device)
    [message] = real.get_messages()
    assert (message["kind"], message["version"]) == ("available", "1.1.0")
    assert real.get_messages(after=message["id"]) == []
    real.acknowledge_message("radio", message["id"])
    assert real.get_messages("radio") == []
    assert real.get_messages("another") == [message]
    with pytest.raises(errors.OperationNotPermitted, match="the newest is 1"):
        real.acknowledge_message("radio", 7)


def test_messages_are_streamed(real: Client, device: Device) -> None:
    """Those that are there first, then each new one."""
    offer(device)
    seen: list[str] = []
    two = threading.Event()

    def read() -> None:
        for message in real.watch_messages("radio"):
            seen.append(message["kind"])
            if len(seen) == 2:
                two.set()
                return

    reader = threading.Thread(target=read)
    reader.start()
    with using(device):
        policy.memory().inbox.post(Kind.DONE, "system", "1.1.0", "done", now=datetime.now(UTC))
    assert two.wait(60)
    reader.join(60)
    assert seen == ["available", "done"]


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("Consent", {"choice": "perhaps"}),
        ("Consent", {}),
        ("Consent", {"choice": "now", "more": 1}),
        ("GetMessages", {"reader": "with space"}),
        ("GetMessages", {"after": -1}),
        ("AcknowledgeMessage", {"reader": "radio"}),
        ("AcknowledgeMessage", {"reader": "radio", "id": "1"}),
    ],
)
def test_malformed(client: Client, stub: Any, method: str, body: dict[str, Any]) -> None:
    with pytest.raises(errors.GeneralReject):
        client._post(f"/otaflow/{method}", **body)
    assert stub.policy.said == []
