"""One small durable file of the policy: a dict of dicts, replaced as a whole, guarded by a checksum.

A power cut leaves the old content or the new one. A damaged file counts as empty (what it remembered is asked for or
learnt again) and is kept as `NAME.damaged`, for whoever wants to know. Several processes may change the file.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from otaflow.files import fsync_folder, write_atomic
from otaflow.records import Record, decode, encode

log = logging.getLogger(__name__)


class Store:
    """The file `path`; its folder is made when it is first written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Record:
        """The content; empty where there is no file, or a damaged one."""
        try:
            return _parse(self.path)
        except FileNotFoundError:
            return {}
        except ValueError:
            with locked(self.path):
                return self._read_or_put_aside()

    @contextmanager
    def changing(self) -> Iterator[Record]:
        """The content to be changed in place: on the disk when the block ends, unchanged when it raises.

        Nobody else changes the file meanwhile, in this process or another.
        """
        with locked(self.path):
            content = self._read_or_put_aside()
            before = encode(content)
            yield content
            after = encode(content)
            if after != before:
                write_atomic(self.path, after)

    def _read_or_put_aside(self) -> Record:
        """The content, looked at under the lock: another process may have repaired the file meanwhile."""
        try:
            return _parse(self.path)
        except FileNotFoundError:
            return {}
        except ValueError:
            put_aside(self.path)
            return {}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that goes with `path`: a file of its own, since `path` itself is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def put_aside(path: Path) -> None:
    """Rename a damaged file to `NAME.damaged`; an earlier one of that name goes."""
    aside = path.with_name(f"{path.name}.damaged")
    log.warning("%s is damaged: it counts as empty, and is kept as %s", path, aside.name)
    os.replace(path, aside)
    fsync_folder(path.parent)


def _parse(path: Path) -> Record:
    """The one record of the file. Raises FileNotFoundError, ValueError."""
    content = path.read_bytes()
    record = decode(content[:-1]) if content.endswith(b"\n") else None
    if record is None or not all(isinstance(value, dict) for value in record.values()):
        raise ValueError(path)
    return record
