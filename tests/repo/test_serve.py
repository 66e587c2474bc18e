"""Our own small server: parts, validators, and what it does not give away."""

import http.client
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otaflow.errors import ConfigError, OtaflowError
from otaflow.repo import certificates, serve
from otaflow.repo.transport import Transport

Ask = Callable[..., http.client.HTTPResponse]
CONTENT = bytes(range(200))


@pytest.fixture
def public(tmp_path: Path) -> Path:
    folder = tmp_path / "public"
    (folder / "metadata").mkdir(parents=True)
    (folder / "targets" / "sub").mkdir(parents=True)
    (folder / "metadata" / "timestamp.json").write_text("{}")
    (folder / "metadata" / "notes.txt").write_text("secret")
    (folder / "targets" / "a").write_bytes(CONTENT)
    (folder / "targets" / "sub" / "b c").write_bytes(CONTENT)
    (folder / "targets" / "empty").write_bytes(b"")
    (folder / "targets" / ".hidden").write_text("secret")
    (tmp_path / "secret.json").write_text("secret")
    (folder / "targets" / "link").symlink_to(tmp_path / "secret.json")
    (folder / "targets" / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "targets" / "fifo")
    return folder


@pytest.fixture
def ask(public: Path, pki: Any) -> Iterator[Ask]:
    context = ssl.create_default_context(cafile=pki.ca_file)
    with serve.running(public, *pki.server) as url:
        connection = http.client.HTTPSConnection(url.removeprefix("https://"), context=context, timeout=60)

        def request(path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
            connection.close()
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            return connection.getresponse()

        yield request
        connection.close()


RANGES: dict[str, tuple[str, int, bytes, str | None]] = {
    "from": ("bytes=50-", 206, CONTENT[50:], "bytes 50-199/200"),
    "from to": ("bytes=50-59", 206, CONTENT[50:60], "bytes 50-59/200"),
    "one byte": ("bytes=0-0", 206, CONTENT[:1], "bytes 0-0/200"),
    "the last": ("bytes=-10", 206, CONTENT[-10:], "bytes 190-199/200"),
    "more than all": ("bytes=-999", 206, CONTENT, "bytes 0-199/200"),
    "beyond the end": ("bytes=190-999", 206, CONTENT[190:], "bytes 190-199/200"),
    "behind the end": ("bytes=200-", 416, b"", "bytes */200"),
    "nothing of the end": ("bytes=-0", 416, b"", "bytes */200"),
    "backwards": ("bytes=9-1", 200, CONTENT, None),
    "several": ("bytes=0-1,5-6", 200, CONTENT, None),
    "another unit": ("lines=1-2", 200, CONTENT, None),
    "nonsense": ("bytes=-", 200, CONTENT, None),
    "huge": ("bytes=" + "9" * 30 + "-", 200, CONTENT, None),
}


@pytest.mark.parametrize(("wanted", "status", "body", "said"), RANGES.values(), ids=RANGES)
def test_range(wanted: str, status: int, body: bytes, said: str | None, ask: Ask) -> None:
    answer = ask("/targets/a", Range=wanted)
    assert (answer.status, answer.read(), answer.headers["Content-Range"]) == (status, body, said)


def test_if_range(ask: Ask, public: Path) -> None:
    first = ask("/targets/a")
    first.read()
    for validator in (first.headers["ETag"], first.headers["Last-Modified"]):
        assert ask("/targets/a", Range="bytes=1-", If_Range=validator).status == 206
    assert ask("/targets/a", Range="bytes=1-", If_Range='"other"').status == 200
    (public / "targets" / "a").write_bytes(CONTENT + b"x")
    assert ask("/targets/a", Range="bytes=1-", If_Range=first.headers["ETag"]).status == 200


def test_head(ask: Ask) -> None:
    answer = ask("/targets/a", "HEAD")
    assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, "200", b"")


