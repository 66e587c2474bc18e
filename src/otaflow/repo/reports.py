"""Taking the diagnostic reports of devices: bounded, checked, each a file `TIME-DEVICE-DIGEST.json`, mode 0600.

The time is this server's, the digest that of the content: a report that is sent twice is kept once.
"""

import hashlib
import json
import re
import threading
import time
import zlib
from datetime import UTC, datetime
from email.message import Message
from io import BufferedIOBase
from pathlib import Path

from otaflow.errors import ConfigError
from otaflow.files import write_atomic

PATH = "/diagnostics"
MAX_SENT = 2**20
MAX_REPORT = 4 * 2**20
"""Bytes of one report, as it is sent and unpacked."""
MAX_REPORTS = 10_000
SECONDS = 60
"""So long may a report take to arrive."""
_writing = threading.Lock()


def prepare(folder: Path, *, authenticates: bool) -> None:
    """Make the folder of reports. ConfigError where anybody could fill it."""
    if not authenticates:
        raise ConfigError(
            "cannot take diagnostic reports: anybody could send them",
            hint="--client-ca or --token-file lets only your devices in",
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot take diagnostic reports into {folder}: {error.strerror}") from error


def take(folder: Path, headers: Message, body: BufferedIOBase, device: str) -> tuple[int, str]:
    """Read one report and keep it; the status and the text to answer. `device` is who sent it, if that is known."""
    length = headers.get("content-length", "")
    if not re.fullmatch("[0-9]{1,12}", length):
        return 411, "the length is needed"
    content = receive(headers, body)
    if int(length) > MAX_SENT:
        return 413, f"a report has {MAX_SENT} bytes at most"
    if len(content) < int(length):
        return 408, "the report did not arrive"
    if headers.get("content-encoding", "identity") not in ("identity", "gzip"):
        return 415, "a report is packed with gzip, or not at all"
    if headers.get("content-encoding") == "gzip":
        unpacked = _unpack(content)
        if unpacked is None:
            return 400, "the report is damaged, or too long"
        content = unpacked
    return _keep(folder, content, device)


def receive(headers: Message, body: BufferedIOBase) -> bytes:
    """The request's body; of one that is too long the beginning. One that is refused is read, too: who is still sending
    when the connection is closed does not see the answer."""
    length = headers.get("content-length", "")
    left = min(int(length), 2 * MAX_SENT) if re.fullmatch("[0-9]{1,12}", length) else 0
    pieces, end = [], time.monotonic() + SECONDS
    while left and time.monotonic() < end and (piece := body.read1(min(left, 65536))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _unpack(content: bytes) -> bytes | None:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(content, MAX_REPORT)
    except zlib.error:
        return None
    return unpacked if unpacker.eof and not unpacker.unused_data else None


def _keep(folder: Path, content: bytes, device: str) -> tuple[int, str]:
    try:
        report = json.loads(content)
        claimed = report["device"]["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return 400, "the report is not JSON with a device's name"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", device or str(claimed))[:64]
    digest = hashlib.sha256(content).hexdigest()[:16]
    with _writing:
        known = [path.name for path in folder.iterdir() if path.suffix == ".json"]
        if any(one.endswith(f"-{name}-{digest}.json") for one in known):
            return 200, "known"
        if len(known) >= MAX_REPORTS:
            return 503, "there is no room for more reports"
        try:
            write_atomic(folder / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}-{digest}.json", content, 0o600)
        except OSError:
            return 503, "the report could not be kept"
    return 201, "kept"
