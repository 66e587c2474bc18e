"""How often the system was started, and how each start ended.

Retention counts reboots ("two more reboots", spec/update-processes.md, step 5). How a boot ended is told at the next
one, by what is there then, in this order:

* our own note of a going-down (`note_going_down`): an orderly one, or the deadline of a trial (otaflow-trial.service);
* the watchdog: it reset the machine, so the system hung (bit CARDRESET of its `bootstatus`);
* the kernel's crash dump in pstore that was not there before;
* nothing: the power was cut. A kernel that crashes and leaves no trace looks the same, so power cuts are bounded, too.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from otaflow.records import write_in_need

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SYS = Path("/sys")
CARDRESET = 0x20
"""The watchdog reset the machine (WDIOF_CARDRESET of linux/watchdog.h)."""
KEPT = 64
"""So many endings are remembered."""


class Ending(StrEnum):
    """How a boot ended."""

    ORDERLY = "an orderly restart"
    DEADLINE = "the trial's deadline"
    HANG = "the watchdog"
    CRASH = "a crash of the kernel"
    POWER_CUT = "a power cut"

    @property
    def failed(self) -> bool:
        """Whether the system that ran is to blame."""
        return self in (Ending.DEADLINE, Ending.HANG, Ending.CRASH)


@dataclass
class Counted:
    """What the counter's file holds. `endings`: of each boot's number; `dumps`: the crash dumps that were seen."""

    count: int = 0
    boot_id: str = ""
    endings: dict[str, str] = field(default_factory=dict)
    dumps: list[str] = field(default_factory=list)


class Boots:
    """The counter `path`; the kernel's boot id tells a new boot from the one already counted.

    The note of a going-down lies beside it, as `going-down`: `BOOT_ID REASON`.
    """

    def __init__(self, path: Path, boot_id: Path = BOOT_ID, sys: Path = SYS) -> None:
        self._path = path
        self._boot_id = boot_id
        self._sys = sys
        self._note = path.with_name("going-down")

    @property
    def boot_id(self) -> str:
        return self._boot_id.read_text().strip()

    def count(self) -> int:
        """How many starts there were, with the present one, whether it could be counted yet or not."""
        counted = self._read()
        return counted.count + (counted.boot_id != self.boot_id)

    def note_boot(self) -> int:
        """Count the present boot, once, and note how the one before it ended; how many there were."""
        counted = self._read()
        if counted.boot_id != self.boot_id:
            dumps = self._find_dumps()
            if counted.boot_id:
                counted.endings[str(counted.count)] = self._find_ending(counted, dumps)
            counted.dumps = dumps
            self._count(counted)
        return counted.count

    def note_restart(self) -> int:
        """Count a restart of the system in which the machine went on running; how many starts there were."""
        self.note_boot()
        counted = self._read()
        counted.endings[str(counted.count)] = Ending.ORDERLY
        self._count(counted)
        return counted.count

    def note_going_down(self, ending: Ending = Ending.ORDERLY) -> None:
        """The machine is going down, and not by a power cut; durable."""
        self._note.parent.mkdir(parents=True, exist_ok=True)
        write_in_need(self._note, f"{self.boot_id} {ending.name}\n".encode())

    def endings(self, since: int) -> list[Ending]:
        """How the boots from number `since` on ended, all but the present one; what was not noted is left out."""
        counted = self._read()
        noted = (counted.endings.get(str(number)) for number in range(since, counted.count))
        return [Ending(ending) for ending in noted if ending in list(Ending)]

    def _find_ending(self, counted: Counted, dumps: list[str]) -> Ending:
        try:
            boot_id, _, reason = self._note.read_text().strip().partition(" ")
            if boot_id == counted.boot_id and reason in Ending.__members__:
                return Ending[reason]
        except (OSError, ValueError):
            pass
        if self._was_reset():
            return Ending.HANG
        return Ending.CRASH if set(dumps) - set(counted.dumps) else Ending.POWER_CUT

    def _was_reset(self) -> bool:
        for path in self._sys.glob("class/watchdog/watchdog*/bootstatus"):
            try:
                if int(path.read_text(), 0) & CARDRESET:
                    return True
            except (OSError, ValueError) as error:
                log.warning("cannot read %s: %s", path, error)
        return False

    def _find_dumps(self) -> list[str]:
        """The kernel's crash dumps, each by its name and time: some stores have one name for all."""
        try:
            return sorted(f"{path.name} {path.stat().st_mtime_ns}" for path in self._sys.glob("fs/pstore/dmesg-*"))
        except OSError as error:
            log.warning("cannot look for crash dumps: %s", error)
            return []

    def _read(self) -> Counted:
        try:
            values = json.loads(self._path.read_bytes())
            endings = {str(key): str(value) for key, value in values.get("endings", {}).items()}
            dumps = [str(one) for one in values.get("dumps", [])]
            return Counted(int(values["count"]), str(values["boot_id"]), endings, dumps)
        except FileNotFoundError:
            return Counted()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # a count that is too small keeps backups too long, which is the safe side
            log.warning("cannot read the boot counter %s: %s; counting from 0 again", self._path, error)
            return Counted()

    def _count(self, counted: Counted) -> None:
        counted.count += 1
        counted.boot_id = self.boot_id
        for number in list(counted.endings)[:-KEPT]:
            del counted.endings[number]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_in_need(self._path, json.dumps(asdict(counted)).encode() + b"\n")
