"""Taking a package apart, in one pass, in memory that does not depend on its size.

Every member is held against the metadata, which is the first member: name, kind, mode, size and SHA-256. Whatever is
refused, the folder that was being made is gone again. Steps 1 and 2 of spec/update-processes.md.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from otaflow.errors import GeneralReject, InsufficientMemory, PackageInconsistent
from otaflow.package import names
from otaflow.package.inflate import ahead, inflate
from otaflow.package.members import Member, Stream, read_member
from otaflow.package.metadata import MAX_BYTES, Entry, File, Folder, Link, Metadata, parse
from otaflow.package.tree import Tree

Progress = Callable[[int], None]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a package may hold at most: `members`, and `bytes` of the inflated archive."""

    members: int = 100_000
    bytes: int = 16 * 2**30


def read_metadata(archive: Path) -> Metadata:
    """The metadata of the package, from its first member; the rest is neither read nor checked.

    PackageInconsistent when the archive is damaged, InvalidManifest when the metadata is wrong.
    """
    with _opened(archive) as file:
        return parse(_read_first(Stream(inflate(file, 2 * MAX_BYTES))))


def extract(archive: Path, into: Path, *, limits: Limits | None = None, progress: Progress | None = None) -> Metadata:
    """Make the new folder `into` (mode 0700) with the package's content, and return its metadata.

    `progress` is called with the bytes of content written so far, of `size.installed_bytes`; what it raises ends the
    extraction. On any error `into` is removed. Raises PackageInconsistent (the archive is damaged, or holds what
    a package may not), InvalidManifest (the metadata is wrong), InsufficientMemory (no room), GeneralReject (the folder
    cannot be written).
    """
    limits = limits or Limits()
    with _opened(archive) as file, ahead(inflate(file, limits.bytes)) as pieces, _made(into):
        stream = Stream(pieces)
        text = _read_first(stream)
        metadata = parse(text)
        check_limits(metadata, limits)
        with Tree(into) as tree:
            _check_room(metadata, len(text), tree.room(), into)
            tree.make_file("metadata", 0o644, iter([memoryview(text)]), lambda _: None)
            _write_members(stream, tree, metadata, progress or (lambda _: None))
            tree.finish()
    return metadata


def _write_members(stream: Stream, tree: Tree, metadata: Metadata, progress: Progress) -> None:
    """Write all members after the first one; the links last, so that nothing can be written through them."""
    waiting = dict(metadata.files)
    links: list[tuple[str, str]] = []
    written = 0

    def wrote(count: int) -> None:
        nonlocal written
        written += count
        progress(written)

    while (member := read_member(stream)) is not None:
        entry = waiting.pop(member.name, None)
        if entry is None:
            raise _unexpected(member, metadata)
        _check_member(member, entry)
        folder = names.parent(member.name)
        if folder in waiting:
            raise _refuse(member.name, "comes before the folder that it is in")
        if isinstance(entry, Link):
            links.append((member.name, entry.link))
        elif isinstance(entry, Folder):
            tree.make_folder(member.name, member.mode)
        else:
            sha256 = tree.make_file(member.name, member.mode, stream.chunks(member.size), wrote)
            stream.skip_padding(member.size)
            if sha256 != entry.sha256:
                raise _refuse(member.name, f"has the SHA-256 {sha256}, its metadata says {entry.sha256}")
    stream.check_end()
    if waiting:
        raise _refuse(next(iter(waiting)), "is in the metadata and not in the archive")
    for name, target in links:
        tree.make_link(name, target)


def _check_member(member: Member, entry: Entry) -> None:
    """PackageInconsistent where the header is not what the metadata says."""
    kind = "link" if isinstance(entry, Link) else "folder" if isinstance(entry, Folder) else "file"
    if member.kind != kind:
        raise _refuse(member.name, f"is a {member.kind}, its metadata says {kind}")
    if isinstance(entry, Link):
        if member.target != entry.link:
            raise _refuse(member.name, f"leads to {member.target[:200]!r}, its metadata says {entry.link!r}")
        return
    if member.mode != int(entry.mode, 8):
        raise _refuse(member.name, f"has mode {member.mode:04o}, its metadata says {entry.mode}")
    if isinstance(entry, File) and member.size != entry.size:
        raise _refuse(member.name, f"has {member.size} bytes, its metadata says {entry.size}")


