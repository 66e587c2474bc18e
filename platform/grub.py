"""The boot target in GRUB's environment, which deployments/grub/grub.cfg reads and counts down.

otaflow_tries is there, one digit, while the target is on trial. GRUB writes that digit in place, in the blocks of the
file that it has loaded; we replace the whole file by rename, so that a power cut leaves the former environment or the
new one (`grub-editenv set` rewrites in place and could leave none). The file is on a small ext4 of its own, as GRUB
cannot write to btrfs.
"""

import re
from collections.abc import Mapping

from otaflow.errors import BootTargetDamaged, OtaflowError
from otaflow.files import write_atomic
from otaflow.platform import grubenv
from otaflow.platform.environment import TARGET, EnvironmentBoot
from otaflow.platform.ext4 import show_to_boot_loaders

TRIES = "otaflow_tries"


class GrubBoot(EnvironmentBoot):
    """The BootTarget protocol (protocols.py) on the environment file `path`; `tries`: 1 to 9."""

    def set_target(self, slot: str, promise: str, *, trial: bool = False) -> None:
        names = self._names(slot, promise)
        try:
            block = self._load()[0]
        except BootTargetDamaged:  # nothing in it can be read, also not what others had there
            block = grubenv.empty_block()
        self._change({TRIES: str(self._tries) if trial else None, **names}, block)

    def tries_left(self) -> int | None:
        tries = self._read().get(TRIES)
        if not tries:
            return None
        return int(tries) if re.fullmatch("[0-9]", tries) else 0  # what GRUB makes of it

    def confirm(self) -> None:
        if self.tries_left() is not None:
            self._change({TRIES: None})

    def give_try_back(self) -> None:
        left = self.tries_left()
        if left is not None and left < self._tries:
            self._change({TRIES: str(left + 1)})

    def _read(self) -> dict[str, str]:
        return self._load()[1]

    @property
    def _where(self) -> str:
        return str(self._path)

    @property
    def _repair(self) -> str:
        return f"grub-editenv {self._path} set {TARGET}=SLOT"

    def _load(self) -> tuple[bytes, dict[str, str]]:
        """The file and its variables. It is never made anew: where it is missing, its file system is not mounted."""
        try:
            block = self._path.read_bytes()
            return block, grubenv.read_block(block)
        except FileNotFoundError as error:
            raise OtaflowError(
                f"cannot read GRUB's environment {self._path}: there is none",
                hint=f"is its file system mounted? On a new device `grub-editenv {self._path} create` makes one",
            ) from error
        except grubenv.BadBlock as error:
            raise BootTargetDamaged(
                f"cannot use GRUB's environment {self._path}: {error}",
                hint=f"it was damaged from outside: `grub-editenv {self._path} create`, and then "
                f"`{self._repair}`, with the slot that runs",
            ) from error

    def _change(self, changes: Mapping[str, str | None], block: bytes | None = None) -> None:
        try:
            changed = grubenv.change_block(block or self._load()[0], changes)
        except grubenv.BadBlock as error:
            raise OtaflowError(
                f"cannot change GRUB's environment {self._path}: {error}",
                hint="variables of others fill it: `grub-editenv FILE list` shows them, `unset` removes one",
            ) from error
        write_atomic(self._path, changed)
        show_to_boot_loaders(self._path.parent)  # else it could start from the former one after a power cut
