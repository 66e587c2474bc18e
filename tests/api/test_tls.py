"""Who may ask: the socket's mode; TLS, the token and the client certificate, for real; 401 for everything else."""

import json
import socket
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest

from otaflow.api.app import make_app
from otaflow.api.methods import METHODS
from otaflow.api.serve import Server, load_credentials
from otaflow.client import Client
from otaflow.config import parse
from otaflow.errors import CertificateRefused, ConfigError, Locked, LoginRefused, Offline, OtaflowError
from otaflow.ucm.states import State

PATHS = ["/openapi.json", "/docs", "/", "/ucm/CurrentStatus", "/ucm/CurrentStatus/events", "/nothing", "/%00"]


def tcp(pki: Any, *, token: bool = True, certificates: bool = True) -> dict[str, Any]:
    """`[api]` with TCP."""
    api = {"listen": "127.0.0.1:0", "certificate": pki.server[0], "key": pki.server[1]}
    return api | ({"token_file": pki.token_file} if token else {}) | ({"client_ca": pki.ca} if certificates else {})


def token_of(pki: Any) -> str:
    text: str = pki.token_file.read_text().strip()
    return text


def ask(server: Server, pki: Any, request: str, certificate: Any = None) -> tuple[int, str, str]:
    """Status, head and body of a raw request over TLS."""
    context = ssl.create_default_context(cafile=pki.ca)
    if certificate:
        context.load_cert_chain(*certificate)
    assert server.url
    host, _, port = server.url.removeprefix("https://").rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=120)
    with context.wrap_socket(plain, server_hostname=host) as tls:
        tls.sendall(request.encode("latin-1"))
        answer = b"".join(iter(lambda: tls.recv(65536), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), head.lower(), body


def get(path: str, *headers: str) -> str:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: device", "Connection: close", *headers, "", ""])


# --- the Unix socket ----------------------------------------------------------------------------------------------


def test_the_sockets_mode(server: Server) -> None:
    mode = server.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    server.stop()
    assert not server.socket.exists()


def test_a_stale_socket_is_replaced(serve: Any, folder: Path) -> None:
    path = folder / "run" / "ucm.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
        left_over.listen()
    assert path.exists()
    with Client(socket=serve().socket) as client:
        assert client.current_status()["status"] == "Idle"


def test_a_socket_on_which_somebody_answers_stays_his(serve: Any, client: Client) -> None:
    with pytest.raises(Locked, match="another agent answers"):
        serve()
    assert client.current_status()["status"] == "Idle"


def test_a_file_that_is_no_socket_stays(serve: Any, folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "ucm.sock").write_text("mine")
    with pytest.raises(ConfigError, match="no socket"):
        serve()
    assert (folder / "run" / "ucm.sock").read_text() == "mine"


def test_a_path_that_is_too_long(serve: Any) -> None:
    with pytest.raises(OtaflowError, match="cannot listen on") as caught:
        serve(socket="x" * 120)
    assert "107" in caught.value.hint


def test_the_old_agents_stop_does_not_remove_the_new_ones_socket(serve: Any) -> None:
    old = serve()
    old.socket.unlink()
    new = serve()
    old.stop()
    with Client(socket=new.socket) as client:
        assert client.current_status()["status"] == "Idle"


# --- TCP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "header",
    [
        "X: nothing",
        "Authorization: Bearer",
        "Authorization: Bearer ",
        "Authorization: Bearer wrong",
        "Authorization: Bearer {token}x",
        "Authorization: Basic {token}",
        "Authorization: {token}",
        "Authorization: Bearer {token}, Bearer {token}",
        "Authorization: Bearer {token}\r\nAuthorization: Bearer {token}",
        "Authorization: Bearer \xff\xfe",
        "X-Forwarded-For: 127.0.0.1",
    ],
    ids=lambda header: ascii(header),
)
@pytest.mark.usefixtures("shared")
def test_nothing_but_401_without_valid_credentials(path: str, header: str, shared: Any) -> None:
    server, pki = shared
    status, head, body = ask(server, pki, get(path, header.format(token=token_of(pki))))
    assert status == 401
    assert "www-authenticate: bearer" in head
    assert json.loads(body)["error"] == "GeneralReject"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """One server for the many requests that are refused; it cannot have been reached by any of them."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="ucm-") as name:
        make = _conftest(request)
        pki = make.make_pki(Path(name) / "pki")
        config = make.make_config(Path(name), **tcp(pki))
        stub = make.Stub()
        server = Server(make_app(stub, credentials=load_credentials(config)), config)
        server.start()
        yield server, pki
        server.stop()
        assert stub.asked == []


def _conftest(request: pytest.FixtureRequest) -> Any:
    path = str(Path(__file__).with_name("conftest.py"))
    plugins = request.config.pluginmanager.get_plugins()
    return next(plugin for plugin in plugins if getattr(plugin, "__file__", None) == path)


def test_no_method_is_called_without_credentials(serve: Any, pki: Any, stub: Any) -> None:
    server = serve(**tcp(pki))
    stub.state = State.READY
    for method in METHODS:
        body = f"POST /ucm/{method.name} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
        assert ask(server, pki, body)[0] == 401
    assert stub.asked == []


@pytest.mark.parametrize(
    ("token", "certificates", "sends_token", "shows_certificate", "admitted"),
    [
        (True, False, True, False, True),
        (True, False, False, False, False),
        (False, True, False, True, True),
        (False, True, False, False, False),
        (True, True, True, False, True),
        (True, True, False, True, True),
        (True, True, False, False, False),
        (False, True, True, False, False),
    ],
)
def test_either_credential_is_enough(
    token: bool, certificates: bool, sends_token: bool, shows_certificate: bool, admitted: bool, serve: Any, pki: Any
) -> None:
    server = serve(**tcp(pki, token=token, certificates=certificates))
    own = pki.client if shows_certificate else None
    with Client(url=server.url, ca=pki.ca, token=token_of(pki) if sends_token else None, certificate=own) as client:
        if admitted:
            assert client.current_status()["status"] == "Idle"
            assert next(client.watch())["status"] == "Idle"
        else:
            with pytest.raises(LoginRefused):
                client.current_status()


def test_the_scheme_is_not_case_sensitive(serve: Any, pki: Any) -> None:
    server = serve(**tcp(pki))
    assert ask(server, pki, get("/ucm/CurrentStatus", f"Authorization: bearer {token_of(pki)}"))[0] == 200


def test_a_certificate_of_another_authority(serve: Any, pki: Any, other_pki: Any) -> None:
    server = serve(**tcp(pki))
    with Client(url=server.url, ca=pki.ca, certificate=other_pki.client) as client, pytest.raises(OtaflowError):
        client.current_status()


def test_a_server_of_another_authority(serve: Any, pki: Any, other_pki: Any) -> None:
    server = serve(**tcp(pki))
    with Client(url=server.url, ca=other_pki.ca, token=token_of(pki)) as client, pytest.raises(CertificateRefused):
        client.current_status()


def test_a_web_page_cannot_use_the_browsers_certificate(serve: Any, pki: Any) -> None:
    server = serve(**tcp(pki))
    asked = get("/ucm/CurrentStatus", "Origin: https://evil.example")
    assert ask(server, pki, asked, certificate=pki.client)[0] == 401
    assert ask(server, pki, get("/ucm/CurrentStatus"), certificate=pki.client)[0] == 200


def test_the_unix_socket_needs_no_credentials_beside_tcp(serve: Any, pki: Any) -> None:
    server = serve(**tcp(pki))
    with Client(socket=server.socket) as client:
        assert client.current_status()["status"] == "Idle"


def test_plain_http_is_not_answered(serve: Any, pki: Any) -> None:
    server = serve(**tcp(pki))
    host, _, port = server.url.removeprefix("https://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=120) as plain:
        plain.sendall(get("/ucm/CurrentStatus").encode())
        assert not plain.recv(100).startswith(b"HTTP")


def test_the_openapi_names_the_credentials(serve: Any, pki: Any) -> None:
    server = serve(**tcp(pki))
    _, _, body = ask(server, pki, get("/openapi.json", f"Authorization: Bearer {token_of(pki)}"))
    schema = json.loads(body)
    assert schema["security"] == [{"bearer": []}, {"certificate": []}]
    assert schema["components"]["securitySchemes"]["certificate"] == {"type": "mutualTLS"}


def test_tcp_without_credentials_is_not_served(pki: Any, stub: Any, folder: Path, request: Any) -> None:
    config = _conftest(request).make_config(folder, **tcp(pki))
    with pytest.raises(ConfigError, match="credentials"):
        Server(make_app(stub), config).start()
    assert not (folder / "run" / "ucm.sock").exists()


def test_a_port_that_is_taken(serve: Any, pki: Any, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OtaflowError, match=f"127.0.0.1:{port}"):
            serve(**(tcp(pki) | {"listen": f"127.0.0.1:{port}"}))
    assert not (folder / "run" / "ucm.sock").exists()


@pytest.mark.parametrize("content", [b"", b"short", b"two words " * 4, b"\xff" * 32, b"a" * 20 + b"\n" + b"b" * 20])
def test_a_token_that_cannot_be_used(content: bytes, serve: Any, pki: Any) -> None:
    pki.token_file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"api\.token_file"):
        serve(**tcp(pki))


@pytest.mark.parametrize("part", ["certificate", "key", "client_ca", "token_file"])
def test_files_that_are_not_there(part: str, serve: Any, pki: Any) -> None:
    key = "certificate" if part == "key" else part
    with pytest.raises(ConfigError, match=rf"api\.{key}"):
        serve(**(tcp(pki) | {part: "nowhere"}))


@pytest.mark.parametrize(
    ("api", "message"),
    [
        ({"listen": "8444"}, r"api\.listen"),
        ({"listen": "127.0.0.1:99999"}, r"api\.listen"),
        ({"listen": "127.0.0.1:8444"}, "`certificate`"),
        ({"listen": "127.0.0.1:8444", "certificate": "c", "token_file": "t"}, "`key`"),
        ({"listen": "127.0.0.1:8444", "certificate": "c", "key": "k"}, "`token_file` or `client_ca`"),
        ({"certificate": "c"}, "`certificate`"),
        ({"token_file": "t"}, "`token_file`"),
        ({"client_ca": "t"}, "`client_ca`"),
        ({"tls": False}, r"api\.tls"),
    ],
)
def test_combinations_that_are_refused(api: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = {"device": {"name": "d", "model": "m", "root": str(tmp_path)}, "api": api}
    with pytest.raises(ConfigError, match=message) as caught:
        parse(values, tmp_path / "otaflow.toml")
    assert "api" in str(caught.value)


def test_no_agent(tmp_path: Path) -> None:
    with Client(socket=tmp_path / "none") as client, pytest.raises(Offline) as caught:
        client.current_status()
    assert "agent" in caught.value.hint
