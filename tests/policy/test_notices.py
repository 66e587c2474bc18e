"""Notices to people, and their words."""

import json
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from otaflow.config import parse
from otaflow.errors import ConfigError
from otaflow.policy import words
from otaflow.policy.decide import Verdict
from otaflow.policy.notices import send
from otaflow.policy.offer import Offer


class Receiver(BaseHTTPRequestHandler):
    """Takes apprise's JSON notices; on `/refuses` it does not."""

    got: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/refuses"):
            self.send_error(500)
            return
        self.got.append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of notices; its apprise URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Receiver.got.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"json://ann:secret@127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_notice_arrives(receiver: str) -> None:
    assert send(["An update is available.", "It is large."], [receiver, receiver])
    assert [(one["title"], one["message"]) for one in Receiver.got] == [
        ("otaflow", "An update is available.\nIt is large.")
    ] * 2


def test_without_urls_nothing_is_sent() -> None:
    assert send(["text"], [])
    assert send([], ["json://127.0.0.1:1"])


@pytest.mark.parametrize(
    "bad", ["json://ann:secret@127.0.0.1:9", "RECEIVER/refuses", "unheard-of://ann:secret@here", "json://"]
)
def test_what_cannot_be_sent_is_logged_without_secrets(
    receiver: str, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert not send(["text"], [bad.replace("RECEIVER", receiver), receiver], timeout=60)
    assert len(Receiver.got) == 1, "the others get theirs"
    ours = [record for record in caplog.records if record.name.startswith("otaflow")]
    assert sum(record.levelno == logging.WARNING for record in ours) == 1
    assert "secret" not in caplog.text


def test_a_server_that_hangs_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """It takes the connection and never answers; nothing but the bound ends the call."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert not send(["text"], [f"json://127.0.0.1:{port}?rto=600&cto=600"], timeout=0.2)
    assert "no answer within 0.2 s" in caplog.text


@pytest.mark.parametrize("url", ["nope", "://x", "json://", ""])
def test_a_bad_url_is_refused_without_being_quoted(url: str) -> None:
    device = {"name": "a", "model": "m", "root": "."}
    with pytest.raises(ConfigError, match=r"notices\.urls: .*entry 1 is no apprise URL"):
        parse({"device": device, "notices": {"urls": ["mailto://a:b@c", url]}}, Path("otaflow.toml"))


OFFER = Offer("base", "1.1.0", "c1" * 32, bytes=4_200_000, description="Fixes the clock")
SAID = {
    "available": (
        words.available(OFFER, Verdict.ASK),
        "An update is available: base 1.1.0 (4.2 MB to download). Fixes the clock. It is installed when you say so.",
    ),
    "priority": (
        words.available(Offer("base", "1.1.0", "c1", priority=True), Verdict.INSTALL),
        "A priority update is available: base 1.1.0. It will be installed now.",
    ),
    "for good": (
        words.available(
            replace(OFFER, irreversible=True, irreversible_data="the folder uploads of notes"), Verdict.ASK
        ),
        "An update is available: base 1.1.0 (4.2 MB to download). Fixes the clock. It changes the folder uploads of "
        "notes for good: what was there before cannot be brought back. It is installed when you say so.",
    ),
    "failed": (
        words.failed("base", "1.1.0", "cannot process the package:\n no space left"),
        "base 1.1.0 could not be installed: cannot process the package: no space left. The device runs on as before.",
    ),
    "rolled back": (
        words.rolled_back("base", "1.1.0", "the health check 'web' failed 3 times!", runs="1.0.0"),
        "base 1.1.0 was taken back: the health check 'web' failed 3 times! Version 1.0.0 runs.",
    ),
    "rolled back, not known why": (
        words.rolled_back("base", "1.1.0", ""),
        "base 1.1.0 is being taken back: the reason is not known.",
    ),
    "installing": (
        words.installing(OFFER),
        "base 1.1.0 is being installed. The device can be used meanwhile; it may restart at the end.",
    ),
    "installing an application": (
        words.installing(replace(OFFER, kind="application")),
        "base 1.1.0 is being installed. The device can be used meanwhile; it is closed for the last of it.",
    ),
    "removed": (words.removed("base", "1.1.0"), "base 1.1.0 was removed; its data stays."),
    "done": (words.done("base", "1.1.0"), "base 1.1.0 is installed and works."),
}


@pytest.mark.parametrize(("text", "expected"), SAID.values(), ids=SAID)
def test_words(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (123_456, "123 kB"), (5_000_000_000_000, "5000 GB")],
)
def test_sizes(count: int, text: str) -> None:
    assert words.in_bytes(count) == text
