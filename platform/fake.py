"""Fakes of the protocols for quick tests: no program is started, nothing is touched outside the folder given."""

import os
import shutil
from pathlib import Path

from otaflow.errors import OtaflowError
from otaflow.platform.protocols import Slots
from otaflow.platform.slots import TreeSlots

TRIES = 3


class FakeTrees:
    """Trees by shutil: contents, modes and links, for small trees; owners and hard links are not kept."""

    def create(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def clone(self, source: Path, target: Path) -> None:
        if target.exists():
            return
        new = target.with_name(f".{target.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(source, new, symlinks=True)
        os.rename(new, target)

    def freeze(self, source: Path, target: Path, base: Path | None = None) -> None:
        self.clone(source, target)

    def remove(self, path: Path) -> None:
        if path.exists():
            shutil.rmtree(path)

    def sync(self, path: Path) -> None:
        pass


def make_fake_slots(root: Path, names: tuple[str, str] = ("a", "b")) -> Slots:
    """Two slots over FakeTrees, the first one with an empty content."""
    trees = FakeTrees()
    trees.create(root / names[0])
    return TreeSlots(root, names, trees)


class FakeBoot:
    """A boot target in memory; `restart` starts the target at once, or only asks for it when `at_once` is false."""

    def __init__(self, slots: Slots, *, at_once: bool = True) -> None:
        self._slots = slots
        self._running = self._target = slots.names[0]
        self._promise = ""
        self._tries: int | None = None
        self.at_once = at_once
        self.restarts = 0

    def running(self) -> str:
        return self._running

    def target(self) -> str:
        return self._target

    def promise(self) -> str:
        return self._promise

    def set_target(self, slot: str, promise: str, *, trial: bool = False) -> None:
        if slot not in self._slots.names:
            raise OtaflowError(f"cannot start the slot {slot!r}: the device has no such slot")
        self._target, self._promise, self._tries = slot, promise, TRIES if trial else None

    def tries_left(self) -> int | None:
        return self._tries

    def confirm(self) -> None:
        self._tries = None

    def give_try_back(self) -> None:
        if self._tries is not None:
            self._tries = min(self._tries + 1, TRIES)

    def restart(self) -> bool:
        self.restarts += 1
        if self.at_once:
            self.start()
        return self.at_once

    def start(self) -> None:
        """What the machine does after a restart that was asked for."""
        if self._tries == 0:
            self._running = next(name for name in self._slots.names if name != self._target)
            return
        self._running = self._target
        if self._tries is not None:
            self._tries -= 1
