"""The UCM's interface (docs/spec/ucm-api.md) for Python programs: one method for each of its methods.

A refusal is raised as the `UcmError` of its name. `Offline` says that no agent answers, or that the connection was cut
before the answer; whether the call was carried out is then in CurrentStatus. This and the repository's transport are
the only modules that know httpx.
"""

import json
import socket as sockets
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

from otaflow import errors
from otaflow.errors import CertificateRefused, ConfigError, LoginRefused, Offline, OtaflowError, UcmError

Fields = dict[str, Any]
Progress = Callable[[int, int], None]
"""Gets the bytes that are safe on the device, and those of the whole file."""

CONNECT = 10.0  # seconds
PATIENCE = 60.0  # seconds that a transfer waits for an agent that is away
SILENCE = 60.0  # seconds without even a heartbeat after which a stream of events is dead
PAUSE = 0.2  # seconds between two tries
SMALL_BLOCK = 64 * 1024  # for a transfer whose block size nobody remembers
PIECE = 256 * 1024  # of a block, handed to the socket at once
_NO_WAIT_LIMIT = httpx.Timeout(CONNECT, read=None)  # ProcessSwPackage answers when the package is processed
_AGENT = "is the agent running? `systemctl status otaflow-agent`, or start it with `otaflow agent`"


class Transfer(NamedTuple):
    """The answer to TransferStart; `block_size`: bytes."""

    id: str
    block_size: int


