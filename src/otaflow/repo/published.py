"""Which file a request names, and which part of it it asks for (RFC 9110, sections 13.1.5 and 14)."""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import unquote


@dataclass(frozen=True)
class Part:
    """What is to be answered: `status` is 200, 206 or 416; `start` and `size` in bytes."""

    status: int
    start: int
    size: int
    headers: Mapping[str, str]


class Published:
    """An open file of the repository, with the headers that go with it."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file = file
        status = os.fstat(file.fileno())
        self.size = status.st_size
        self.etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        self.changed = formatdate(status.st_mtime, usegmt=True)
        self.headers = {
            "Content-Type": "application/json" if name.endswith(".json") else "application/octet-stream",
            "ETag": self.etag,
            "Last-Modified": self.changed,
            "Accept-Ranges": "bytes",
            # all other names are never used for other content
            "Cache-Control": "no-cache" if name == "timestamp.json" else "max-age=86400",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def find(root: Path, path: str) -> Published | None:
    """The published regular file that the request's `path` names below `root`; links and dot files are none."""
    parts = unquote(path.partition("?")[0]).lstrip("/").split("/")
    if any(part.startswith(".") or not part or "\0" in part for part in parts):
        return None
    if not (parts[0] == "targets" or (parts[0] == "metadata" and len(parts) == 2 and parts[1].endswith(".json"))):
        return None
    file = root.joinpath(*parts)
    try:
        if file.resolve(strict=True) != file or not stat.S_ISREG(file.stat().st_mode):
            return None
        return Published(file.open("rb"), parts[-1])
    except (OSError, RuntimeError, ValueError):
        return None


def pick(wanted: str, validator: str | None, file: Published) -> Part:
    """The part that the headers Range (`wanted`) and If-Range (`validator`) ask for.

    Several ranges, one that is not understood, or one of another state of the file get the whole file.
    """
    whole = Part(200, 0, file.size, {})
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", wanted.strip())
    if found is None or found[0] == "bytes=-" or validator not in (None, file.etag, file.changed):
        return whole
    if found[1]:
        start, end = int(found[1]), min(int(found[2] or file.size), file.size - 1)
        if found[2] and int(found[2]) < start:
            return whole
    else:
        start, end = max(file.size - int(found[2]), 0), file.size - 1
    if start > end:
        return Part(416, 0, 0, {"Content-Range": f"bytes */{file.size}"})
    return Part(206, start, end - start + 1, {"Content-Range": f"bytes {start}-{end}/{file.size}"})
