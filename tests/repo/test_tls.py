"""Who is let in and who is believed: real TLS, real certificates, and the network's own troubles told apart."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from otaflow.config import Source
from otaflow.errors import CertificateRefused, ConfigError, LoginRefused, Offline, RepositoryRefused, TryLater
from otaflow.repo import serve, transport
from otaflow.repo.transport import Transport

NOW = datetime.now(UTC)
SERVERS: dict[str, tuple[Callable[..., Any], str]] = {
    "expired": (
        lambda pki, other: pki.issue("old", "127.0.0.1", not_before=NOW - timedelta(9), not_after=NOW - timedelta(1)),
        "expired",
    ),
    "not yet valid": (
        lambda pki, other: pki.issue("new", "127.0.0.1", not_before=NOW + timedelta(1), not_after=NOW + timedelta(9)),
        "not yet valid",
    ),
    "wrong host": (lambda pki, other: pki.issue("else", "updates.example"), "127.0.0.1"),
    "unknown authority": (lambda pki, other: other.server, "unable to get local issuer|self-signed"),
}


@contextmanager
def _transport(source: Source, **changes: Any) -> Iterator[Transport]:
    way = Transport(source.model_copy(update=changes))
    try:
        yield way
    finally:
        way.close()


def test_good_certificate(source: Source) -> None:
    with _transport(source) as way:
        way.connect()
        certificate = way.check_certificate()
        way.authenticate()
    assert "trustme" in certificate.subject
    assert "trustme" in certificate.issuer
    assert certificate.not_after > NOW


@pytest.mark.parametrize(("issue", "why"), SERVERS.values(), ids=SERVERS)
def test_bad_server_certificate(
    issue: Any, why: str, repository: Path, first_root: Path, pki: Any, other_pki: Any
) -> None:
    with serve.running(repository / "public", *issue(pki, other_pki)) as url:
        source = Source(url=url, root=first_root, ca=pki.ca_file, timeout_seconds=60)
        with _transport(source) as way:
            way.connect()
            with pytest.raises(CertificateRefused, match=why):
                way.check_certificate()
            with pytest.raises(CertificateRefused, match=why):
                way.authenticate()


def test_system_trust_does_not_know_our_authority(source: Source) -> None:
    with _transport(source, ca=None) as way, pytest.raises(CertificateRefused):
        way.check_certificate()


CLIENTS: dict[str, Callable[..., Any]] = {
    "none": lambda pki, other: (None, None),
    "of another authority": lambda pki, other: other.device,
    "expired": lambda pki, other: pki.issue("late", "x", not_before=NOW - timedelta(9), not_after=NOW - timedelta(1)),
}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_bad_client_certificate(
    client: Any, version: ssl.TLSVersion, repository: Path, first_root: Path, pki: Any, other_pki: Any
) -> None:
    certificate, key = client(pki, other_pki)
    with serve.running(repository / "public", *pki.server, client_ca=pki.ca_file) as url:
        source = Source(url=url, root=first_root, ca=pki.ca_file, certificate=certificate, key=key, timeout_seconds=60)
        with _transport(source) as way:
            way._context.maximum_version = version
            with pytest.raises(CertificateRefused) as caught:
                way.authenticate()
    assert "certificate" in caught.value.hint


def test_good_client_certificate_and_token(repository: Path, first_root: Path, pki: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t0p-secret\n")
    with serve.running(repository / "public", *pki.server, client_ca=pki.ca_file, token="t0p-secret") as url:
        certificate, key = pki.device
        source = Source(url=url, root=first_root, ca=pki.ca_file, certificate=certificate, key=key)
        with _transport(source, token_file=tmp_path / "token") as way:
            way.check_certificate()
            way.authenticate()


@pytest.mark.parametrize("token", [None, "wrong", "t0p-secre", "t0p-secret-and-more"], ids=str)
def test_wrong_token(token: str | None, repository: Path, first_root: Path, pki: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(token or "")
    with serve.running(repository / "public", *pki.server, token="t0p-secret") as url:
        source = Source(url=url, root=first_root, ca=pki.ca_file)
        with (
            _transport(source, token_file=tmp_path / "token" if token else None) as way,
            pytest.raises(LoginRefused, match="401"),
        ):
            way.authenticate()


def _silent(connection: socket.socket) -> None:
    time.sleep(0.6)


def _plain_http(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n")


NETWORKS: dict[str, Callable[[socket.socket], None]] = {
    "hangs up": lambda connection: None,
    "says nothing": _silent,
    "speaks no TLS": _plain_http,
}


@pytest.mark.parametrize("act", NETWORKS.values(), ids=NETWORKS)
def test_network_trouble_is_no_bad_certificate(act: Any, first_root: Path, pki: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            for _ in range(2):
                connection, _address = listener.accept()
                with connection:
                    act(connection)

        thread = threading.Thread(target=run)
        thread.start()
        source = Source(
            url=f"https://127.0.0.1:{listener.getsockname()[1]}", root=first_root, ca=pki.ca_file, timeout_seconds=0.3
        )
        with _transport(source) as way:
            with pytest.raises(Offline):
                way.check_certificate()
            with pytest.raises(Offline):
                way.authenticate()
        thread.join()


def test_nobody_listens(first_root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with _transport(Source(url=f"https://127.0.0.1:{port}", root=first_root)) as way:
        for ask in (way.connect, way.check_certificate, way.authenticate):
            with pytest.raises(Offline):
                ask()


def test_no_such_host(first_root: Path) -> None:
    with (
        _transport(Source(url="https://no-such-host.invalid", root=first_root)) as way,
        pytest.raises(Offline, match="no-such-host"),
    ):
        way.connect()


STATUSES = {
    "401": (401, LoginRefused),
    "403": (403, LoginRefused),
    "404": (404, RepositoryRefused),
    "410": (410, RepositoryRefused),
    "429": (429, TryLater),
    "503": (503, TryLater),
}


@pytest.mark.parametrize(("status", "error"), STATUSES.values(), ids=STATUSES)
def test_status(status: int, error: type[Exception], faulty: Any, first_root: Path, pki: Any) -> None:
    def answer(handler: Any) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    faulty.answer = answer
    with _transport(Source(url=faulty.url, root=first_root, ca=pki.ca_file)) as way, pytest.raises(error):
        way.authenticate()


REDIRECTS = {
    "another host": ("https://127.0.0.2/x", "leads away"),
    "plain http": ("http://127.0.0.1/x", "leads away"),
    "another port": ("https://127.0.0.1:1/x", "leads away"),
    "no address": ("https://[x", "cannot fetch"),
    "a circle": ("/x", "circle"),
}


@pytest.mark.parametrize(("location", "why"), REDIRECTS.values(), ids=REDIRECTS)
def test_redirects(location: str, why: str, faulty: Any, first_root: Path, pki: Any) -> None:
    def answer(handler: Any) -> None:
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    faulty.answer = answer
    with (
        _transport(Source(url=faulty.url, root=first_root, ca=pki.ca_file)) as way,
        pytest.raises(RepositoryRefused, match=why),
    ):
        way.authenticate()


def test_redirect_on_the_same_server_is_followed(faulty: Any, first_root: Path, pki: Any) -> None:
    def answer(handler: Any) -> None:
        moved = handler.path == "/file"
        handler.send_response(301 if moved else 200)
        if moved:
            handler.send_header("Location", "/moved")
        handler.send_header("Content-Length", "0" if moved else "2")
        handler.end_headers()
        handler.wfile.write(b"" if moved else b"ok")

    faulty.answer = answer
    with _transport(Source(url=faulty.url, root=first_root, ca=pki.ca_file)) as way:
        assert b"".join(way.fetch(way.url("file"), 10)) == b"ok"


def _endless(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 10_000)


def _dribble(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.02)


def _dribble_head(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.02)


def _bomb(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()


BODIES = {
    "endless": (_endless, 20, RepositoryRefused, "more than the 100000 bytes"),
    "slow body": (_dribble, 2, Offline, "bytes a second"),
    "slow head": (_dribble_head, 0.3, Offline, "cannot fetch"),
    "packed, unasked": (_bomb, 20, RepositoryRefused, "gzip"),
}


@pytest.mark.parametrize(("answer", "seconds", "error", "why"), BODIES.values(), ids=BODIES)
def test_hostile_body(
    answer: Any, seconds: float, error: Any, why: str, faulty: Any, first_root: Path, pki: Any
) -> None:
    faulty.answer = answer
    source = Source(url=faulty.url, root=first_root, ca=pki.ca_file, timeout_seconds=seconds)
    with _transport(source) as way, pytest.raises(error, match=why):
        for _ in way.fetch(way.url("x"), 100_000):
            pass


def test_proxies_of_the_environment_are_not_asked(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    with _transport(source) as way:
        way.authenticate()


CONFIGS = {
    "no authority file": ({"ca": Path("/nowhere/ca.pem")}, "/nowhere/ca.pem"),
    "an authority that is none": ({"ca": Path("/etc/passwd")}, "PEM|/etc/passwd"),
    "no client key": ({"certificate": Path("/nowhere/c.pem"), "key": Path("/nowhere/c.key")}, "/nowhere/c.pem"),
    "plain http": ({"url": "http://updates.example"}, "https only"),
}


@pytest.mark.parametrize(("changes", "why"), CONFIGS.values(), ids=CONFIGS)
def test_configuration_that_cannot_be_used(changes: dict[str, Any], why: str, first_root: Path) -> None:
    source = Source(url="https://127.0.0.1", root=first_root)
    with pytest.raises(ConfigError, match=why):
        Transport(source.model_copy(update=changes))


@pytest.mark.parametrize("content", [b"", b"two\nlines", b"\xff\xfe", "naïve".encode()], ids=str)
def test_token_that_cannot_be_used(content: bytes, source: Source, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    with _transport(source, token_file=tmp_path / "token") as way, pytest.raises(ConfigError, match="token"):
        way.authenticate()


def test_token_goes_to_nobody_else(source: Source) -> None:
    with (
        _transport(source) as way,
        pytest.raises(RepositoryRefused, match="leads away"),
        way.open("https://elsewhere.example/"),
    ):
        pass
    assert transport.REDIRECTS > 0
