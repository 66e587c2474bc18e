"""Messages to the device's applications: an append-only file, bounded, in which each reader has its place.

* A message is durable when `post` returns, and is seen by nobody before. Ids grow, and are never used twice.
* A reader acknowledges up to an id. What all readers have acknowledged goes first, then the oldest.
* A torn last line is dropped; a file damaged elsewhere is kept as `NAME.damaged`, and its sound lines go on.
"""

import logging
import re
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from otaflow.errors import JournalCorrupt, OtaflowError
from otaflow.files import write_atomic
from otaflow.policy.moments import as_text
from otaflow.policy.store import locked
from otaflow.records import Record, RecordFile, decode, encode

log = logging.getLogger(__name__)

READERS = 64
"""So many readers have a place; the one that acknowledged nothing for longest loses it."""
LONGEST_TEXT = 4000
"""Characters of a message's text, and bytes of its facts, at most."""
LOOK_SECONDS = 1.0
"""How often one who waits looks for what other processes have posted."""
_READER = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Kind(StrEnum):
    """What a message tells."""

    AVAILABLE = "available"
    INSTALLING = "installing"
    CLOSE_REQUESTED = "close-requested"
    DONE = "done"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True)
class Message:
    """One message: `text` for a person, `facts` (plain data) for the application, `time` in RFC 3339, UTC."""

    id: int
    time: str
    kind: str
    package: str
    version: str
    text: str
    facts: dict[str, Any] = field(default_factory=dict)

    def record(self) -> Record:
        """The message as plain data."""
        return asdict(self)


@dataclass
class _Content:
    """What the file says: the messages by id, up to which each reader has acknowledged, the next id, the lines."""

    messages: dict[int, Message] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    next: int = 1
    lines: int = 0

    def apply(self, record: Record) -> None:
        self.lines += 1
        if "id" in record:
            fields = {name: record[name] for name in ("id", "time", "kind", "package", "version", "text", "facts")}
            self.messages[record["id"]] = Message(**fields)
            self.next = max(self.next, record["id"] + 1)
        elif "reader" in record:
            # taken out and put in again: the order is that of the last acknowledgements
            self.places[record["reader"]] = max(self.places.pop(record["reader"], 0), record["upto"])
            self.next = max(self.next, record["upto"] + 1)
        elif "next" in record:
            self.next = max(self.next, record["next"])

    def records(self) -> list[Record]:
        """The least that says the same."""
        places = [{"reader": reader, "upto": upto} for reader, upto in self.places.items()]
        return [{"next": self.next}, *places, *(message.record() for message in self.messages.values())]

    def shrink(self, size: int) -> None:
        """Drop messages until there are at most `size`, and readers beyond their number.

        Of what everybody has acknowledged a quarter more goes, so that the file is not written anew at each post.
        """
        for reader in list(self.places)[:-READERS]:
            del self.places[reader]
        acknowledged = min(self.places.values(), default=0)
        for id in sorted(self.messages):
            if len(self.messages) <= (size * 3 // 4 if id <= acknowledged else size):
                break
            del self.messages[id]


class Inbox:
    """The file `path` with at most `size` messages."""

    def __init__(self, path: Path, size: int = 200) -> None:
        self._file = RecordFile(path)
        self._size = size
        self._changed = threading.Condition()

    def post(self, kind: Kind, package: str, version: str, text: str, *, now: datetime, **facts: Any) -> Message:
        """Add a message; it is on the disk when this returns. `facts` is plain data."""
        if len(encode(facts)) > LONGEST_TEXT:
            log.warning("leaving out the facts of a message that are too long: %s", ", ".join(facts))
            facts = {}
        with locked(self._file.path):
            content = self._load()
            message = Message(content.next, as_text(now), kind, package, version, text[:LONGEST_TEXT], facts)
            self._write(content, message.record())
        with self._changed:
            self._changed.notify_all()
        return message

    def read(self, after: int = 0, reader: str = "") -> list[Message]:
        """The messages later than `after`, oldest first; those that `reader` has not acknowledged, if one is named."""
        with locked(self._file.path):
            content = self._load()
        since = max(after, content.places.get(reader, 0))
        return [message for id, message in sorted(content.messages.items()) if id > since]

    def wait(self, timeout: float, after: int = 0, reader: str = "") -> list[Message]:
        """As `read`, but wait up to `timeout` seconds until there is one."""
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                seen = self.mark()
                if found := self.read(after, reader):
                    return found
                while self.mark() == seen:
                    left = end - time.monotonic()
                    if left <= 0:
                        return []
                    self._changed.wait(min(left, LOOK_SECONDS))

    def acknowledge(self, reader: str, id: int) -> None:
        """Record that `reader` has taken all messages up to `id`; acknowledged once, for ever.

        Raises OtaflowError for a name that is none, and for a message that was never posted.
        """
        if not _READER.fullmatch(reader):
            raise OtaflowError(
                f"cannot acknowledge as {reader[:80]!r}: that is no reader's name",
                hint="a reader's name is 1 to 64 letters, digits, `.`, `_` or `-`",
            )
        with locked(self._file.path):
            content = self._load()
            if not 0 < id < content.next:
                raise OtaflowError(
                    f"cannot acknowledge message {id}: the newest is {content.next - 1}",
                    hint="acknowledge the `id` of a message that was read",
                )
            if content.places.get(reader, 0) < id:
                self._write(content, {"reader": reader, "upto": id})

    def has_acknowledged(self, reader: str, id: int) -> bool:
        """Whether `reader` has taken the message `id`."""
        with locked(self._file.path):
            return self._load().places.get(reader, 0) >= id

    # --- inside: all of it under the lock -------------------------------------------------------------------------

    def _load(self) -> _Content:
        content = _Content()
        for record in self._load_records():
            try:
                content.apply(record)
            except (KeyError, TypeError, ValueError) as error:
                log.warning("leaving out a line of %s that is not understood: %r", self._file.path, error)
        return content

    def _load_records(self) -> list[Record]:
        try:
            return self._file.read()
        except JournalCorrupt:
            path = self._file.path
            damaged = path.read_bytes()
            aside = path.with_name(f"{path.name}.damaged")
            log.warning("%s is damaged: its sound lines go on, and it is kept as %s", path, aside.name)
            write_atomic(aside, damaged)
            sound = [record for line in damaged.splitlines() if (record := decode(line)) is not None]
            self._file.replace(sound)
            return sound

    def _write(self, content: _Content, record: Record) -> None:
        """Add `record`; where that makes the file too long, write it anew."""
        content.apply(record)
        if len(content.messages) <= self._size and len(content.places) <= READERS and content.lines <= 4 * self._size:
            self._file.append(record)
            return
        content.shrink(self._size)
        self._file.replace(content.records())

    def mark(self) -> tuple[int, int]:
        """What changes whenever the file does."""
        try:
            state = self._file.path.stat()
        except FileNotFoundError:
            return (0, 0)
        return (state.st_ino, state.st_size)
