"""The boot target as an index file that is switched atomically (spec/ucm-design.md: directory hierarchy, index file).

The file is JSON: {"format": 1, "boot": "b", "promise": "…", "checksum": "…"}, the checksum being the sha256 of the
other three. Which slot runs is not the index's to say, once it was switched: that is in the run record,
{"slot": "a", "boot_id": "…"}; with another boot id, the machine was started anew, and into the index's slot.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from otaflow.errors import OtaflowError
from otaflow.files import write_atomic
from otaflow.platform.boots import Boots
from otaflow.platform.run import run

RESTART_TIMEOUT = 120.0
FORMAT = 1

Detect = Callable[[Mapping[str, Path]], str | None]


class IndexFile:
    """The BootTarget protocol (protocols.py) on an index file; `restart` is a command, or "switch" (config.Boot)."""

    def __init__(
        self,
        path: Path,
        run_record: Path,
        *,
        slots: Mapping[str, Path],
        boots: Boots,
        restart: Literal["switch"] | Sequence[str] = "switch",
        detect: Detect | None = None,
    ) -> None:
        self._path = path
        self._slots = slots
        self._record = run_record
        self._boots = boots
        self._restart = restart
        self._detect = detect or find_mounted_slot

    def running(self) -> str:
        if self._restart != "switch" and (found := self._detect(self._slots)) is not None:
            return found
        slot = self._read_record()
        if slot is None:
            slot = self.target()
            self._write_record(slot)  # now: after a later set_target the index would not say it any more
        return slot

    def target(self) -> str:
        return self._read()[0]

    def promise(self) -> str:
        return self._read()[1]

    def set_target(self, slot: str, promise: str, *, trial: bool = False) -> None:
        if slot not in self._slots:
            raise OtaflowError(f"cannot start the slot {slot!r}: the device has {' and '.join(self._slots)}")
        if self._path.exists():
            self.running()
        values = {"format": FORMAT, "boot": slot, "promise": promise}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, json.dumps({**values, "checksum": _sum(values)}, indent=1).encode() + b"\n")

    def tries_left(self) -> int | None:
        return None

    def confirm(self) -> None:
        """Nothing to do: no target is on trial."""

    def give_try_back(self) -> None:
        """Nothing to do: no start is counted."""

    def restart(self) -> bool:
        if self._restart == "switch":
            self._write_record(self.target())
            self._boots.note_restart()
            return True
        run(list(self._restart), timeout=RESTART_TIMEOUT)
        return False

    def _read(self) -> tuple[str, str]:
        """The target and its promise. OtaflowError: no index file, or a damaged one."""
        try:
            values = json.loads(self._path.read_bytes())
            checksum = values.pop("checksum")
            slot, promise, version = values["boot"], values["promise"], values["format"]
        except FileNotFoundError as error:
            raise OtaflowError(
                f"cannot read the index file {self._path}: there is none", hint="`otaflow device init` makes one"
            ) from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise self._damaged("it is no index") from error
        if version != FORMAT:
            raise self._damaged(f"its format is {version!r}, not {FORMAT}")
        if checksum != _sum(values):
            raise self._damaged("its checksum is wrong")
        if slot not in self._slots:
            raise self._damaged(f"it names the slot {slot!r}")
        return str(slot), str(promise)

    def _damaged(self, why: str) -> OtaflowError:
        return OtaflowError(
            f"cannot use the index file {self._path}: {why}",
            hint="it was damaged from outside; restore it, or name the slot with `otaflow rollback`",
        )

    def _read_record(self) -> str | None:
        """The slot that this boot is known to run; None when nobody has looked since the machine was started."""
        try:
            values = json.loads(self._record.read_bytes())
            slot, boot_id = values["slot"], values["boot_id"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            # guessing here could let the running slot be overwritten
            raise OtaflowError(
                f"cannot tell which slot runs: the run record {self._record} is damaged",
                hint="remove it after a restart of the machine",
            ) from error
        return str(slot) if boot_id == self._boots.boot_id and slot in self._slots else None

    def _write_record(self, slot: str) -> None:
        self._record.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._record, json.dumps({"slot": slot, "boot_id": self._boots.boot_id}).encode() + b"\n")


def find_mounted_slot(
    slots: Mapping[str, Path], *, root: Path = Path("/"), command_line: Path = Path("/proc/cmdline")
) -> str | None:
    """The slot that is the mounted root file system, else the one that the kernel's command line names, else None."""
    for name, path in slots.items():
        if path.exists() and os.path.samefile(path, root):
            return name
    for word in command_line.read_text().split():
        key, _, value = word.partition("=")
        if key == "otaflow.slot" and value in slots:
            return value
        for flag in value.split(",") if key == "rootflags" else ():
            name = flag.removeprefix("subvol=").rpartition("/")[2]
            if flag.startswith("subvol=") and name in slots:
                return name
    return None


def _sum(values: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
