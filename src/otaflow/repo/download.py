"""Bringing one file of known length and hashes to its place, over a connection that may be cut at any byte.

What arrived stays in `NAME.part`, with the server's validator (ETag or date) in `NAME.part.json`; the next try asks
for the rest with Range + If-Range (RFC 9110, sections 13.1.5 and 14). Only a file with the right length and hashes gets
its final name. Nothing here knows how the bytes travel.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from otaflow.errors import InsufficientMemory, Offline, OtaflowError, RepositoryRefused
from otaflow.files import fsync_folder, write_atomic

Progress = Callable[[int], None]
"""Called with the number of bytes that are there."""

CUTS = 20  # resumed within one call as long as each try brings something; the caller waits and retries beyond


class Missing(RepositoryRefused):
    """There is no such file; the client of TUF must know it, to find the newest root (TUF, section 5.3.3)."""


@dataclass(frozen=True)
class Answer:
    """A server's answer: `status` is 200, 206 or 416, `headers` are looked up without regard to case."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


Open = Callable[[str, Mapping[str, str]], AbstractContextManager[Answer]]


def download(
    open_url: Open, url: str, into: Path, length: int, hashes: Mapping[str, str], progress: Progress | None = None
) -> Path:
    """Bring `url` to `into` and return it. `hashes` maps algorithm to hex digest, as in a TUF target.

    Offline: cut, and a further call goes on from there. RepositoryRefused: it is not the file that was signed.
    InsufficientMemory: no room for it.
    """
    if is_file(into, length, hashes):
        return into
    into.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(into, url, length, hashes, progress or (lambda done: None))
    try:
        resumed = _receive(open_url, part)
        good = part.verifies()
        if resumed and not good:
            part.drop()  # what an earlier try left was of another file
            _receive(open_url, part)
            good = part.verifies()
        return part.finish(good)
    except OSError as error:
        raise _no_room(part, error) from error


def is_file(path: Path, length: int, hashes: Mapping[str, str]) -> bool:
    """Is there a regular file with this length and all these hashes?"""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != length or not hashes:
                return False
            found = read_hashes(file, list(hashes))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
    return found == {name: digest.lower() for name, digest in hashes.items()}


def read_hashes(file: BinaryIO, names: list[str]) -> dict[str, str]:
    """The digests of the rest of `file`, in one pass. RepositoryRefused for an algorithm that we do not have."""
    try:
        digests = {name: hashlib.new(name) for name in names}
    except ValueError as error:
        raise RepositoryRefused(f"cannot verify a file: {error}") from error
    while block := file.read(1 << 20):
        for digest in digests.values():
            digest.update(block)
    return {name: digest.hexdigest() for name, digest in digests.items()}


class _Part:
    """The unfinished file `NAME.part` and what is known of it."""

    def __init__(self, into: Path, url: str, length: int, hashes: Mapping[str, str], progress: Progress) -> None:
        self.into, self.url, self.length, self.hashes, self.progress = into, url, length, dict(hashes), progress
        self.path = into.with_name(f"{into.name}.part")
        self.note = into.with_name(f"{into.name}.part.json")
        self.validator = ""
        try:
            note = json.loads(self.note.read_bytes())
            self.validator = str(note["validator"])
            if note["hashes"] != self.hashes or self.size() > length:
                self.drop()
        except FileNotFoundError:
            self.drop()
        except (ValueError, KeyError, TypeError):
            self.drop()

    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def remember(self, headers: Mapping[str, str]) -> None:
        """Keep the validator, durably, before the first byte that it stands for."""
        etag = headers.get("etag", "")
        self.validator = etag if etag.startswith('"') else headers.get("last-modified", "")
        note = {"url": self.url, "validator": self.validator, "hashes": self.hashes}
        write_atomic(self.note, json.dumps(note).encode())

    def open(self, offset: int) -> BinaryIO:
        """The file, cut to `offset` and ready to go on there. A symbolic link in its place is refused."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        os.ftruncate(fd, offset)
        os.lseek(fd, offset, os.SEEK_SET)
        return os.fdopen(fd, "wb", buffering=0)

    def drop(self) -> None:
        self.validator = ""
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)

    def verifies(self) -> bool:
        return is_file(self.path, self.length, self.hashes)

    def finish(self, good: bool) -> Path:
        """Give the file its name, or refuse and remove it."""
        if not good:
            self.drop()
            raise RepositoryRefused(
                f"cannot use {self.url}: it is not the file that was signed (its length or hash differs)",
                hint="the server, or something between, changed it; tell the repository's owner",
            )
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.path, self.into)
        self.note.unlink(missing_ok=True)
        fsync_folder(self.into.parent)
        return self.into


def _receive(open_url: Open, part: _Part) -> bool:
    """Fill `part` to its length, over as many connections as it takes. True: it began with an earlier try's bytes."""
    resumed = part.size() > 0
    _check_room(part)
    for _ in range(CUTS):
        before = part.size()
        part.progress(before)
        if before == part.length and part.path.exists():
            return resumed
        cut: OtaflowError | None = None
        try:
            _receive_once(open_url, part, before)
        except _StartOver:
            continue
        except Offline as error:
            cut = error
        if part.size() == part.length and part.path.exists():
            part.progress(part.length)
            return resumed
        if part.size() <= before:
            raise cut or Offline(f"cannot fetch {part.url}: the server ended it at byte {part.size()}")
    raise Offline(f"cannot fetch {part.url}: the connection was cut {CUTS} times, {part.size()} of {part.length} bytes")


