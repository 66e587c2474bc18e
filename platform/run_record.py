"""Which slot runs, where only the index file says what is started: once switched, it does not say it any more.

The record is {"slot": "a", "boot_id": "…"}; with another boot id, the machine was started anew.
"""

import json
from collections.abc import Collection
from pathlib import Path

from otaflow.errors import OtaflowError
from otaflow.platform.boots import Boots
from otaflow.records import write_in_need


class RunRecord:
    """The record in the file `path`."""

    def __init__(self, path: Path, slots: Collection[str], boots: Boots) -> None:
        self._path = path
        self._slots = slots
        self._boots = boots

    def read(self) -> str | None:
        """The slot that this boot is known to run; None when nobody has looked since the machine was started."""
        try:
            values = json.loads(self._path.read_bytes())
            slot, boot_id = values["slot"], values["boot_id"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            # guessing here could let the running slot be overwritten
            raise OtaflowError(
                f"cannot tell which slot runs: the run record {self._path} is damaged",
                hint="remove it after a restart of the machine",
            ) from error
        return str(slot) if boot_id == self._boots.boot_id and slot in self._slots else None

    def write(self, slot: str) -> None:
        """Note that this boot runs `slot`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_in_need(self._path, json.dumps({"slot": slot, "boot_id": self._boots.boot_id}).encode() + b"\n")
