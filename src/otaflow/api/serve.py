"""Answering requests: on the device's Unix socket, and over TLS where that is configured.

uvicorn in a thread of the agent. TCP is never answered without TLS, nor without credentials.
"""

import asyncio
import errno
import json
import logging
import socket
import ssl
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from otaflow.api.blocks import RECEIVE, Filling
from otaflow.api.guard import CERTIFICATE, LOCAL, Credentials
from otaflow.config import Config
from otaflow.errors import ConfigError, GeneralReject, Locked, OtaflowError

log = logging.getLogger("otaflow.api")
# what clients do wrong is told to them, and does not fill the agent's log
_protocol_log = logging.getLogger("otaflow.api.http")
_protocol_log.setLevel(logging.ERROR)

MODE = 0o660
GRACE = 3  # seconds that open calls have when the agent stops
IDLE = 60  # seconds that a connection may be silent between requests
GREETING = 20.0  # seconds in which a TCP client must have sent its first request
TOKEN_LENGTH = 16


class Server:
    """The application of `otaflow.api.app`, served. Raises ConfigError, Locked, OtaflowError when it cannot be."""

    def __init__(self, app: FastAPI, config: Config) -> None:
        self.app = app
        self.config = config
        self.socket = config.path(config.api.socket)
        self.url: str | None = None
        self._servers: list[uvicorn.Server] = []
        self._thread: threading.Thread | None = None
        self._inode = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Listen, and answer from now on, in a thread of its own."""
        places = [(self._make(None), open_socket(self.socket))]
        self._inode = self.socket.stat().st_ino
        try:
            if self.config.api.listen is not None:
                places.append(self._open_tcp())
        except BaseException:
            places[0][1].close()
            self._remove_socket()
            raise
        self._servers = [server for server, _ in places]
        started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=[self._run(places, started)], name="ucm-api")
        self._thread.start()
        started.wait()

    def answers(self, seconds: float) -> bool:
        """Whether its loop turns; waits so long for it."""
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            return False
        turned = threading.Event()
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(turned.set)
        return turned.wait(seconds)

    def stop(self) -> None:
        """Take no more requests, let those that are being answered end, close."""
        if self._thread is None or self._loop is None:
            return
        for server in self._servers:
            server.should_exit = True
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.app.state.interface.end_streams)
        self._thread.join()
        self._thread = None
        self.app.state.interface.close()
        self._remove_socket()

    def _open_tcp(self) -> tuple[uvicorn.Server, socket.socket]:
        if self.app.state.credentials is None:
            raise ConfigError("cannot listen on TCP: the application asks for no credentials")
        server = self._make(make_context(self.config))
        place = open_tcp(*self.config.api.address)
        host, port = place.getsockname()[:2]
        self.url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        return server, place

    def _make(self, context: ssl.SSLContext | None) -> uvicorn.Server:
        return uvicorn.Server(
            uvicorn.Config(
                self.app,
                http=_Remote if context else _Local,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=IDLE,
                timeout_graceful_shutdown=GRACE,
                ssl_context_factory=(lambda *_: context) if context else None,
            )
        )

    async def _run(self, places: list[tuple[uvicorn.Server, socket.socket]], started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        serving = [asyncio.ensure_future(server.serve(sockets=[place])) for server, place in places]
        while not all(server.started for server, _ in places) and not any(task.done() for task in serving):
            await asyncio.sleep(0.002)
        started.set()
        await asyncio.gather(*serving)

    def _remove_socket(self) -> None:
        with suppress(OSError):
            if self.socket.lstat().st_ino == self._inode:
                self.socket.unlink()


def load_credentials(config: Config) -> Credentials | None:
    """What `[api]` lets in over TCP; None where it is not listened on. Raises ConfigError."""
    api = config.api
    if api.listen is None:
        return None
    token = read_token(config.path(api.token_file)) if api.token_file else None
    return Credentials(token, api.client_ca is not None)


def read_token(path: Path) -> bytes:
    """The bearer token in a file: one line of printable ASCII without spaces. Raises ConfigError."""
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"cannot read api.token_file {path}: {error.strerror}") from error
    if len(token) < TOKEN_LENGTH or not all(0x21 <= letter <= 0x7E for letter in token):
        raise ConfigError(
            f"cannot use api.token_file {path}: a token is one line of {TOKEN_LENGTH} or more printable characters",
            hint="`openssl rand -hex 32` makes one",
        )
    return token


def make_context(config: Config) -> ssl.SSLContext:
    """TLS as `[api]` configures it; a client without a certificate needs a token. Raises ConfigError."""
    api = config.api
    assert api.certificate is not None
    assert api.key is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    key = "certificate"
    try:
        context.load_cert_chain(config.path(api.certificate), config.path(api.key), password="")  # no prompt
        if api.client_ca is not None:
            key = "client_ca"
            context.load_verify_locations(cafile=config.path(api.client_ca))
            context.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use api.{key}: {error}", hint="PEM files, the key without password") from error
    return context


def open_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises OtaflowError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OtaflowError(f"cannot listen on {host}:{port}: {error.strerror}", hint="change api.listen") from error


def open_socket(path: Path) -> socket.socket:
    """A listening Unix socket, mode 0660 before anybody can connect.

    One that is left over from an agent that is gone is replaced. Raises Locked when somebody answers on it.
    """
    place = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        place.bind(str(path))
        path.chmod(MODE)
        place.listen()
    except OSError as error:
        place.close()
        too_long = error.errno == errno.ENAMETOOLONG or "too long" in str(error)
        hint = "a Unix socket's path has at most 107 bytes: set api.socket to a shorter one" if too_long else ""
        raise OtaflowError(f"cannot listen on {path}: {error.strerror or error}", hint=hint) from error
    except BaseException:
        place.close()
        raise
    return place


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"cannot listen on {path}: there is a file that is no socket", hint="set api.socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except TimeoutError:  # somebody listens, and is busy
            pass
    raise Locked(f"cannot listen on {path}: another agent answers there", hint="one agent serves a device")


class _Local(H11Protocol):
    """A connection on the Unix socket; what HTTP itself forbids is answered as JSON too."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.logger = _protocol_log
        self.app_state = {**self.app_state, LOCAL: True, RECEIVE: self.receive}

    async def receive(self, view: memoryview, go_on: Callable[[], None]) -> int:
        """The rest of the body, past h11, which would copy it three times; 0 where h11 must see it (`Receive`)."""
        reader: Any = getattr(self.conn, "_reader", None)
        known = type(reader).__name__ == "ContentLengthReader" and reader._remaining == len(view)
        begun = self.cycle.body or self.cycle.disconnected or self.cycle.response_complete or self.conn.trailing_data[0]
        if begun or not known or self.conn.their_state is not h11.SEND_BODY:
            return 0
        filling = Filling(self, view, go_on)
        self.transport.set_protocol(filling)
        self.flow.resume_reading()
        try:
            await filling.ended
        finally:
            filling.end()
        return filling.count

    def filled(self, filling: Filling) -> None:
        if self.transport.get_protocol() is not filling:
            return
        self.transport.set_protocol(self)
        reader: Any = self.conn._reader
        reader._remaining -= filling.count
        if not reader._remaining:
            self.handle_events()  # h11's end of the message

    def send_400_response(self, msg: str) -> None:
        error = GeneralReject("cannot answer: this is not HTTP")
        body = json.dumps({"error": error.name, "code": error.code, "message": str(error)}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        with suppress(h11.LocalProtocolError):  # an answer has begun
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            events: list[Any] = [head, h11.Data(data=body), h11.EndOfMessage()]
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _Remote(_Local):
    """A connection over TLS: whether the client has a certificate is told to the application, once it is verified."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        H11Protocol.connection_made(self, transport)
        self.logger = _protocol_log
        tls = transport.get_extra_info("ssl_object")
        certified = bool(tls and tls.getpeercert())
        self.app_state = {**self.app_state, CERTIFICATE: certified, RECEIVE: self.receive}
        self._greeting = self.loop.call_later(GREETING, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._greeting.cancel()
        super().connection_lost(exc)

    def _hang_up(self) -> None:
        if self.cycle is None:
            self.transport.close()
