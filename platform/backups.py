"""The store of backups: one folder an entry, named by update number and time, complete when its `entry.json` is there.

backups/0003-20260501T120000Z/entry.json   what it is (an Entry)
                              sys/         picture of the slot that ran      incremental, kept for ever
                              etc-sys/     picture of the configuration      incremental, kept for ever
                              full.tar     the same two, whole               kept until retention ends
                              main/        snapshot of the main partition    kept until retention ends
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from otaflow.errors import OtaflowError
from otaflow.files import write_atomic
from otaflow.platform.labels import read_label


@dataclass(frozen=True)
class Entry:
    """One backup: `version` and `update_number` are of the system it holds, `boots` the boot counter at its time."""

    id: str
    name: str
    version: str
    update_number: int
    time: str
    boots: int
    generation: str = ""


class Backups:
    """The folder of all entries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __iter__(self) -> Iterator[Entry]:
        """The complete entries, oldest first."""
        for path in sorted(self.folder.glob("*/entry.json")):
            yield Entry(**json.loads(path.read_text()))

    def new_id(self, update_number: int, time: str) -> str:
        """The name of a new entry; `time` is RFC 3339. Two in one second are told apart by a suffix."""
        stamp = datetime.fromisoformat(time).strftime("%Y%m%dT%H%M%SZ")
        name = base = f"{update_number:04d}-{stamp}"
        count = 1
        while (self.folder / name).exists():
            count += 1
            name = f"{base}-{count}"
        return name

    def path(self, entry_id: str, part: str = "") -> Path:
        """Where the entry, or one part of it, is."""
        return self.folder / entry_id / part if part else self.folder / entry_id

    def get(self, entry_id: str) -> Entry:
        """The complete entry called `entry_id`. OtaflowError when there is none."""
        for entry in self:
            if entry.id == entry_id:
                return entry
        known = ", ".join(entry.id for entry in self) or "none"
        raise OtaflowError(
            f"cannot use the backup {entry_id!r}: there are {known}", hint="`otaflow backups` lists them"
        )

    def latest(self) -> Entry | None:
        """The newest complete entry."""
        return max(self, key=lambda entry: entry.time, default=None)

    def find_picture(self, system: Path) -> Path | None:
        """The picture that is most like the system in the folder `system`: the one of its generation, or the newest."""
        entries = sorted(self, key=lambda entry: entry.time)
        try:
            generation = read_label(system).generation
        except OtaflowError:
            generation = ""
        found = [entry for entry in entries if entry.generation == generation] or entries
        return self.path(found[-1].id, "sys") if found else None

    def complete(self, entry: Entry) -> None:
        """Declare the entry complete, durably."""
        write_atomic(self.path(entry.id, "entry.json"), json.dumps(asdict(entry), indent=1).encode() + b"\n")
