"""Making a package from a folder: the same folder gives the same bytes, whoever builds it, when and where.

Members are sorted, belong to root, and carry one time (0, or $SOURCE_DATE_EPOCH). What `extract` would refuse is
refused here.
"""

import hashlib
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from otaflow.errors import OtaflowError, PackageInconsistent
from otaflow.files import fsync_folder
from otaflow.package import names
from otaflow.package.extract import Limits, check_limits
from otaflow.package.metadata import (
    CONTENT,
    MAX_BYTES,
    Entry,
    File,
    Folder,
    Link,
    Metadata,
    complete,
    dump,
    parse,
    parse_source,
)

LEVEL = 6
CHUNK_BYTES = 2**20
RECORD_BYTES = tarfile.RECORDSIZE

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def build(folder: Path, output: Path) -> Metadata:
    """Make the package `output` of `folder` (`metadata`, and `update` and `assets/`, or `files/`); return its metadata.

    `output` appears whole or not at all. InvalidManifest: the metadata is wrong. PackageInconsistent: the folder holds
    what a package may not, or changed while it was packed.
    """
    try:
        if output.resolve().is_relative_to(folder.resolve()):
            raise PackageInconsistent(f"cannot build {output}: it is inside of the folder that is packed")
        metadata = _describe(folder)
        with _replaced(output) as file:
            _write_archive(folder, metadata, file)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise PackageInconsistent(f"cannot build {output}: {where}{error.strerror}") from error
    return metadata


def _describe(folder: Path) -> Metadata:
    """The metadata of the package that `folder` makes."""
    source = parse_source(_read_source(folder))
    files: dict[str, Entry] = {}
    for name in sorted(os.listdir(folder)):
        if name == "metadata":
            continue
        if name not in CONTENT[source.kind]:
            allowed = ", ".join(("metadata", *CONTENT[source.kind]))
            raise _refuse(folder, name, f"a {source.kind} package holds {allowed} and nothing else")
        files.update(_walk(folder, name))
    if source.kind == "system" and "update" not in files:
        raise PackageInconsistent(f"cannot build {folder}: there is no program `update`")
    program = files.get("update")
    if isinstance(program, File) and not int(program.mode, 8) & 0o100:
        raise _refuse(folder, "update", "its owner may not execute it", hint=f"chmod +x {folder / 'update'}")
    # What is written is read once, so that nothing is built that `extract` would refuse.
    metadata = parse(dump(complete(source, files)))
    check_limits(metadata, Limits())
    return metadata


def _read_source(folder: Path) -> bytes:
    """The author's metadata. PackageInconsistent where there is none."""
    path = folder / "metadata"
    if not path.is_file():
        raise PackageInconsistent(f"cannot build {folder}: there is no file `metadata`")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _walk(root: Path, name: str) -> Iterator[tuple[str, Entry]]:
    """`name` and all below it, each folder before its content, sorted."""
    path = root / name
    try:
        names.check_name(name)
    except ValueError as error:
        raise _refuse(root, name, str(error)) from error
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        yield name, _link(root, name)
        return
    if mode & ~0o777:
        raise _refuse(root, name, f"its mode {mode:04o} has a setuid, setgid or sticky bit", hint="let `update` set it")
    if stat.S_ISDIR(status.st_mode):
        yield name, Folder(mode=f"{mode:04o}")
        for child in sorted(os.listdir(path)):
            yield from _walk(root, f"{name}/{child}")
    elif stat.S_ISREG(status.st_mode):
        yield name, _file(path, mode)
    else:
        raise _refuse(root, name, "it is neither a file, a folder nor a symbolic link")


def _link(root: Path, name: str) -> Link:
    try:
        return Link(link=names.check_target(name, os.readlink(root / name)))
    except ValueError as error:
        raise _refuse(root, name, str(error)) from error


def _file(path: Path, mode: int) -> File:
    """The entry of a regular file."""
    digest = hashlib.sha256()
    size = 0
    for chunk in _chunks(path):
        digest.update(chunk)
        size += len(chunk)
    return File(mode=f"{mode:04o}", size=size, sha256=digest.hexdigest())


def _chunks(path: Path) -> Iterator[bytes]:
    with os.fdopen(os.open(path, _READ), "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _write_archive(folder: Path, metadata: Metadata, file: BinaryIO) -> None:
    """Write the gzip stream: the metadata, all its files, the end of the archive."""
    gzip = _Gzip(file)
    time = _time()
    text = dump(metadata)
    gzip.write(_header("metadata", tarfile.REGTYPE, 0o644, time, size=len(text)))
    gzip.write(text)
    gzip.pad(tarfile.BLOCKSIZE)
    for name, entry in sorted(metadata.files.items(), key=lambda item: item[0].split("/")):
        if isinstance(entry, Link):
            gzip.write(_header(name, tarfile.SYMTYPE, 0o777, time, target=entry.link))
        elif isinstance(entry, Folder):
            gzip.write(_header(name, tarfile.DIRTYPE, int(entry.mode, 8), time))
        else:
            gzip.write(_header(name, tarfile.REGTYPE, int(entry.mode, 8), time, size=entry.size))
            _write_content(gzip, folder, name, entry)
            gzip.pad(tarfile.BLOCKSIZE)
    gzip.write(bytes(2 * tarfile.BLOCKSIZE))
    gzip.pad(RECORD_BYTES)
    gzip.close()


def _time() -> int:
    """The one time of all members, in seconds since 1970 (reproducible-builds.org, SOURCE_DATE_EPOCH)."""
    text = os.environ.get("SOURCE_DATE_EPOCH") or "0"
    if not (text.isascii() and text.isdecimal() and int(text) < 8**11):
        raise PackageInconsistent(f"cannot build: SOURCE_DATE_EPOCH is {text!r}, which is no time in seconds")
    return int(text)


def _write_content(gzip: "_Gzip", folder: Path, name: str, entry: File) -> None:
    """Write a file's content. PackageInconsistent where it is no longer what was described."""
    digest = hashlib.sha256()
    size = 0
    for chunk in _chunks(folder / name):
        digest.update(chunk)
        size += len(chunk)
        if size <= entry.size:
            gzip.write(chunk)
    if (size, digest.hexdigest()) != (entry.size, entry.sha256):
        raise _refuse(folder, name, "it changed while it was packed")


def _header(name: str, kind: bytes, mode: int, time: int, size: int = 0, target: str = "") -> bytes:
    """A member's header, with a pax header before it where the name needs one."""
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.size, member.mtime, member.linkname = kind, mode, size, time, target
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


class _Gzip:
    """A gzip stream without name or time, and how many bytes went in."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._engine = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
        self._count = 0

    def write(self, data: bytes) -> None:
        self._count += len(data)
        self._file.write(self._engine.compress(data))

    def pad(self, unit: int) -> None:
        self.write(bytes(-self._count % unit))

    def close(self) -> None:
        self._file.write(self._engine.flush())


@contextmanager
def _replaced(output: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `output` when all went well."""
    new = output.with_name(f".{output.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o644)
            yield file
            file.flush()
            os.fsync(fd)
        os.replace(new, output)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    fsync_folder(output.parent)


def _refuse(folder: Path, name: str, why: str, hint: str = "") -> OtaflowError:
    return PackageInconsistent(f"cannot build {folder}: {name!r}: {why}", hint=hint)
