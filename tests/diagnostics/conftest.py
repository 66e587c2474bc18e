"""Devices that were made and never restarted, a source with credentials, and servers of diagnostic data."""

import gzip
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from otaflow.config import load
from otaflow.platform.device import Device
from otaflow.platform.setup import init_device

TOKEN = "s3cr3t-t0ken"


@dataclass
class Pki:
    """An authority's certificate and that of a server at 127.0.0.1 and of a device."""

    ca: Path
    server: tuple[Path, Path]
    device: tuple[Path, Path]


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder, ca = tmp_path_factory.mktemp("pki"), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")

    def issue(name: str, **more: Any) -> tuple[Path, Path]:
        leaf = ca.issue_cert(*more.pop("hosts", ()), **more)
        (folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(folder / f"{name}.key")
        return folder / f"{name}.pem", folder / f"{name}.key"

    return Pki(
        folder / "ca.pem", issue("server", hosts=["127.0.0.1"]), issue("device", hosts=["x"], common_name="board/17")
    )


@dataclass
class Maker:
    """The maker's server: each report is answered with `status` and `type`, and kept; `answer` may take over."""

    url: str = ""
    status: int = 204
    type: str = "text/plain"
    reports: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answer: "Callable[[Any], None] | None" = None

    def reply(self, handler: Any) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        self.headers.append(dict(handler.headers))
        if self.answer is not None:
            self.answer(handler)
            return
        if self.status < 300:
            self.reports.append(json.loads(gzip.decompress(body)))
        handler.send_response(self.status)
        handler.send_header("Content-Type", self.type)
        if self.status in (301, 302, 307, 308):
            handler.send_header("Location", f"{self.url}/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@pytest.fixture
def maker(pki: Pki) -> Iterator[Maker]:
    told = Maker()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with suppress(OSError):
                told.reply(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.server)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    told.url = f"https://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield told
    server.shutdown()
    server.server_close()
    thread.join()


MakeDevice = Callable[..., Device]


@pytest.fixture
def make_device(tmp_path: Path, pki: Pki) -> MakeDevice:
    """make_device(diagnostics=URL or None, more=TOML): a device whose source sends there, made at the first call."""

    def make(diagnostics: str | None, more: str = "", seconds: float = 30, **source: str) -> Device:
        (tmp_path / "token").write_text(TOKEN + "\n")
        values = {
            "url": "https://127.0.0.1:1",
            "root": "root.json",
            "ca": str(pki.ca),
            "token_file": f"{tmp_path}/token",
        }
        values |= source | ({"diagnostics": diagnostics} if diagnostics else {})
        lines = ['[device]\nname = "board-17"\nmodel = "board"\nroot = "device"', more, "[sources.official]"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        (tmp_path / "otaflow.toml").write_text("\n".join([*lines, f"timeout_seconds = {seconds}"]) + "\n")
        device = Device(load(tmp_path / "otaflow.toml"))
        if not device.nvm.exists():
            (tmp_path / "system").mkdir()
            init_device(device, system=tmp_path / "system", name="demo", version="1.0.0", configuration=None)
        return device

    return make


@pytest.fixture
def device(make_device: MakeDevice, maker: Maker) -> Device:
    """A device whose diagnostic data goes to `maker`."""
    return make_device(f"{maker.url}/diagnostics")


@pytest.fixture
def fail(device: Device) -> Callable[[str], None]:
    """fail(why): the device's history says that an update failed."""

    def add(why: str) -> None:
        device.history.add(name="demo", version="1.1.0", action="Update", resolution="kFailed", error="X", why=why)

    return add
