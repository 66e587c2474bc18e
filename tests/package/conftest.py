"""Packages to build, and archives written by hand, block by block, that no honest tool would write."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

AUTHOR = {
    "format": 1,
    "name": "system",
    "kind": "system",
    "version": "1.1.0",
    "update_number": 2,
}


@dataclass
class Item:
    """One member: a header, with what follows it. `raw` is written instead of both."""

    name: str
    content: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    link: str = ""
    size: int | None = None
    pax: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None

    def blocks(self) -> bytes:
        if self.raw is not None:
            return self.raw
        info = tarfile.TarInfo(self.name)
        info.type, info.mode, info.linkname = self.type, self.mode, self.link
        info.size = len(self.content) if self.size is None else self.size
        info.pax_headers = self.pax
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        return header + self.content + bytes(-len(self.content) % tarfile.BLOCKSIZE)


@dataclass
class Forge:
    """A package in the making; the table's cases change `items`, `files`, `author`, `end` and `after`."""

    items: list[Item]
    files: dict[str, Any]
    author: dict[str, Any]
    size: dict[str, int] | None = None
    metadata: bytes | None = None
    first: list[Item] = field(default_factory=list)
    end: bytes = bytes(2 * tarfile.BLOCKSIZE)
    after: bytes = b""

    def add(self, item: Item, entry: Any = None) -> None:
        """One more member, listed in the metadata when `entry` is given."""
        self.items.append(item)
        if entry is not None:
            self.files[item.name] = entry

    def text(self) -> bytes:
        if self.metadata is not None:
            return self.metadata
        total = sum(int(entry.get("size", 0)) for entry in self.files.values())
        size = self.size or {"installed_bytes": total, "files": len(self.files)}
        return json.dumps({**self.author, "size": size, "files": self.files}).encode()

    def tar(self) -> bytes:
        items = [*self.first, Item("metadata", self.text()), *self.items]
        return b"".join(item.blocks() for item in items) + self.end

    def write(self, path: Path) -> Path:
        engine = zlib.compressobj(6, zlib.DEFLATED, 31)
        path.write_bytes(engine.compress(self.tar()) + engine.flush() + self.after)
        return path


def entry(content: bytes, mode: str = "0644") -> dict[str, Any]:
    return {"mode": mode, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.fixture
def forge() -> Forge:
    """A good package; a test makes it a bad one."""
    program = b"#!/bin/sh\n"
    items = [
        Item("update", program, mode=0o755),
        Item("assets", type=tarfile.DIRTYPE, mode=0o755),
        Item("assets/a", b"alpha"),
        Item("assets/link", type=tarfile.SYMTYPE, mode=0o777, link="sub/b"),
        Item("assets/sub", type=tarfile.DIRTYPE, mode=0o500),
        Item("assets/sub/b", b"beta" * 1000, mode=0o600),
    ]
    files = {
        "update": entry(program, "0755"),
        "assets": {"mode": "0755"},
        "assets/a": entry(b"alpha"),
        "assets/link": {"link": "sub/b"},
        "assets/sub": {"mode": "0500"},
        "assets/sub/b": entry(b"beta" * 1000, "0600"),
    }
    return Forge(items, files, dict(AUTHOR))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder that makes a good package."""
    folder = tmp_path / "source"
    make_source(folder)
    return folder


@pytest.fixture
def new_source() -> Callable[[Path], None]:
    return make_source


def make_source(folder: Path) -> None:
    (folder / "assets/etc").mkdir(parents=True)
    (folder / "metadata").write_text("".join(f"{key}: {value}\n" for key, value in AUTHOR.items()))
    (folder / "update").write_text("#!/bin/sh\nexit 0\n")
    (folder / "assets/etc/hosts").write_text("127.0.0.1 localhost\n")
    (folder / "assets/big").write_bytes(bytes(range(256)) * 5000)
    (folder / "assets/link").symlink_to("etc/hosts")
    for name, mode in {
        "update": 0o755,
        "assets": 0o755,
        "assets/etc": 0o750,
        "assets/etc/hosts": 0o640,
        "assets/big": 0o444,
    }.items():
        (folder / name).chmod(mode)


@pytest.fixture
def gunzip() -> Callable[[Path], tarfile.TarFile]:
    """The archive of a package, opened by tarfile."""
    return lambda path: tarfile.open(fileobj=io.BytesIO(zlib.decompress(path.read_bytes(), wbits=31)))
