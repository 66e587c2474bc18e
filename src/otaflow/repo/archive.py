"""A local repository package (`.nsr`): one plain TAR with the `metadata/` and `targets/` of a repository.

Nothing is extracted: the archive is indexed, and each file is read from where it lies, as from a server, so that
the same code verifies it. Only regular files with plain names are taken; anything else refuses the whole archive.
"""

import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from urllib.parse import unquote

from otaflow.errors import OtaflowError, RepositoryRefused
from otaflow.repo.download import Answer, Missing, Progress, download

MEMBERS = 10_000
HEADER = 4096  # bytes; tarfile would read an extended header of any size into memory,
HEADERS = 32 << 20  # and any number of them
CHUNK = 1 << 20
SCHEME = "archive:"
NAME = re.compile(r"metadata/[^/\x00]+\.json|targets/[^\x00]+")


class Archive:
    """The files of a local repository package. RepositoryRefused when it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise OtaflowError(
                f"cannot read the repository package {path}: {error.strerror}",
                hint="name a file that `otaflow repo export` made",
            ) from error
        try:
            self._places = _index(self._file, path)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def connect(self) -> None:
        """There is nothing to reach: the archive is open."""

    def check_certificate(self) -> None:
        """There is no server, hence no certificate; the metadata's signatures are what counts."""

    def authenticate(self) -> None:
        """Nobody to log in with."""

    def url(self, path: str) -> str:
        return f"{SCHEME}{path}"

    def fetch(self, url: str, max_length: int) -> Iterator[bytes]:
        """The content of a member, in pieces. RepositoryRefused when it is longer than `max_length` bytes."""
        with self.open(url) as answer:
            if int(answer.headers["content-length"]) > max_length:
                raise RepositoryRefused(f"cannot read {url}: it is longer than the {max_length} bytes it may have")
            yield from answer.chunks

    def download(
        self, url: str, into: Path, length: int, hashes: Mapping[str, str], progress: Progress | None = None
    ) -> Path:
        return download(self.open, url, into, length, hashes, progress)

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[Answer]:
        """What a server would answer; `Range` is understood."""
        name = unquote(url.removeprefix(SCHEME))
        if name not in self._places:
            raise Missing(f"cannot read {name}: the repository package {self.path} has no such file")
        place, size = self._places[name]
        found = re.fullmatch(r"bytes=(\d+)-", (headers or {}).get("Range", ""))
        start = int(found[1]) if found else 0
        if found and start >= size:
            yield Answer(416, {}, iter(()))
            return
        said = {"content-length": str(size - start), "content-range": f"bytes {start}-{size - 1}/{size}"}
        yield Answer(206 if found else 200, said, self._read(place + start, size - start))

    def _read(self, place: int, size: int) -> Iterator[bytes]:
        while size:
            try:
                self._file.seek(place)
                chunk = self._file.read(min(CHUNK, size))
            except OSError as error:
                raise self._gone(error.strerror or str(error)) from error
            if not chunk:
                raise self._gone("it ends too early")
            place, size = place + len(chunk), size - len(chunk)
            yield chunk

    def _gone(self, why: str) -> OtaflowError:
        return OtaflowError(f"cannot read the repository package {self.path}: {why}", hint="is the stick still in?")


class _Headers:
    """The archive for tarfile's eyes: seekable, and reads bounded to what headers need."""

    def __init__(self, file: FileIO) -> None:
        self._file, self._left = file, HEADERS
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        self._left -= size
        if not 0 <= size <= HEADER or self._left < 0:
            raise tarfile.ReadError("a header is too long")
        return self._file.read(size)


def _index(file: FileIO, path: Path) -> dict[str, tuple[int, int]]:
    """Name → offset and size in bytes, of every member."""
    end = os.fstat(file.fileno()).st_size
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.TarFile(fileobj=_Headers(file), mode="r", errorlevel=2) as archive:  # type: ignore[arg-type]
            for number, member in enumerate(archive):
                if number >= MEMBERS:
                    raise tarfile.ReadError(f"it has more than {MEMBERS} files")
                if member.type == tarfile.DIRTYPE and member.name in ("metadata", "targets"):
                    continue
                _check(member, places, end)
                places[member.name] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise RepositoryRefused(
            f"cannot use the repository package {path}: {error}", hint="`otaflow repo export` makes such a package"
        ) from error
    if "metadata/timestamp.json" not in places:
        raise RepositoryRefused(f"cannot use the repository package {path}: it has no metadata/timestamp.json")
    return places


def _check(member: tarfile.TarInfo, places: dict[str, tuple[int, int]], end: int) -> None:
    """tarfile.ReadError for a member that no repository package has."""
    name = member.name
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
        raise tarfile.ReadError(f"{name!r} is not a plain file")
    if not NAME.fullmatch(name) or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise tarfile.ReadError(f"{name!r} is not the name of a file of a repository")
    if name in places:
        raise tarfile.ReadError(f"{name!r} is in it twice")
    if member.size < 0 or member.offset_data + member.size > end:
        raise tarfile.ReadError(f"{name!r} is cut short")