class Client:
    """A connection to one device's agent: on its Unix `socket`, or at `url` (https) with credentials.

    `ca`: the authorities that the server's certificate is trusted by, the system's otherwise. `certificate`: the files
    of our own certificate and its key. Raises ConfigError when a file cannot be used. Threads may share a client.
    """

    def __init__(
        self,
        socket: Path | None = None,
        url: str | None = None,
        *,
        token: str | None = None,
        ca: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        if (socket is None) == (url is None):
            raise ConfigError("cannot make a client: it needs a socket or a url")
        if url is not None and not url.startswith("https://"):
            raise ConfigError(f"cannot use {url}: the interface is asked over https only")
        self.place = str(socket or url)
        if url is not None:
            transport = httpx.HTTPTransport(verify=_tls_context(ca, certificate), socket_options=_KEEP_ALIVE)
        else:
            transport = httpx.HTTPTransport(uds=str(socket))
        self._http = httpx.Client(
            transport=transport,
            base_url=url or "http://ucm",
            timeout=_NO_WAIT_LIMIT,
            trust_env=False,
            headers={"Authorization": f"Bearer {token}"} if token else {},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- status ---------------------------------------------------------------------------------------------------

    def current_status(self) -> Fields:
        """CurrentStatus: `{"status": "Idle", "session": None}`."""
        return self._ask("GET", "/ucm/CurrentStatus")

    def watch(self, *, reconnect: bool = False) -> Iterator[Fields]:
        """The present status, then each change of it. Ends when the agent stops; with `reconnect` goes on after that.

        Raises Offline when the connection is lost, without `reconnect`.
        """
        last: Fields | None = None
        while True:
            try:
                for status in self._events():
                    if status != last:
                        yield (last := status)
            except Offline:
                if not reconnect:
                    raise
            if not reconnect:
                return
            time.sleep(PAUSE)

    # --- transfer -------------------------------------------------------------------------------------------------

    def transfer_start(self, size: int) -> Transfer:
        """TransferStart: announce `size` bytes."""
        answer = self.call("TransferStart", size=size)
        return Transfer(answer["id"], answer["blockSize"])

    def transfer_data(self, id: str, block_counter: int, block: bytes | memoryview) -> int:
        """TransferData: how many bytes are there without a gap. `block_counter` is from 1, one more for each block."""
        answer = self._ask(
            "POST",
            "/ucm/TransferData",
            params={"id": id, "blockCounter": block_counter},
            content=_pieces(block),
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(len(block))},
        )
        return int(answer["consecutiveBytesReceived"])

    def transfer_exit(self, id: str) -> None:
        """TransferExit: everything was sent."""
        self.call("TransferExit", id=id)

    def delete_transfer(self, id: str) -> None:
        """DeleteTransfer."""
        self.call("DeleteTransfer", id=id)

    def transfer(
        self, path: Path, progress: Progress | None = None, *, id: str | None = None, patience: float = PATIENCE
    ) -> str:
        """Bring the whole file `path` into the cache; returns its id. With `id` an earlier transfer of it goes on.

        When the agent is away (it restarts), it is waited for `patience` seconds, and what it has is not sent again.
        Raises what TransferStart, TransferData and TransferExit raise, and Offline.
        """
        size = path.stat().st_size
        if id is None:
            id, block_size = self.transfer_start(size)
        else:
            block_size = 0
        with path.open("rb") as file:
            end = time.monotonic() + patience
            while True:
                try:
                    package = self._find_package(id)
                    if package["state"] != "kTransferring":
                        return id  # the answer to TransferExit was lost
                    for received in self._send(file, package, block_size):
                        end = time.monotonic() + patience
                        if progress:
                            progress(received, size)
                    self.transfer_exit(id)
                    return id
                except Offline:
                    if time.monotonic() > end:
                        raise
                    time.sleep(PAUSE)

    # --- what changes the state -----------------------------------------------------------------------------------

    def process_sw_package(self, id: str, *, unattended: bool = False, accept_irreversible: bool = False) -> None:
        """ProcessSwPackage: returns on Ready. `unattended`: the session does not wait for us if we go away.

        `accept_irreversible`: the user agrees to a migration of data that cannot be brought back.
        """
        given = {"unattended": unattended or None, "acceptIrreversible": accept_irreversible or None}
        self.call("ProcessSwPackage", id=id, **given)

    def get_sw_process_progress(self, id: str) -> int:
        """GetSwProcessProgress: 0 to 100."""
        return int(self.call("GetSwProcessProgress", id=id)["progress"])

    def cancel(self, id: str) -> None:
        """Cancel: returns when the processing has stopped."""
        self.call("Cancel", id=id)

    def activate(self) -> None:
        """Activate: returns on entering Verifying."""
        self.call("Activate")

    def rollback(self) -> None:
        """Rollback: returns on Rolled-back."""
        self.call("Rollback")

    def revert_processed_sw_packages(self) -> None:
        """RevertProcessedSwPackages: returns on Idle."""
        self.call("RevertProcessedSwPackages")

    def finish(self) -> None:
        """Finish: returns on Idle."""
        self.call("Finish")

    # --- beside the contract ----------------------------------------------------------------------------------------

    def go_back(self, to: str, backup: str | None = None, *, unattended: bool = False) -> None:
        """GoBack to "previous-slot", "snapshot" or "backup": returns on Ready, as ProcessSwPackage does."""
        self._post("/otaflow/GoBack", to=to, backup=backup, unattended=unattended or None)

    def uninstall(self, id: str, *, unattended: bool = False) -> None:
        """Uninstall what the package installed that was sent, without TransferExit: returns on Ready."""
        self._post("/otaflow/Uninstall", id=id, unattended=unattended or None)

    def remove(self, name: str, *, unattended: bool = False) -> None:
        """Remove the application `name`, whose data stays: returns on Ready."""
        self._post("/otaflow/Remove", name=name, unattended=unattended or None)

    def request_update(self, name: str) -> Fields:
        """RequestUpdate: `{"searching": bool, "offers": […]}`, at once."""
        return self._post("/otaflow/RequestUpdate", name=name)

    def defer(self, name: str) -> Fields:
        """Defer the closing of the application `name`: `{"secondsLeft", "defersLeft"}`."""
        return self._post("/otaflow/Defer", name=name)

    def clean_up(self) -> list[str]:
        """CleanUp: the ids of the backups whose full copy or snapshot went."""
        return list(self._post("/otaflow/CleanUp")["removed"])

    # --- the update policy ----------------------------------------------------------------------------------------

    def get_offers(self) -> list[Fields]:
        """GetOffers: what is on offer, what a poll would do with it, and why (docs/policy.md)."""
        return _list(self._post("/otaflow/GetOffers"), "offers")

    def consent(
        self, choice: str, version: str = "", by: str = "somebody", *, name: str = "", content: str = ""
    ) -> None:
        """Consent: `now`, `at-next-restart`, `in-window`, `not-this-one`, or `withdraw`.

        `content`: that of the offer which the user was shown; the answer is refused where it is another by now.
        """
        self._post(
            "/otaflow/Consent", choice=choice, version=version, by=by, name=name or None, content=content or None
        )

    def get_messages(self, reader: str | None = None, after: int = 0) -> list[Fields]:
        """GetMessages: `[{id, time, kind, package, version, text, facts}]`, oldest first."""
        return _list(self._post("/otaflow/GetMessages", reader=reader, after=after), "messages")

    def watch_messages(self, reader: str | None = None, after: int = 0) -> Iterator[Fields]:
        """Each message, those that are there first. Ends when the agent stops; raises Offline when it is cut off."""
        asked = {"after": str(after)} | ({"reader": reader} if reader else {})
        yield from self._stream("/otaflow/GetMessages/events", asked)

    def acknowledge_message(self, reader: str, id: int) -> None:
        """AcknowledgeMessage: all messages up to `id` were taken."""
        self._post("/otaflow/AcknowledgeMessage", reader=reader, id=id)

    # --- diagnostic data ------------------------------------------------------------------------------------------

    def get_diagnostics(self) -> Fields:
        """GetDiagnostics: `{consent: {given, time, by}, waiting, report}`; the report as it would be sent now."""
        return self._post("/otaflow/GetDiagnostics")

    def diagnostics_consent(self, *, given: bool, by: str = "somebody") -> Fields:
        """DiagnosticsConsent: `{given, time, by, removed}`."""
        return self._post("/otaflow/DiagnosticsConsent", given=given, by=by)

    # --- reports --------------------------------------------------------------------------------------------------

    def get_sw_cluster_info(self) -> list[Fields]:
        """GetSwClusterInfo: `[{name, version, state}]`."""
        return _list(self.call("GetSwClusterInfo"), "clusters")

    def get_sw_cluster_change_info(self) -> list[Fields]:
        """GetSwClusterChangeInfo: `[{name, version, state}]`."""
        return _list(self.call("GetSwClusterChangeInfo"), "clusters")

    def get_sw_packages(self) -> list[Fields]:
        """GetSwPackages: `[{id, name, version, state, consecutiveBytesReceived, consecutiveBlocksReceived}]`."""
        return _list(self.call("GetSwPackages"), "packages")

    def get_history(self, since: str | None = None, until: str | None = None) -> list[Fields]:
        """GetHistory: `[{time, name, version, action, resolution, error?}]`, oldest first. Times are RFC 3339."""
        return _list(self.call("GetHistory", since=since, until=until), "history")

    def set_log_level(self, id: str, level: int) -> None:
        """SetLogLevel: 0 off, 1 fatal, 2 error, 3 warn, 4 info, 5 debug, 6 verbose."""
        self.call("SetLogLevel", id=id, level=level)

    def get_log(self, id: str) -> list[Fields]:
        """GetLog: `[{time, level, message}]`."""
        return _list(self.call("GetLog", id=id), "log")

    def call(self, method: str, **fields: Any) -> Fields:
        """POST /ucm/<method> with the fields that are not None. Raises UcmError, LoginRefused, Offline."""
        return self._post(f"/ucm/{method}", **fields)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _post(self, path: str, **fields: Any) -> Fields:
        return self._ask("POST", path, json={name: value for name, value in fields.items() if value is not None})

    def _ask(self, method: str, path: str, **request: Any) -> Fields:
        with self._converting():
            response = self._http.request(method, path, **request)
        return self._read(response)

    def _read(self, response: httpx.Response) -> Fields:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.status_code == 200 and isinstance(answer, dict):
            return answer
        if response.status_code == 401:
            raise LoginRefused(
                f"cannot log in at {self.place}: the agent wants a token or a client certificate",
                hint="check that the token or the certificate is one of this device's [api]",
            )
        if isinstance(answer, dict) and isinstance(answer.get("error"), str):
            raise _make_error(answer)
        raise OtaflowError(f"cannot use {self.place}: it answered {response.status_code}, and not as an agent does")

    def _events(self) -> Iterator[Fields]:
        yield from self._stream("/ucm/CurrentStatus/events", {"current": "true"})

    def _stream(self, path: str, query: dict[str, str]) -> Iterator[Fields]:
        with self._converting():
            timeout = httpx.Timeout(CONNECT, read=SILENCE)
            asked = self._http.stream("GET", path, params=query, timeout=timeout)
            with asked as response:
                if response.status_code != 200:
                    response.read()
                    self._read(response)
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))

    def _find_package(self, id: str) -> Fields:
        for package in self.get_sw_packages():
            if package["id"] == id:
                return package
        raise errors.InvalidTransferId(
            f"cannot go on with the transfer {id}: the agent does not have it", hint="start a new transfer"
        )

    def _send(self, file: Any, package: Fields, block_size: int) -> Iterator[int]:
        """Send what is missing, block by block; after each, how many bytes are there."""
        received, blocks = package["consecutiveBytesReceived"], package["consecutiveBlocksReceived"]
        block_size = block_size or (received // blocks if blocks else SMALL_BLOCK)
        file.seek(received)
        while block := file.read(block_size):
            blocks += 1
            yield self.transfer_data(package["id"], blocks, block)

    @contextmanager
    def _converting(self) -> Iterator[None]:
        """What happens on the wire, as one of our errors."""
        try:
            yield
        except httpx.ConnectError as error:
            raise self._explain(error) from error
        except (httpx.HTTPError, OSError) as error:
            why = str(error) or type(error).__name__
            raise Offline(f"cannot ask {self.place}: the connection was lost: {why}", hint=_AGENT) from error

    def _explain(self, error: BaseException) -> OtaflowError:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return CertificateRefused(
                    f"cannot ask {self.place}: its certificate is not valid: {cause.verify_message}",
                    hint="check the url and `ca`",
                )
            cause = cause.__cause__ or cause.__context__
        return Offline(f"cannot ask {self.place}: {error}", hint=_AGENT)


# A call may be answered after an hour: the kernel finds out whether the other side is still there.
_KEEP_ALIVE: list[tuple[int, int, int]] = [
    (sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1),
    (sockets.IPPROTO_TCP, sockets.TCP_KEEPIDLE, 30),
    (sockets.IPPROTO_TCP, sockets.TCP_KEEPINTVL, 10),
    (sockets.IPPROTO_TCP, sockets.TCP_KEEPCNT, 3),
]


def _pieces(block: bytes | memoryview) -> Iterator[bytes]:
    """The block in pieces: of what the socket has not taken yet, httpcore makes a copy each time."""
    view = memoryview(block)
    for start in range(0, len(view), PIECE):
        yield bytes(view[start : start + PIECE])


def _make_error(answer: Fields) -> UcmError:
    """The error of that name; GeneralReject for one that we do not know."""
    kind = getattr(errors, answer["error"], None)
    message = str(answer.get("message", ""))
    if isinstance(kind, type) and issubclass(kind, UcmError):
        return kind(message)
    return errors.GeneralReject(f"{answer['error']}: {message}")


def _list(answer: Fields, name: str) -> list[Fields]:
    values = answer[name]
    assert isinstance(values, list)
    return values


def _tls_context(ca: Path | None, certificate: tuple[Path, Path] | None) -> ssl.SSLContext:
    part: object = ca
    try:
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate is not None:
            part = f"{certificate[0]} with {certificate[1]}"
            context.load_cert_chain(certificate[0], certificate[1], password="")  # no prompt
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use the certificate {part}: {error}", hint="the files must be PEM") from error
    return context
