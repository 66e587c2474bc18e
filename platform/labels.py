"""The label of a system: a small file in the slot itself, so that it travels with every copy, backup and snapshot.

What a slot holds is never looked up elsewhere: a list beside the slots could say "1.1.0" of a slot that a power cut
left at 1.0.0. The generation ties the boot target to the content it promises.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from otaflow.errors import OtaflowError
from otaflow.files import write_atomic

FILE_NAME = ".otaflow.json"


@dataclass(frozen=True)
class Label:
    """`generation` is new whenever the content is; `update_number` counts the device's system updates."""

    name: str
    version: str
    update_number: int
    generation: str


def read_label(system: Path) -> Label:
    """The label of the system whose root folder is `system`. OtaflowError when it has none that can be read."""
    try:
        return Label(**json.loads((system / FILE_NAME).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise OtaflowError(
            f"cannot tell which system is in {system}: its label {FILE_NAME} is missing or damaged ({error})",
            hint="the slot was not made by otaflow, or it is damaged; `otaflow rollback --backup ID` fills it again",
        ) from error


def write_label(system: Path, label: Label) -> None:
    """Give the system in `system` its label, durably."""
    write_atomic(system / FILE_NAME, json.dumps(asdict(label), indent=1).encode() + b"\n")