PATHS = {
    "/metadata/timestamp.json": 200,
    "/metadata/timestamp.json?x=1": 200,
    "/targets/sub/b%20c": 200,
    "/targets/empty": 200,
    "/": 404,
    "/metadata": 404,
    "/metadata/": 404,
    "/targets/": 404,
    "/targets/sub": 404,
    "/metadata/notes.txt": 404,
    "/targets/.hidden": 404,
    "/targets/link": 404,
    "/targets/linked/secret.json": 404,
    "/targets/fifo": 404,
    "/targets/../../secret.json": 404,
    "/targets/%2e%2e/%2e%2e/secret.json": 404,
    "/targets/..%2f..%2fsecret.json": 404,
    "/metadata/..%2f..%2fsecret.json": 404,
    "/targets//etc/passwd": 404,
    "/targets/a%00": 404,
    "/targets/" + "x" * 5000: 404,
}


@pytest.mark.parametrize(("path", "status"), PATHS.items(), ids=[path[:40] for path in PATHS])
def test_path(path: str, status: int, ask: Ask) -> None:
    answer = ask(path)
    assert answer.status == status
    assert b"secret" not in answer.read()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "TRACE"])
def test_method(method: str, ask: Ask) -> None:
    assert ask("/targets/a", method).status == 501


def test_many_at_once(public: Path, pki: Any) -> None:
    from otaflow.config import Source

    (public / "targets" / "big").write_bytes(bytes(3_000_000))
    sizes: list[int] = []
    with serve.running(public, *pki.server) as url:

        def fetch() -> None:
            way = Transport(Source(url=url, root=public, ca=pki.ca_file, timeout_seconds=60))
            sizes.append(sum(map(len, way.fetch(way.url("targets/big"), 3_000_000))))
            way.close()

        threads = [threading.Thread(target=fetch) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sizes == [3_000_000] * 10


def test_client_that_says_nothing_hinders_nobody(public: Path, pki: Any) -> None:
    import socket

    from otaflow.config import Source

    with serve.running(public, *pki.server) as url:
        host, port = url.removeprefix("https://").split(":")
        with socket.create_connection((host, int(port))):
            way = Transport(Source(url=url, root=public, ca=pki.ca_file, timeout_seconds=60))
            way.authenticate()
            way.close()


def test_old_tls_is_refused(public: Path, pki: Any) -> None:
    context = ssl.create_default_context(cafile=pki.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with serve.running(public, *pki.server) as url:
        connection = http.client.HTTPSConnection(url.removeprefix("https://"), context=context, timeout=60)
        with pytest.raises(OSError):
            connection.request("GET", "/targets/a")


def test_what_cannot_be_served(public: Path, pki: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no metadata"), serve.running(tmp_path, *pki.server):
        pass
    with pytest.raises(ConfigError, match="PEM"), serve.running(public, public / "targets" / "a", pki.server[1]):
        pass
    with (
        serve.running(public, *pki.server) as url,
        pytest.raises(OtaflowError, match="cannot listen"),
        serve.running(public, *pki.server, port=int(url.rpartition(":")[2])),
    ):
        pass


def test_our_own_certificates_are_strictly_valid(public: Path, tmp_path: Path) -> None:
    authority = certificates.make_authority(tmp_path / "tls")
    assert certificates.make_authority(tmp_path / "tls") == authority, "devices keep their trust"
    pair = certificates.make_server_certificate(authority, tmp_path / "tls", ["127.0.0.1", "localhost"])
    device = certificates.make_client_certificate(authority, tmp_path / "tls", "device-17")
    context = ssl.create_default_context(cafile=authority.certificate)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(device.certificate, device.key)
    with serve.running(public, pair.certificate, pair.key, client_ca=authority.certificate) as url:
        connection = http.client.HTTPSConnection(url.removeprefix("https://"), context=context, timeout=60)
        connection.request("GET", "/targets/a")
        assert connection.getresponse().read() == CONTENT
        connection.close()
