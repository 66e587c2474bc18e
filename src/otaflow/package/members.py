"""The members of a TAR archive, read as a stream: POSIX ustar headers and pax `path` and `linkpath`, nothing else.

`tarfile` parses the single header block; its own reading of a whole archive is not used, since it takes pax headers of
any size into memory, lets them override sizes, joins sparse files and skips what it does not know.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from otaflow.errors import PackageInconsistent

BLOCK = tarfile.BLOCKSIZE
MAX_PAX_BYTES = 8 * 2**10
MAX_PADDING_BYTES = 2**20

_MAGIC = tarfile.POSIX_MAGIC
_ZEROS = bytes(BLOCK)
_KINDS: dict[bytes, Literal["file", "folder", "link"]] = {
    tarfile.REGTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
}
_REFUSED = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGNAME: "a GNU long name (write the archive in pax format)",
    tarfile.GNUTYPE_LONGLINK: "a GNU long link (write the archive in pax format)",
    tarfile.XGLTYPE: "a global pax header",
}
_PAX_RECORD = re.compile(rb"(\d{1,5}) ([^=\n]+)=")
_PAX_TIMES = {"mtime", "atime", "ctime"}


@dataclass(frozen=True, slots=True)
class Member:
    """A member's header: `size` in bytes (0 but for files), `mode` with all its bits, `target` of a link."""

    name: str
    kind: Literal["file", "folder", "link"]
    size: int
    mode: int
    target: str


class Stream:
    """Bytes that come in pieces, to be read exactly; PackageInconsistent when they end too early."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")

    def chunks(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes, without a copy, each chunk valid until the next is asked for."""
        while size:
            if not self._piece:
                self._piece = self._next()
            chunk = self._piece[:size]
            self._piece = self._piece[len(chunk) :]
            size -= len(chunk)
            yield chunk

    def read(self, size: int) -> bytes:
        """The next `size` bytes, as one."""
        if size <= len(self._piece):
            chunk = self._piece[:size]
            self._piece = self._piece[size:]
            return bytes(chunk)
        return b"".join(self.chunks(size))

    def skip_padding(self, size: int) -> None:
        """Go to the next block after a content of `size` bytes."""
        if rest := -size % BLOCK:
            self.read(rest)

    def check_end(self) -> None:
        """After the first block of zeros: another one, then nothing but zeros up to the end of a record."""
        if self.read(BLOCK) != _ZEROS:
            raise PackageInconsistent("cannot read the package: its end is not marked by two blocks of zeros")
        padding = 0
        while True:
            padding += len(self._piece)
            if bytes(self._piece).strip(b"\0") or padding > MAX_PADDING_BYTES:
                raise PackageInconsistent("cannot read the package: something follows the end of its archive")
            piece = next(self._pieces, None)
            if piece is None:
                return
            self._piece = memoryview(piece)

    def _next(self) -> memoryview:
        piece = next(self._pieces, None)
        if piece is None:
            raise PackageInconsistent("cannot read the package: its archive ends in the middle of a member")
        return memoryview(piece)


def read_member(stream: Stream) -> Member | None:
    """The next member's header; its content is read next. None at the end of the archive.

    PackageInconsistent for every kind of member that a package does not have.
    """
    header = _read_header(stream)
    if header is None:
        return None
    names: dict[str, str] = {}
    if header.type == tarfile.XHDTYPE:
        names = _read_pax(stream, header.size)
        header = _read_header(stream)
        if header is None:
            raise PackageInconsistent("cannot read the package: its last pax header has no member")
    name = names.get("path", header.name)
    kind = _KINDS.get(header.type)
    if kind is None:
        what = _REFUSED.get(header.type, f"of the unknown type {header.type!r}")
        raise PackageInconsistent(f"cannot accept the package: its member {name[:200]!r} is {what}")
    if header.size < 0 or (header.size and kind != "file"):
        raise PackageInconsistent(f"cannot accept the package: its member {name[:200]!r} has an impossible size")
    if kind == "folder":
        name = name.removesuffix("/")
    target = names.get("linkpath", header.linkname) if kind == "link" else ""
    return Member(name, kind, header.size, header.mode, target)


def _read_header(stream: Stream) -> tarfile.TarInfo | None:
    """One header block; None where it is all zeros."""
    block = stream.read(BLOCK)
    if block == _ZEROS:
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise PackageInconsistent(f"cannot read the package: a header of its archive is damaged ({error})") from error
    if block[257:265] != _MAGIC and header.type not in _REFUSED:
        raise PackageInconsistent(
            f"cannot accept the package: its member {header.name[:200]!r} is not in POSIX format",
            hint="build it with `otaflow package build`",
        )
    return header


def _read_pax(stream: Stream, size: int) -> dict[str, str]:
    """The records of a pax header that we take: `path` and `linkpath`. Times are passed over, all else is refused."""
    if not 0 <= size <= MAX_PAX_BYTES:
        raise PackageInconsistent(f"cannot accept the package: a pax header of {size} bytes is too big")
    text = stream.read(size)
    stream.skip_padding(size)
    names: dict[str, str] = {}
    at = 0
    while at < size:
        record = _PAX_RECORD.match(text, at)
        end = at + int(record[1]) if record else 0
        if record is None or not record.end() < end <= size or text[end - 1 : end] != b"\n":
            raise PackageInconsistent("cannot read the package: a pax header is damaged")
        key = record[2].decode("ascii", "replace")
        if key in names or key not in ("path", "linkpath", *_PAX_TIMES):
            raise PackageInconsistent(f"cannot accept the package: its pax header sets {key[:64]!r}")
        try:
            names[key] = text[record.end() : end - 1].decode()
        except UnicodeDecodeError as error:
            raise PackageInconsistent("cannot accept the package: a name in a pax header is not UTF-8") from error
        at = end
    return names