def _receive_once(open_url: Open, part: _Part, offset: int) -> None:
    headers = {}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if part.validator:
            headers["If-Range"] = part.validator
    with open_url(part.url, headers) as answer:
        start = _start_of(answer, part, offset)
        if start == 0:
            part.remember(answer.headers)
        with part.open(start) as file:
            try:
                _write(answer, part, file, start)
            finally:
                os.fsync(file.fileno())
        if answer.status == 200 and "chunked" in answer.headers.get("transfer-encoding", ""):
            _check_whole(part)


def _check_whole(part: _Part) -> None:
    """A chunked answer that ended in good order was all there is: too short is another file, and no cut."""
    if (size := part.size()) < part.length:
        part.drop()
        raise RepositoryRefused(f"cannot fetch {part.url}: the server sent {size} bytes, {part.length} were signed")


def _start_of(answer: Answer, part: _Part, offset: int) -> int:
    """Where in the file this answer begins. RepositoryRefused when it cannot be the file that was asked for."""
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("content-range", ""))
        if offset and found and int(found[1]) == offset and found[3] in (str(part.length), "*"):
            return offset
    if answer.status in (206, 416):
        part.drop()  # what we hold is not the beginning of what the server has: the next try starts at 0
        if not offset:
            raise RepositoryRefused(f"cannot fetch {part.url}: the server answered {answer.status} to a whole request")
        raise _StartOver(f"cannot resume {part.url}: the server has another file now")
    announced = answer.headers.get("content-length")
    if announced is not None and announced != str(part.length):
        kind = answer.headers.get("content-type", "unknown")
        raise RepositoryRefused(
            f"cannot fetch {part.url}: the server offers {announced} bytes of {kind}, {part.length} were signed",
            hint="something between (a proxy, a login page) may answer in the server's place",
        )
    return 0


class _StartOver(Offline):
    """The bytes that we have are of no use; ask for the whole file."""


def _write(answer: Answer, part: _Part, file: BinaryIO, start: int) -> None:
    done = start
    for chunk in answer.chunks:
        if done + len(chunk) > part.length:
            part.drop()
            raise RepositoryRefused(
                f"cannot fetch {part.url}: the server sends more than the {part.length} bytes that were signed"
            )
        view = memoryview(chunk)
        while view:
            view = view[file.write(view) :]
        done += len(chunk)
        part.progress(done)


def _check_room(part: _Part) -> None:
    folder = os.statvfs(part.into.parent)
    free, needed = folder.f_bavail * folder.f_frsize, part.length - part.size()
    if needed > free:
        raise InsufficientMemory(
            f"cannot fetch {part.url}: {part.into.parent} has {free} bytes free, {needed} are needed",
            hint="`otaflow clean-up` removes what is no longer needed",
        )


def _no_room(part: _Part, error: OSError) -> OtaflowError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with suppress(OSError):
            part.drop()
        return InsufficientMemory(f"cannot fetch {part.url}: {error}", hint="make room in the cache and try again")
    return OtaflowError(f"cannot write {part.into}: {error}")
