"""What the tests of repositories share: packages, authorities, a server that can be told to misbehave, a TUF world."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import Any

import pytest
import trustme
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from otaflow.config import Source
from otaflow.errors import RepositoryRefused
from otaflow.package.build import build
from otaflow.repo import admin, serve, trust
from otaflow.repo.download import Missing


@pytest.fixture
def make_package(tmp_path: Path) -> Callable[..., Path]:
    """Build a small system package: `make_package("1.1.0", more="applies_to: {models: [x]}", text="other bytes")`."""

    def make(version: str, *, more: str = "", text: str = "", name: str = "demo") -> Path:
        folder = tmp_path / "sources" / f"{name}-{version}-{text}"
        (folder / "assets").mkdir(parents=True)
        (folder / "assets" / "text").write_text(text)
        (folder / "update").write_text("#!/bin/sh\n")
        (folder / "update").chmod(0o755)
        number = int(version.replace(".", ""))
        lines = ["format: 1", f"name: {name}", "kind: system", f"version: {version}", f"update_number: {number}", more]
        (folder / "metadata").write_text("\n".join(lines) + "\n")
        package = folder.with_suffix(".nsu") if text else tmp_path / f"{name}-{version}.nsu"
        build(folder, package)
        return package

    return make


@pytest.fixture
def make_application(tmp_path: Path) -> Callable[..., Path]:
    """Build a small application package: `make_application("1.1.0", "1.0.0", more="priority: true")`."""

    def make(version: str, base: str = "", *, more: str = "", name: str = "notes") -> Path:
        folder = tmp_path / "sources" / f"{name}-{version}-{base}"
        (folder / "files").mkdir(parents=True)
        (folder / "files" / "2.sql").write_text(version)
        applies = f"applies_to: {{versions: {base}}}" if base else ""
        lines = ["format: 1", f"name: {name}", "kind: application", f"version: {version}", "update_number: 1", applies]
        (folder / "metadata").write_text("\n".join([*lines, more]) + "\n")
        build(folder, folder.with_name(f"{folder.name}.nua"))
        return folder.with_name(f"{folder.name}.nua")

    return make


@dataclass
class Pki:
    """An authority, a certificate of a server at 127.0.0.1 and one of a device."""

    ca: trustme.CA
    folder: Path
    ca_file: Path = field(init=False)
    server: tuple[Path, Path] = field(init=False)
    device: tuple[Path, Path] = field(init=False)

    def __post_init__(self) -> None:
        self.ca_file = self.folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_file)
        self.server = self.issue("server", "127.0.0.1")
        self.device = self.issue("device", "device-17.example")

    def issue(self, name: str, *hosts: str, **more: Any) -> tuple[Path, Path]:
        leaf = self.ca.issue_cert(*hosts, **more)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(key)
        return certificate, key


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(trustme.CA(), tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
def other_pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority that nobody here trusts."""
    return Pki(trustme.CA(), tmp_path_factory.mktemp("other-pki"))


@pytest.fixture
def repository(tmp_path: Path, make_package: Callable[..., Path]) -> Path:
    """A repository with demo 1.1.0 and 1.2.0."""
    admin.init(tmp_path / "repository")
    admin.publish(tmp_path / "repository", [make_package("1.1.0"), make_package("1.2.0")])
    return tmp_path / "repository"


@pytest.fixture
def first_root(repository: Path) -> Path:
    return repository / "public" / "metadata" / "1.root.json"


@pytest.fixture
def source(repository: Path, first_root: Path, pki: Pki) -> Iterator[Source]:
    """The repository, served."""
    with serve.running(repository / "public", *pki.server) as url:
        yield Source(url=url, root=first_root, ca=pki.ca_file, timeout_seconds=60)


