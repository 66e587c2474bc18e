"""`otaflow repo serve --diagnostics`: what it takes, from whom, and what it refuses."""

import gzip
import http.client
import json
import ssl
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otaflow.diagnostics import Spool, encode, give_consent, send
from otaflow.errors import ConfigError
from otaflow.platform.device import Device
from otaflow.repo import reports, serve

TOKEN = "s3cr3t-t0ken"
REPORT = {"device": {"name": "board/../17"}, "x": 1}
BODY = gzip.compress(json.dumps(REPORT).encode())
PACKED = {"Content-Encoding": "gzip"}


@pytest.fixture
def public(tmp_path: Path) -> Path:
    (tmp_path / "public" / "metadata").mkdir(parents=True)
    (tmp_path / "public" / "metadata" / "timestamp.json").write_text("{}")
    return tmp_path / "public"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "reports"


@pytest.fixture
def ask(public: Path, folder: Path, pki: Any) -> Iterator[Callable[..., Any]]:
    """ask(body, headers, method, path): the answer of a server that wants a token."""
    context = ssl.create_default_context(cafile=pki.ca)
    with serve.running(public, *pki.server, token=TOKEN, diagnostics=folder) as url:

        def request(
            body: Any, headers: dict[str, str], method: str = "POST", path: str = "/diagnostics"
        ) -> http.client.HTTPResponse:
            connection = http.client.HTTPSConnection(url.removeprefix("https://"), context=context, timeout=30)
            connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **headers})
            answer = connection.getresponse()
            answer.read()
            connection.close()
            return answer

        yield request


def test_a_report_is_kept_once(ask: Callable[..., Any], folder: Path) -> None:
    assert [ask(BODY, PACKED).status for _ in range(2)] == [201, 200]
    [file] = folder.iterdir()
    assert json.loads(file.read_text()) == REPORT
    assert file.name.split("-")[1] == "board_.._17"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ask(json.dumps(REPORT | {"x": 2}), {}).status == 201, "not packed"
    assert len(list(folder.iterdir())) == 2


REFUSED: dict[str, tuple[Any, dict[str, str], str, str, int]] = {
    "no token": (BODY, {"Authorization": ""}, "POST", "/diagnostics", 401),
    "another token": (BODY, {"Authorization": "Bearer x"}, "POST", "/diagnostics", 401),
    "a token for another path": (BODY, {"Authorization": ""}, "POST", "/metadata/timestamp.json", 401),
    "another path": (BODY, PACKED, "POST", "/metadata/timestamp.json", 405),
    "below the path": (BODY, PACKED, "POST", "/diagnostics/../x", 405),
    "get": (None, {}, "GET", "/diagnostics", 405),
    "head": (None, {}, "HEAD", "/diagnostics", 405),
    "put": (None, {}, "PUT", "/diagnostics", 501),
    "too long": (bytes(reports.MAX_SENT + 1), PACKED, "POST", "/diagnostics", 413),
    "no length": (None, {"Transfer-Encoding": "chunked"}, "POST", "/diagnostics", 411),
    "a wrong length": (None, {"Content-Length": "-5"}, "POST", "/diagnostics", 411),
    "a bomb": (gzip.compress(bytes(50 * 2**20)), PACKED, "POST", "/diagnostics", 400),
    "damaged": (BODY[:-6] + b"xxxxxx", PACKED, "POST", "/diagnostics", 400),
    "cut": (BODY[:-6], PACKED, "POST", "/diagnostics", 400),
    "not packed, though it says so": (b"{}", PACKED, "POST", "/diagnostics", 400),
    "packed, and does not say so": (BODY, {}, "POST", "/diagnostics", 400),
    "no json": (b"hello", {}, "POST", "/diagnostics", 400),
    "no report": (b"[1]", {}, "POST", "/diagnostics", 400),
    "deep": (b"[" * 200_000, {}, "POST", "/diagnostics", 400),
    "empty": (b"", {}, "POST", "/diagnostics", 400),
    "packed in another way": (BODY, {"Content-Encoding": "br"}, "POST", "/diagnostics", 415),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str, ask: Callable[..., Any], folder: Path) -> None:
    body, headers, method, path, status = REFUSED[what]
    assert ask(body, headers, method, path).status == status
    assert list(folder.iterdir()) == []
    assert ask(None, {}, "GET", "/metadata/timestamp.json").status == 200


def test_a_server_that_is_full_says_later(
    ask: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MAX_REPORTS", 1)
    assert ask(BODY, PACKED).status == 201
    assert ask(json.dumps(REPORT | {"x": 2}), {}).status == 503
    assert ask(BODY, PACKED).status == 200


def test_without_a_folder_nothing_is_taken(public: Path, pki: Any) -> None:
    context = ssl.create_default_context(cafile=pki.ca)
    with serve.running(public, *pki.server, token=TOKEN) as url:
        connection = http.client.HTTPSConnection(url.removeprefix("https://"), context=context, timeout=30)
        connection.request("POST", "/diagnostics", BODY, {"Authorization": f"Bearer {TOKEN}"})
        assert connection.getresponse().status == 501
        connection.close()


def test_reports_of_anybody_are_not_taken(public: Path, folder: Path, pki: Any) -> None:
    with pytest.raises(ConfigError, match="anybody"), serve.running(public, *pki.server, diagnostics=folder):
        pass
    folder.write_text("a file")
    with (
        pytest.raises(ConfigError, match="cannot take diagnostic reports into"),
        serve.running(public, *pki.server, token=TOKEN, diagnostics=folder),
    ):
        pass


def test_a_device_is_named_as_in_its_certificate(
    public: Path, folder: Path, pki: Any, make_device: Callable[..., Device]
) -> None:
    certificate, key = map(str, pki.device)
    with serve.running(public, *pki.server, client_ca=pki.ca, token=TOKEN, diagnostics=folder) as url:
        device = make_device(f"{url}/diagnostics", certificate=certificate, key=key)
        give_consent(device.nvm, "ann")
        report = {"device": {"name": "somebody-else"}}
        Spool(device.nvm).add(report, lambda: True)
        assert "sent 2 reports" in send(device)
        names = {file.name.partition("Z-")[2].rpartition("-")[0] for file in folder.iterdir()}
        assert names == {"board_17"}
        assert encode(report) in [file.read_bytes() for file in folder.iterdir()]
        stranger = make_device(f"{url}/diagnostics")
        Spool(device.nvm).add(report, lambda: True)
        assert "cannot send to" in send(stranger, always=True)
        assert len(list(folder.iterdir())) == 2
