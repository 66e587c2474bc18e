"""`otaflow tuf` over plain http on this machine, as the public TUF conformance suite calls it: a process each time."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, TargetFile, Targets

from otaflow.cli.tuf import app
from otaflow.errors import ConfigError

PROGRAM = """
import sys
from otaflow.cli.tuf import app
from otaflow.errors import OtaflowError
try:
    app(sys.argv[1:])
except OtaflowError as error:
    sys.exit(f"{error}")
"""


class Client:
    """The client under test, and the server that it asks."""

    def __init__(self, world: Any, folder: Path, url: str) -> None:
        self.world, self.folder, self.url = world, folder, url
        self.asked: list[str] = []
        for name in ("metadata", "targets"):
            (folder / name).mkdir()
        (folder / "root.json").write_bytes(world.files["1.root.json"])

    def _run(self, *arguments: str) -> int:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return subprocess.run(command, check=False, capture_output=True, timeout=300).returncode

    def init(self) -> int:
        return self._run("--metadata-dir", str(self.folder / "metadata"), "init", str(self.folder / "root.json"))

    def refresh(self) -> int:
        folder = str(self.folder / "metadata")
        return self._run("--metadata-url", f"{self.url}/metadata", "--metadata-dir", folder, "refresh")

    def download(self, name: str) -> int:
        flags = {
            "--metadata-url": f"{self.url}/metadata",
            "--metadata-dir": str(self.folder / "metadata"),
            "--target-name": name,
            "--target-dir": str(self.folder / "targets"),
            "--target-base-url": f"{self.url}/targets",
        }
        return self._run(*(part for flag in flags.items() for part in flag), "download")

    def downloaded(self) -> list[bytes]:
        return [path.read_bytes() for path in (self.folder / "targets").rglob("*") if path.is_file()]

    def versions(self) -> dict[str, int]:
        paths = (self.folder / "metadata").glob("*.json")
        return {path.stem: Metadata[Any].from_file(str(path)).signed.version for path in paths}


@pytest.fixture
def client(world: Any, tmp_path: Path) -> Iterator[Client]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            client.asked.append(self.path)
            content = world.files.get(self.path.removeprefix("/metadata/").removeprefix("/"))
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    client = Client(world, tmp_path, f"http://localhost:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield client
    server.shutdown()
    server.server_close()
    thread.join()


def _put(world: Any, path: str, content: bytes) -> None:
    world.add(path, content)
    folder, slash, name = path.rpartition("/")
    world.files[f"targets/{folder}{slash}{world.targets.signed.targets[path].hashes['sha256']}.{name}"] = content
    world.publish()


def test_refresh_asks_for_just_what_it_needs(client: Client) -> None:
    assert client.init() == 0
    assert client.asked == []
    assert client.refresh() == 0
    names = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert client.asked == [f"/metadata/{name}" for name in names]
    assert client.versions() == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
    client.asked.clear()
    assert client.refresh() == 0
    assert client.asked == ["/metadata/2.root.json", "/metadata/timestamp.json"]


def test_download_and_not_twice(client: Client) -> None:
    client.init()
    _put(client.world, "path/to/file.txt", b"one")
    assert client.download("path/to/file.txt") == 0
    assert client.downloaded() == [b"one"]
    asked = [path for path in client.asked if path.startswith("/targets")]
    assert len(asked) == 1
    assert client.download("path/to/file.txt") == 0
    assert [path for path in client.asked if path.startswith("/targets")] == asked
    _put(client.world, "path/to/file.txt", b"another")
    assert client.download("path/to/file.txt") == 0
    assert client.downloaded() == [b"another"]


def test_substituted_target(client: Client) -> None:
    client.init()
    _put(client.world, "file.txt", b"one")
    name = next(name for name in client.world.files if name.startswith("targets/"))
    client.world.files[name] = b"two"
    assert client.download("file.txt") == 1
    assert client.downloaded() == []


def test_missing_target_still_refreshes(client: Client) -> None:
    client.init()
    assert client.download("nothing") == 1
    assert client.versions() == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}


def test_attack_makes_exit_code_1(client: Client) -> None:
    client.init()
    old = dict(client.world.files)
    client.world.publish()
    assert client.refresh() == 0
    client.world.files = {**client.world.files, "timestamp.json": old["timestamp.json"]}
    assert client.refresh() == 1
    assert client.versions()["timestamp"] == 2


def test_root_is_followed(client: Client) -> None:
    client.init()
    client.world.next_root(timestamp=[CryptoSigner.generate_ed25519()])
    client.world.next_root(root=[CryptoSigner.generate_ed25519()])
    client.world.publish()
    assert client.refresh() == 0
    assert client.versions()["root"] == 3


@pytest.mark.parametrize("role", ["team", "?", "#", "/role", "../role"])
def test_delegation_with_an_unusual_name(role: str, client: Client) -> None:
    from urllib.parse import quote

    world = client.world
    signer = CryptoSigner.generate_ed25519()
    world.targets.signed.delegations = Delegations({}, {role: DelegatedRole(role, [], 1, False, ["*"])})
    world.targets.signed.add_key(signer.public_key, role)
    world.targets.signed.version += 1
    content = b"delegated"
    target = TargetFile.from_data("file", content, ["sha256"])
    delegated = Metadata(Targets(expires=world.future, targets={"file": target}))
    delegated.sign(signer)
    data = delegated.to_bytes()
    world.snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(1, data, ["sha256"])
    world.files[f"1.{quote(role, '')}.json"] = data
    world.files[f"targets/{target.hashes['sha256']}.file"] = content
    world.publish()
    client.init()
    assert client.download("file") == 0
    assert client.downloaded() == [content]
    assert len(client.versions()) == 5


@pytest.mark.parametrize("content", [b"", b"{}", b"no JSON"], ids=["empty", "object", "text"])
def test_root_that_is_none(content: bytes, client: Client) -> None:
    (client.folder / "root.json").write_bytes(content)
    client.init()
    assert client.refresh() == 1
    assert client.asked == []


MISSING = {
    "init without a root": ["init"],
    "refresh without an address": ["refresh"],
    "download without a name": ["download", "--metadata-url", "http://localhost:1"],
    "http to another machine": ["refresh", "--metadata-url", "http://updates.example/metadata"],
}


@pytest.mark.parametrize("arguments", MISSING.values(), ids=MISSING)
def test_call_that_cannot_be(arguments: list[str], world: Any, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "root.json").write_bytes(world.files["1.root.json"])
    with pytest.raises(ConfigError):
        app(["--metadata-dir", str(tmp_path / "m"), *arguments], result_action="return_value", exit_on_error=False)