@dataclass
class Faulty:
    """A TLS server of one content under every path, which can be told to misbehave.

    `cuts`: after how many bytes of a body each next connection is cut. `answer` takes a request over altogether.
    """

    url: str = ""
    content: bytes = b""
    etag: str | None = '"one"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    answer: "Callable[[Any], None] | None" = None
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)
    sent: int = 0

    def reply(self, handler: Any) -> None:
        wanted, condition = handler.headers["Range"], handler.headers["If-Range"]
        self.asked.append((wanted, condition))
        if self.answer is not None:
            self.answer(handler)
            return
        start = 0
        if wanted and self.ranges and condition in (None, self.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(self.content) > 0:
            handler.send_response(416)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.send_header("Content-Length", str(len(self.content) - start))
        handler.end_headers()
        body = self.content[start:]
        cut = self.cuts.pop(0) if self.cuts else None
        handler.wfile.write(body[:cut])
        self.sent += len(body[:cut])
        if cut is not None and cut < len(body):
            handler.close_connection = True
            socket.shutdown(handler.connection, SHUT_RDWR)


@pytest.fixture
def faulty(pki: Pki) -> Iterator[Faulty]:
    told = Faulty()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with suppress(OSError):
                told.reply(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.server)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    told.url = f"https://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield told
    server.shutdown()
    server.server_close()
    thread.join()


class World:
    """A TUF repository in memory, with a client; every part of it can be changed, signed or not.

    Call `publish` after a change. `files` is what a client gets.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self.root: Metadata[Root] = Metadata(Root(expires=self.future))
        self.targets: Metadata[Targets] = Metadata(Targets(expires=self.future))
        self.snapshot: Metadata[Snapshot] = Metadata(Snapshot(expires=self.future))
        self.timestamp: Metadata[Timestamp] = Metadata(Timestamp(expires=self.future))
        self.signers: dict[str, list[CryptoSigner]] = {}
        for role in ("root", "targets", "snapshot", "timestamp"):
            self.signers[role] = [CryptoSigner.generate_ed25519()]
            self.root.signed.add_key(self.signers[role][0].public_key, role)
        self.publish_root()
        self.publish()

    @property
    def future(self) -> datetime:
        return datetime.now(UTC).replace(microsecond=0) + timedelta(days=7)

    @property
    def past(self) -> datetime:
        return datetime.now(UTC).replace(microsecond=0) - timedelta(days=7)

    def sign(self, role: str) -> bytes:
        metadata = getattr(self, role)
        metadata.signatures.clear()
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        content: bytes = metadata.to_bytes()
        return content

    def publish_root(self) -> None:
        self.files[f"{self.root.signed.version}.root.json"] = self.sign("root")

    def next_root(self, **signers: list[CryptoSigner]) -> None:
        """Give roles new keys; the next root is signed by the old root keys and its own."""
        old = self.signers["root"]
        for role, new in signers.items():
            for keyid in list(self.root.signed.roles[role].keyids):
                self.root.signed.revoke_key(keyid, role)
            for signer in new:
                self.root.signed.add_key(signer.public_key, role)
            self.signers[role] = new
        self.root.signed.version += 1
        new_keys = self.signers["root"]
        self.signers["root"] = [*old, *(signer for signer in new_keys if signer not in old)]
        self.publish_root()
        self.signers["root"] = new_keys

    def add(self, path: str, content: bytes = b"content") -> None:
        self.targets.signed.targets[path] = TargetFile.from_data(path, content, ["sha256"])
        self.targets.signed.version += 1

    def publish(self) -> None:
        """Sign all three roles as they are, the upper ones one version on."""
        self.put_snapshot(self.sign("targets"))
        self.snapshot.signed.version += 1
        self.timestamp.signed.version += 1

    def put_snapshot(self, targets: bytes) -> None:
        version = self.targets.signed.version
        self.files[f"{version}.targets.json"] = targets
        self.snapshot.signed.meta["targets.json"] = MetaFile.from_data(version, targets, ["sha256"])
        self.put_timestamp(self.sign("snapshot"))

    def put_timestamp(self, snapshot: bytes) -> None:
        version = self.snapshot.signed.version
        self.files[f"{version}.snapshot.json"] = snapshot
        self.timestamp.signed.snapshot_meta = MetaFile.from_data(version, snapshot, ["sha256"])
        self.files["timestamp.json"] = self.sign("timestamp")

    def fetch(self, url: str, max_length: int) -> Iterator[bytes]:
        name = url.removeprefix("world:/")
        if name not in self.files:
            raise Missing(f"cannot fetch {name}")
        if len(self.files[name]) > max_length:
            raise RepositoryRefused(f"cannot fetch {name}: endless")
        yield self.files[name]

    def refresh(self) -> None:
        trust.refresh(self.folder, self.files["1.root.json"], "world:/", self.fetch)

    def trusted(self) -> set[str]:
        """The targets that the client trusts, as it reads them from its own disk."""
        return set(trust.load(self.folder, self.files["1.root.json"]).targets)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "trust")
