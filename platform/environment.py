"""The boot target in a boot loader's environment: what GRUB's and U-Boot's have in common.

Ours are otaflow_target, otaflow_fallback and otaflow_promise; how a trial is counted is the boot loader's own way.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from otaflow.errors import BootTargetDamaged
from otaflow.platform.running import (
    Detect,
    check_target,
    detect_slot,
    find_mounted_slot,
    other_slot,
    restart_machine,
)

TARGET, FALLBACK, PROMISE = "otaflow_target", "otaflow_fallback", "otaflow_promise"


class EnvironmentBoot(ABC):
    """Half of the BootTarget protocol (protocols.py); `path` leads to the environment, `tries` a trial has at most."""

    def __init__(
        self,
        path: Path,
        *,
        slots: Mapping[str, Path],
        restart: Sequence[str],
        tries: int = 3,
        detect: Detect = find_mounted_slot,
    ) -> None:
        self._path = path
        self._slots = slots
        self._restart = restart
        self._tries = tries
        self._detect = detect

    def running(self) -> str:
        return detect_slot(self._slots, self._detect)

    def target(self) -> str:
        target = self._read().get(TARGET, "")
        if target not in self._slots:
            raise BootTargetDamaged(
                f"cannot tell which slot starts next: {TARGET} in {self._where} is {target!r}",
                hint=f"`{self._repair}`, with the slot that runs",
            )
        return target

    def promise(self) -> str:
        return self._read().get(PROMISE, "")

    def restart(self) -> bool:
        return restart_machine(self._restart)

    def _names(self, slot: str, promise: str) -> dict[str, str]:
        """The variables of ours for a target. OtaflowError: there is no such slot, or none can read the promise."""
        check_target(self._slots, slot, promise)
        return {TARGET: slot, FALLBACK: other_slot(self._slots, slot), PROMISE: promise}

    @abstractmethod
    def _read(self) -> Mapping[str, str]:
        """All variables. OtaflowError where there are none; BootTargetDamaged where they cannot be read."""

    @property
    @abstractmethod
    def _where(self) -> str:
        """The environment in words."""

    @property
    @abstractmethod
    def _repair(self) -> str:
        """The command that sets the target, with SLOT for its name."""
