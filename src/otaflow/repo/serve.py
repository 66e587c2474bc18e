"""A static HTTPS server for the demo and for small sites: a repository is files, so any web server does as well.

On the standard library: its TLS sends the alert that tells a client which certificate is missing (asyncio, hence
uvicorn, drops the connection without a word), and it starts in 50 ms. What http.server lacks is in `published.py`:
Range, If-Range, ETag. Only `metadata/*.json` and `targets/…` are answered, nothing is listed. Where it is asked to, it
takes the devices' diagnostic reports as well (`reports.py`), at `/diagnostics`.
"""

import hmac
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any, ClassVar

from otaflow.errors import ConfigError, OtaflowError
from otaflow.repo import reports
from otaflow.repo.published import Published, find, pick

GRACE = 2.0  # seconds that a transfer has to end in
IDLE = 30.0  # seconds
CONNECTIONS = 200
CHUNK = 256 * 1024


def serve(
    folder: Path,
    host: str,
    port: int,
    certificate: Path,
    key: Path,
    client_ca: Path | None = None,
    token: str | None = None,
    ready: Callable[[str], None] | None = None,
    diagnostics: Path | None = None,
) -> None:
    """Serve the published `folder` until SIGINT or SIGTERM; `ready` gets the URL once requests are answered.

    With `client_ca` every client needs a certificate of that authority, with `token` an `Authorization: Bearer`. With
    one of them, diagnostic reports can be taken into the folder `diagnostics`.
    To be called in the main thread. ConfigError and OtaflowError when it cannot start.
    """
    end = threading.Event()
    former = {number: signal.signal(number, lambda *_: end.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with running(folder, certificate, key, client_ca, token, host, port, diagnostics) as url:
            if ready is not None:
                ready(url)
            end.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def running(
    folder: Path,
    certificate: Path,
    key: Path,
    client_ca: Path | None = None,
    token: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    diagnostics: Path | None = None,
) -> Iterator[str]:
    """The server in threads of this process, on a free port; yields its URL and ends it afterwards."""
    if not (folder / "metadata").is_dir():
        raise ConfigError(
            f"cannot serve {folder}: it has no metadata folder", hint="`otaflow repo init` makes a repository"
        )
    if diagnostics is not None:
        reports.prepare(diagnostics, authenticates=bool(client_ca or token))
    context = _tls_context(certificate, key, client_ca)
    try:
        server = _Server(host, port, context, folder.resolve(), token, diagnostics)
    except OSError as error:
        raise OtaflowError(
            f"cannot listen on {host}:{port}: {error.strerror or error}", hint="another port: --port, or 0 for any"
        ) from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"https://{shown}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        server.end()


class _Server(ThreadingTCPServer):
    """One thread a connection, `CONNECTIONS` at most; the handshake is made in the connection's own thread."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext,
        folder: Path,
        token: str | None,
        diagnostics: Path | None,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.context, self.folder, self.diagnostics = context, folder, diagnostics
        self.wanted = f"Bearer {token}".encode() if token else b""
        self.busy = 0  # requests being answered
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((host, port), _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._places.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            request.settimeout(IDLE)
            with suppress(OSError), self.context.wrap_socket(request, server_side=True) as tls:
                with self._lock:
                    self._open.add(tls)
                try:
                    self.finish_request(tls, client_address)
                finally:
                    with self._lock:
                        self._open.discard(tls)
        finally:
            self._places.release()
            self.shutdown_request(request)

    @contextmanager
    def answering(self) -> Iterator[None]:
        with self._lock:
            self.busy += 1
        try:
            yield
        finally:
            with self._lock:
                self.busy -= 1

    def end(self) -> None:
        """Let what is being sent come to its end for a moment, then cut."""
        end = time.monotonic() + GRACE
        while self.busy and time.monotonic() < end:
            time.sleep(0.01)
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """A GET or HEAD of a published file, a POST of a report; 401 without the token, 404 and 405 for all else."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE
    server: _Server
    PLAIN: ClassVar[dict[str, str]] = {"Content-Type": "text/plain"}

    def do_GET(self) -> None:
        with self.server.answering():
            self._answer()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        with self.server.answering():
            self._take()

    def version_string(self) -> str:
        return "otaflow"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: a site that wants a log has a web server."""

    def _answer(self) -> None:
        if "content-length" in self.headers or "transfer-encoding" in self.headers:
            self.close_connection = True  # a body that nobody reads must not be taken for the next request
        if not self._is_let_in():
            self._ask_for_token()
        elif self.server.diagnostics is not None and self.path == reports.PATH:
            self._say(405, {**self.PLAIN, "Allow": "POST"}, b"reports are posted\n")
        elif (file := find(self.server.folder, self.path)) is None:
            self._say(404, self.PLAIN, b"no such file\n")
        else:
            with file:
                self._send(file)

    def _take(self) -> None:
        """A report of a device, whose name is that of its certificate, or the one that the report gives."""
        self.close_connection = True
        if self.server.diagnostics is not None and self.path == reports.PATH and self._is_let_in():
            status, text = reports.take(self.server.diagnostics, self.headers, self.rfile, self._client())
            self._say(status, self.PLAIN, f"{text}\n".encode())
            return
        reports.receive(self.headers, self.rfile)
        if self.server.diagnostics is None:
            self.send_error(501)
        elif not self._is_let_in():
            self._ask_for_token()
        else:
            self._say(405, {**self.PLAIN, "Allow": "GET, HEAD"}, b"nothing is posted here\n")

    def _client(self) -> str:
        """The common name of the client's certificate, or nothing."""
        fields: dict[str, Any] = self.connection.getpeercert() or {}
        names = dict(pair for part in fields.get("subject", ()) for pair in part)
        return str(names.get("commonName", ""))

    def _is_let_in(self) -> bool:
        login = self.headers.get("authorization", "").encode("latin-1", "replace")
        return not self.server.wanted or hmac.compare_digest(login, self.server.wanted)

    def _ask_for_token(self) -> None:
        self._say(401, {**self.PLAIN, "WWW-Authenticate": "Bearer"}, b"a token is needed\n")

    def _send(self, file: Published) -> None:
        part = pick(self.headers.get("range", ""), self.headers.get("if-range"), file)
        head = {**file.headers, **part.headers}
        if part.status == 416:
            self._say(416, head, b"")
            return
        self._say(part.status, {**head, "Content-Length": str(part.size)})
        if self.command == "HEAD":
            return
        file.file.seek(part.start)
        left = part.size
        while left and (chunk := file.file.read(min(CHUNK, left))):
            self.wfile.write(chunk)
            left -= len(chunk)
        if left:
            self.close_connection = True  # the file became shorter meanwhile

    def _say(self, status: int, headers: dict[str, str], body: bytes | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)


def _tls_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password="")  # a key with a password: an error, no prompt
        if client_ca is not None:
            context.load_verify_locations(cafile=client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot serve with the certificate {certificate}: {error}", hint="the files must be PEM, without password"
        ) from error
    return context
