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
from otaflow.diagnostics import Spool, collect, read_consent
from otaflow.platform.device import Device, using
from otaflow.policy.inbox import Kind
from otaflow.policy.offer import Offer
from otaflow.tasks import policy

OFFER = Offer("system", "1.1.0", "c0ffee" * 10 + "c0ff", bytes=10, description="Better.")
NOTES = Offer("notes", "1.1.0", "decade" * 10 + "deca", kind="application", irreversible=True, irreversible_data="it")


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


def offer(device: Device, *offers: Offer) -> None:
    with using(device):
        policy.notify_user.do([*(offers or [OFFER])], "")


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


def test_offers_of_one_version_are_told_apart(real: Client, device: Device) -> None:
    offer(device, OFFER, NOTES)
    found = real.get_offers()
    assert [(one["name"], one["kind"], one["irreversible"]) for one in found] == [
        ("system", "system", False),
        ("notes", "application", True),
    ]
    assert found[1]["irreversible_data"] == "it"
    assert found[1]["choices"] == ["now", "at-next-restart", "not-this-one"], "the device has no windows"
    with pytest.raises(errors.OperationNotPermitted, match=r"system 1\.1\.0 and notes 1\.1\.0"):
        real.consent("now", "1.1.0")
    real.consent("now", "1.1.0", name="notes")
    assert [one["verdict"] for one in real.get_offers()] == ["ask", "install"]


def test_an_answer_to_what_was_shown(real: Client, device: Device) -> None:
    offer(device)
    with pytest.raises(errors.OperationNotPermitted, match="another content now"):
        real.consent("now", "1.1.0", content="0" * 64)
    with pytest.raises(errors.OperationNotPermitted, match="another content now"):
        real.consent("withdraw", content="0" * 64)
    assert real.get_offers()[0]["verdict"] == "ask"
    real.consent("now", "1.1.0", content=OFFER.content)
    assert real.get_offers()[0]["verdict"] == "install"


def test_diagnostic_data_is_agreed_to(real: Client, device: Device) -> None:
    asked = real.get_diagnostics()
    assert (asked["consent"], asked["waiting"]) == ({"given": False, "time": None, "by": None}, 0)
    assert asked["report"].keys() == collect(device).keys()
    assert asked["report"]["device"] == {"name": "d", "model": "m"}
    given = real.diagnostics_consent(given=True, by="somebody in\nthe cab")
    assert (given["given"], given["by"], given["removed"]) == (True, "somebody in the cab", 0)
    assert read_consent(device.nvm).given
    spool = Spool(device.nvm)
    spool.add(asked["report"], lambda: True)
    assert real.get_diagnostics()["waiting"] == 1
    assert real.diagnostics_consent(given=False)["removed"] == 1
    assert not read_consent(device.nvm).given
    assert spool.waiting() == []


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
        ("Consent", {"choice": "now", "content": "c0ffee"}),
        ("Consent", {"choice": "now", "name": "x" * 65}),
        ("GetMessages", {"reader": "with space"}),
        ("GetMessages", {"after": -1}),
        ("DiagnosticsConsent", {}),
        ("DiagnosticsConsent", {"given": "yes"}),
        ("AcknowledgeMessage", {"reader": "radio"}),
        ("AcknowledgeMessage", {"reader": "radio", "id": "1"}),
    ],
)
def test_malformed(client: Client, stub: Any, method: str, body: dict[str, Any]) -> None:
    with pytest.raises(errors.GeneralReject):
        client._post(f"/otaflow/{method}", **body)
    assert stub.policy.said == []