def _unexpected(member: Member, metadata: Metadata) -> PackageInconsistent:
    """Why a member that nothing waits for is refused."""
    try:
        names.check_name(member.name)
        if member.kind == "link":
            names.check_target(member.name, member.target)
    except ValueError as error:
        return _refuse(member.name, f"is not allowed: {error}")
    if member.name in metadata.files or member.name == "metadata":
        return _refuse(member.name, "is there twice")
    return _refuse(member.name, "is not in the metadata")


def _refuse(name: str, why: str) -> PackageInconsistent:
    return PackageInconsistent(f"cannot accept the package: its member {name[:200]!r} {why}")


def _read_first(stream: Stream) -> bytes:
    """The text of the first member, which must be the metadata."""
    member = read_member(stream)
    if member is None or member.name != "metadata" or member.kind != "file":
        raise PackageInconsistent("cannot accept the package: its first member is not the file `metadata`")
    if member.size > MAX_BYTES:
        raise PackageInconsistent(f"cannot accept the package: its metadata has more than {MAX_BYTES} bytes")
    text = stream.read(member.size)
    stream.skip_padding(member.size)
    return text


def check_limits(metadata: Metadata, limits: Limits) -> None:
    """PackageInconsistent where the package promises more than we take."""
    if metadata.size.files > limits.members:
        raise PackageInconsistent(f"cannot accept the package: it has more than {limits.members} members")
    if metadata.size.installed_bytes > limits.bytes:
        raise PackageInconsistent(f"cannot accept the package: it holds more than {limits.bytes} bytes")


def _check_room(metadata: Metadata, text_bytes: int, disk: os.statvfs_result, into: Path) -> None:
    """InsufficientMemory where the disk has no room for all blocks and inodes of the package."""
    block = disk.f_frsize
    sizes = [entry.size if isinstance(entry, File) else 1 for entry in metadata.files.values()]
    need = sum(-(-size // block) for size in [*sizes, text_bytes]) * block
    free = disk.f_bavail * block
    # A file system without a fixed number of inodes (btrfs) says that it has none at all.
    if need > free or (disk.f_files and metadata.size.files + 1 > disk.f_favail):
        raise InsufficientMemory(
            f"cannot extract the package into {into}: it needs {need} bytes in {metadata.size.files + 1} files, "
            f"{free} bytes and {disk.f_favail} files are free",
            hint="make room there, for example with `otaflow clean-up`",
        )


@contextmanager
def _opened(archive: Path) -> Iterator[BinaryIO]:
    """The open archive. PackageInconsistent where there is none that can be read."""
    try:
        file = archive.open("rb", buffering=0)
    except OSError as error:
        raise PackageInconsistent(f"cannot read the package {archive}: {error.strerror}") from error
    with file:
        yield file


@contextmanager
def _made(into: Path) -> Iterator[None]:
    """The new folder `into`, removed on any error; what the operating system refuses becomes our error."""
    try:
        into.mkdir(0o700)
    except OSError as error:
        raise _failed(into, error) from error
    try:
        yield
    except BaseException as error:
        shutil.rmtree(into, ignore_errors=True)
        if isinstance(error, OSError):
            raise _failed(into, error) from error
        raise


def _failed(into: Path, error: OSError) -> InsufficientMemory | GeneralReject:
    if error.errno in _NO_ROOM:
        return InsufficientMemory(
            f"cannot extract the package into {into}: {error.strerror}",
            hint="make room there, for example with `otaflow clean-up`",
        )
    return GeneralReject(f"cannot extract the package into {into}: {error.strerror or error}")
