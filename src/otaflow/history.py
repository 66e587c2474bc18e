"""The history: what was done to this device and how it ended, for ever.

One record for each action's end: `time` (RFC 3339), `name`, `version`, `action`, `resolution`, and `error`, `why`,
`from_version`, `update_number`, `backup`, `session`. The names are the UCM interface's (GetHistory).
"""

from pathlib import Path
from typing import Any

from otaflow.journal import now
from otaflow.records import Record, RecordFile

ACTIVATED = "kActivated"
ROLLED_BACK = "kActivatedAndRolledBack"
VERIFICATION_FAILED = "kVerificationFailed"
FAILED = "kFailed"


class History:
    """The history file, kept in the device's non-volatile memory."""

    def __init__(self, path: Path) -> None:
        self.file = RecordFile(path)

    def read(self) -> list[Record]:
        """All records, oldest first. Raises JournalCorrupt."""
        return self.file.read()

    def add(self, *, key: str = "", **fields: Any) -> None:
        """Record an end, once: the same `key` (session and action) again is a repetition after a power cut."""
        if key and any(record.get("key") == key for record in self.file.read()):
            return
        record = {name: value for name, value in fields.items() if value not in ("", None)}
        self.file.append({"time": now(), "key": key} | record)

    def last(self) -> Record | None:
        """The newest record."""
        records = self.read()
        return records[-1] if records else None
