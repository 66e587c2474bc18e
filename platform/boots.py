"""How often the system was started: retention counts reboots ("two more reboots", spec/update-processes.md, step 5)."""

import json
import logging
from pathlib import Path

from otaflow.files import write_atomic

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Boots:
    """The counter `path`; the kernel's boot id tells a new boot from the one already counted."""

    def __init__(self, path: Path, boot_id: Path = BOOT_ID) -> None:
        self._path = path
        self._boot_id = boot_id

    @property
    def boot_id(self) -> str:
        return self._boot_id.read_text().strip()

    def count(self) -> int:
        """How many starts were counted."""
        return self._read()[0]

    def note_boot(self) -> int:
        """Count the present boot, once; how many there were."""
        count, counted = self._read()
        if counted != self.boot_id:
            count += 1
            self._write(count)
        return count

    def note_restart(self) -> int:
        """Count a restart of the system in which the machine went on running; how many starts there were."""
        count = self.note_boot() + 1
        self._write(count)
        return count

    def _read(self) -> tuple[int, str]:
        try:
            values = json.loads(self._path.read_bytes())
            return int(values["count"]), str(values["boot_id"])
        except FileNotFoundError:
            return 0, ""
        except (ValueError, KeyError, TypeError) as error:
            # a count that is too small keeps backups too long, which is the safe side
            log.warning("cannot read the boot counter %s: %s; counting from 0 again", self._path, error)
            return 0, ""

    def _write(self, count: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, json.dumps({"count": count, "boot_id": self.boot_id}).encode() + b"\n")
