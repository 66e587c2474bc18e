"""The boot target as an index file that is switched atomically (spec/ucm-design.md: directory hierarchy, index file).

Who starts slots by it: nobody, where `restart` is "switch" and the applications follow the index; or the switch of an
initial RAM disk (deployments/initrd), which counts the starts of a slot on trial and falls back. index.py has the file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from otaflow.platform.boots import Boots
from otaflow.platform.index import Index, forget_count, read_count, read_index, write_count, write_index
from otaflow.platform.run_record import RunRecord
from otaflow.platform.running import Detect, check_target, find_mounted_slot, other_slot, restart_machine


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
        tries: int = 3,
        detect: Detect = find_mounted_slot,
    ) -> None:
        self._path = path
        self._slots = slots
        self._record = RunRecord(run_record, slots, boots)
        self._boots = boots
        self._restart = restart
        self._tries = tries
        self._detect = detect

    def running(self) -> str:
        if self._restart != "switch" and (found := self._detect(self._slots)) is not None:
            return found
        slot = self._record.read()
        if slot is None:
            slot = self._started()
            self._record.write(slot)  # now: after a later set_target the index would not say it any more
        return slot

    def target(self) -> str:
        return self._read().slot

    def promise(self) -> str:
        return self._read().promise

    def set_target(self, slot: str, promise: str, *, trial: bool = False) -> None:
        check_target(self._slots, slot, promise)
        if self._path.exists():
            self.running()
        forget_count(self._path)  # before: a former trial's starts of the same content are not this one's
        if trial and self._restart != "switch":
            write_index(self._path, Index(slot, promise, self._tries, other_slot(self._slots, slot)))
        else:
            write_index(self._path, Index(slot, promise))

    def tries_left(self) -> int | None:
        index = self._read()
        return None if index.tries is None else max(0, index.tries - read_count(self._path, index.promise))

    def confirm(self) -> None:
        index = self._read()
        if index.tries is not None:
            write_index(self._path, Index(index.slot, index.promise))
        forget_count(self._path)  # also where a power cut came before it

    def give_try_back(self) -> None:
        index = self._read()
        if index.tries is not None and (count := read_count(self._path, index.promise)):
            write_count(self._path, index.promise, min(count, index.tries) - 1)

    def restart(self) -> bool:
        if self._restart == "switch":
            self._record.write(self.target())
            self._boots.note_restart()
            return True
        return restart_machine(self._restart)

    def _started(self) -> str:
        """The slot that was started, going by the index and what the switch has counted."""
        index = self._read()
        if index.tries is None or index.fallback is None or read_count(self._path, index.promise) <= index.tries:
            return index.slot
        return index.fallback

    def _read(self) -> Index:
        return read_index(self._path, self._slots)
