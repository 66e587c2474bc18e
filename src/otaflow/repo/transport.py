"""The way to a repository's server: TLS, credentials, bounded reading. The only module that knows httpx.

What can go wrong is told apart here, once, because the update policy (spec/s16-package-update.md) does different
things with it: no connection → `Offline`, tried again; a certificate → `CertificateRefused`; a login →
`LoginRefused`; anything else the server says → `RepositoryRefused`. The last three are never tried again.
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urljoin, urlsplit

import httpx

from otaflow.config import Source
from otaflow.errors import (
    CertificateRefused,
    ConfigError,
    LoginRefused,
    Offline,
    OtaflowError,
    RepositoryRefused,
    TryLater,
)
from otaflow.repo.download import Answer, Missing, Progress, download

# A server that sends less than this for longer than the time limit is as good as none (TUF, slow retrieval).
MINIMUM_RATE = 512  # bytes a second
SMALL = 64 * 1024  # what is left of an answer is read up to here, so that its connection serves the next request too
REDIRECTS = 5
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
BUSY = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Certificate:
    """The server's certificate, as it was verified."""

    subject: str
    issuer: str
    not_after: datetime


class Transport:
    """Everything that is asked of one source's server. ConfigError when its certificates or token cannot be read."""

    def __init__(self, source: Source) -> None:
        try:
            url = urlsplit(source.url)
            self.host, self.port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
        except ValueError as error:
            raise ConfigError(f"cannot use {source.url}: {error}", hint="check the source's url") from error
        if url.scheme != "https" and not (url.scheme == "http" and url.hostname in LOOPBACK):
            raise ConfigError(f"cannot use {source.url}: a repository is asked over https only")
        self.base = source.url.rstrip("/")
        self.timeout = source.timeout_seconds
        self._origin = _origin(source.url)
        self._token_file = source.token_file
        self._context = _tls_context(source)
        self._socket: socket.socket | None = None
        self._client = httpx.Client(
            verify=self._context,
            trust_env=False,
            follow_redirects=False,
            timeout=self.timeout,
            # identity: what is counted and hashed is what was sent, and no bomb can inflate here
            headers={"User-Agent": "otaflow", "Accept-Encoding": "identity"},
        )

    def close(self) -> None:
        self._client.close()

    def connect(self) -> None:
        """Reach the server's port, no more. Offline when that fails."""
        self._dial().close()

    def check_certificate(self) -> Certificate:
        """Shake hands and verify who the server is. CertificateRefused, or Offline when the network failed."""
        doing = f"check the certificate of {self.host}"
        with self._dial() as plain:
            try:
                with self._context.wrap_socket(plain, server_hostname=self.host) as tls:
                    return _read_certificate(tls.getpeercert() or {})
            except OSError as error:  # ssl.SSLError is one
                raise _convert(error, doing) from error

    def authenticate(self) -> None:
        """Ask once, with our credentials, for what every repository has. LoginRefused, CertificateRefused."""
        with self.open(self.url("metadata/timestamp.json")):
            pass

    def url(self, path: str) -> str:
        """The address of `path`, which is relative to the repository's base and already quoted."""
        return f"{self.base}/{path}"

    def fetch(self, url: str, max_length: int) -> Iterator[bytes]:
        """The content of `url` in pieces; RepositoryRefused as soon as it is longer than `max_length` bytes."""
        received = 0
        with self.open(url) as answer:
            for chunk in answer.chunks:
                received += len(chunk)
                if received > max_length:
                    raise RepositoryRefused(
                        f"cannot fetch {url}: the server sends more than the {max_length} bytes this may have",
                        hint="an endless file is an attack or a wrong address; check the source's url",
                    )
                yield chunk

    def download(
        self, url: str, into: Path, length: int, hashes: Mapping[str, str], progress: Progress | None = None
    ) -> Path:
        """Bring `url` to `into`, resuming what an earlier call began; see `otaflow.repo.download`."""
        return download(self.open, url, into, length, hashes, progress)

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[Answer]:
        """A GET of `url` with our credentials, status 200, 206 or 416; every other one is raised as what it means."""
        for _ in range(REDIRECTS):
            if _origin(url) != self._origin:
                raise RepositoryRefused(
                    f"cannot fetch {url}: it leads away from {self.base}",
                    hint="redirects to other servers, or out of TLS, are not followed; configure that url as a source",
                )
            with self._ask(url, headers or {}) as response:
                if response.has_redirect_location:
                    url = _join(url, response.headers["location"])
                    continue
                self._accept(response, url)
                yield Answer(response.status_code, response.headers, self._read(response, url))
                return
        raise RepositoryRefused(f"cannot fetch {url}: the server redirects in a circle")

    def upload(self, url: str, body: bytes) -> None:
        """POST `body`, JSON packed with gzip, to `url` with our credentials; returns when the server took it (2xx).

        `url` comes from the configuration and may be on another host than the repository. Redirects are not followed.
        Offline, TryLater: again later. RepositoryRefused: the server does not want this one. LoginRefused,
        CertificateRefused.
        """
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        with self._ask(url, headers, body) as response:
            if not response.is_success:
                self._refuse(response, url, "send to")
            if response.headers.get("content-type", "").startswith("text/html"):
                raise RepositoryRefused(
                    f"cannot send to {url}: a web page answered", hint="check `diagnostics` of the source"
                )

    @contextmanager
    def _ask(self, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Iterator[httpx.Response]:
        """The answer's head: to a GET, or to a POST of `body`."""
        method, doing = ("GET", "fetch") if body is None else ("POST", "send to")
        try:
            request = self._client.build_request(
                method,
                url,
                content=body,
                headers={**headers, **self._login()},
                extensions={"trace": self._keep_socket},
            )
        except httpx.InvalidURL as error:
            raise RepositoryRefused(f"cannot {doing} {url}: {error}", hint="check the source's url") from error
        # httpx limits each read; a head that dribbles byte by byte needs a limit on the whole
        watchdog = threading.Timer(4 * self.timeout + len(body or b"") / MINIMUM_RATE, self._cut)
        watchdog.daemon = True
        watchdog.start()
        try:
            response = self._client.send(request, stream=True)
        except (httpx.HTTPError, OSError) as error:
            raise _convert(error, f"{doing} {url}") from error
        finally:
            watchdog.cancel()
        try:
            yield response
            self._read_rest(response, url)
        finally:
            response.close()

    def _read(self, response: httpx.Response, url: str) -> Iterator[bytes]:
        start, received = time.monotonic(), 0
        try:
            for chunk in response.iter_raw():
                received += len(chunk)
                yield chunk
                if received < (time.monotonic() - start - self.timeout) * MINIMUM_RATE:
                    raise Offline(f"cannot fetch {url}: the server sends less than {MINIMUM_RATE} bytes a second")
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise _convert(error, f"fetch {url}") from error

    def _read_rest(self, response: httpx.Response, url: str) -> None:
        """Read a small body that nobody wanted: else the connection is closed, and the next one shakes hands again."""
        length = response.headers.get("content-length", "")
        if not response.is_stream_consumed and length.isdecimal() and int(length) <= SMALL:
            with suppress(OtaflowError):
                for _ in self._read(response, url):
                    pass

    def _accept(self, response: httpx.Response, url: str) -> None:
        status = response.status_code
        if status in (200, 206, 416):
            encoding = response.headers.get("content-encoding", "identity")
            if encoding != "identity":
                raise RepositoryRefused(f"cannot fetch {url}: the server sent it as {encoding}, which nobody asked for")
            return
        self._refuse(response, url, "fetch")

    def _refuse(self, response: httpx.Response, url: str, doing: str) -> NoReturn:
        """Raise what the answer's status means."""
        status = response.status_code
        if status != 400:
            self._read_rest(response, url)
        said = f"the server answered {status} {response.reason_phrase}".rstrip()
        if status == 400 and b"SSL certificate" in self._beginning(response, url):  # nginx, without a certificate
            raise CertificateRefused(f"cannot {doing} {url}: {said}: it wants a client certificate", hint=_OWN)
        if status in (401, 403):
            raise LoginRefused(f"cannot log in at {urlsplit(url).hostname}: {said} for {url}", hint=_OWN)
        if status == 404:
            raise Missing(f"cannot {doing} {url}: the server has no such file", hint="check the source's url")
        if status in BUSY:
            raise TryLater(f"cannot {doing} {url}: {said}", hint="the server is busy or ill; try later")
        raise RepositoryRefused(f"cannot {doing} {url}: {said}", hint="check the source's url")

    def _beginning(self, response: httpx.Response, url: str) -> bytes:
        return next(self._read(response, url), b"")[:4096]

    def _login(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            token = self._token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the token {self._token_file}: {error}") from error
        if not token.isascii() or not token.isprintable() or not token:
            raise ConfigError(f"cannot use the token {self._token_file}: it must be one line of ASCII")
        return {"Authorization": f"Bearer {token}"}

    def _dial(self) -> socket.socket:
        try:
            return socket.create_connection((self.host, self.port), timeout=self.timeout)
        except (OSError, UnicodeError) as error:
            raise Offline(
                f"cannot connect to {self.host}:{self.port}: {error}", hint="check the network and the source's url"
            ) from error

    def _keep_socket(self, event: str, info: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")

    def _cut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                # not SSLSocket's own shutdown, which pulls the TLS state from under the reading thread
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


_OWN = "check `token_file`, `certificate` and `key` of the source, and that the server knows this device"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return parts.scheme, None, None


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise RepositoryRefused(f"cannot fetch {url}: the server redirects to {location!r}: {error}") from error


def _tls_context(source: Source) -> ssl.SSLContext:
    """Trust in `source.ca` alone, or in the system's bundle; our own certificate where there is one."""
    part: object = source.ca
    try:
        context = ssl.create_default_context(cafile=source.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if source.certificate is not None:
            part = f"{source.certificate} with {source.key}"
            context.load_cert_chain(source.certificate, source.key, password="")  # a key with a password: no prompt
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use the certificate {part}: {error}", hint="the files must be PEM") from error
    return context


def _convert(error: BaseException, doing: str) -> OtaflowError:
    """What happened on the wire, as one of our errors. The reason is somewhere down the chain of causes."""
    causes = [error]
    while (below := causes[-1].__cause__ or causes[-1].__context__) is not None and below not in causes:
        causes.append(below)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CertificateRefused(
                f"cannot {doing}: the server's certificate is not valid: {cause.verify_message}",
                hint="check the source's url and `ca`, and the device's clock",
            )
        if isinstance(cause, ssl.SSLError) and _is_about_us(cause):
            missing = "REQUIRED" in (cause.reason or "")
            why = "the server wants a client certificate" if missing else "the server refuses our certificate"
            return CertificateRefused(f"cannot {doing}: {why} ({cause.reason})", hint=_OWN)
    last = causes[-1]
    why = str(last) or str(error) or type(error).__name__
    return Offline(f"cannot {doing}: {why}", hint="check the network and the source's url")


def _is_about_us(error: ssl.SSLError) -> bool:
    reason = error.reason or ""
    words = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE", "ACCESS_DENIED")
    return "ALERT" in reason and any(word in reason for word in words)


def _read_certificate(fields: Mapping[str, Any]) -> Certificate:
    def name(key: str) -> str:
        return ", ".join(f"{label}={value}" for part in fields.get(key, ()) for label, value in part)

    seconds = ssl.cert_time_to_seconds(fields["notAfter"])
    return Certificate(name("subject"), name("issuer"), datetime.fromtimestamp(seconds, UTC))
