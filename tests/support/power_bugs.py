"""Bugs that are planted in a recorded run: the bench is trusted because it finds every one.

Each function changes the loaded otaflow, in the process that tells the story; nobody else sees it.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otaflow import files
from otaflow.platform import index
from otaflow.platform.device import device
from otaflow.platform.postgresql import PostgresDatabase
from otaflow.tasks.step import STEPS


@dataclass(frozen=True)
class Bug:
    """A planted bug, and the story that it is planted in."""

    name: str
    story: str
    plant: Callable[[], None] | None = None
    kind: str = "btrfs"
    options: str = ""
    """Options of the mount, instead of a bug in the code."""
    since: str = ""
    """The fault point before which it cannot be seen: no cut is spent there."""


def _replace(name: str, new: Any) -> None:
    """Put `new` in the place of the function `name`, wherever it was imported."""
    for title, module in list(sys.modules.items()):
        if title.startswith("otaflow") and name in vars(module):
            setattr(module, name, new)


def leave_out_the_sync() -> None:
    """The new system is not on the disk when the boot target names it."""
    _replace("sync_file_system", lambda path: None)


def fill_the_journal_only() -> None:
    """Each file of the new system is flushed, as many a tool does it: its name is in ext4's journal then."""

    def sync(path: Path) -> None:
        for folder, _, names in os.walk(path):
            for place in [folder, *(f"{folder}/{name}" for name in names if not os.path.islink(f"{folder}/{name}"))]:
                fd = os.open(place, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)

    _replace("sync_file_system", sync)
    _replace("show_to_boot_loaders", lambda folder: None)


def flip_before_the_sync() -> None:
    """The boot target names the new system, and then that is synced."""
    flip = STEPS["flip_slot"]
    do, sync = flip.do, files.sync_file_system

    def wrong(*arguments: Any, **named: Any) -> None:
        do(*arguments, **named)
        sync(device().root)

    _replace("sync_file_system", lambda path: None)
    flip.do = wrong


def rewrite_in_place() -> None:
    """The index file is emptied and written anew, as many a tool does it; another program syncs meanwhile."""

    def write_in_place(path: Path, content: bytes, mode: int = 0o644) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        os.write(fd, content[:40])
        files.sync_file_system(path.parent)
        os.write(fd, content[40:])
        os.fsync(fd)
        os.close(fd)

    index.write_atomic = write_in_place  # type: ignore[attr-defined]


def skip_an_undo() -> None:
    """What the update program changed is said to be taken back, and is not."""
    STEPS["run_update_program"].take_back = lambda **memory: None


def forget_the_intent() -> None:
    """What a step is about to do is written down, but not flushed."""
    from otaflow.journal import Journal

    append = Journal._append
    Journal._append = lambda self, record, *, durable=True: append(  # type: ignore[method-assign]
        self, record, durable=durable and record["kind"] != "intent"
    )


def believe_postgresql() -> None:
    """A server that answers before a commit is on the disk is not asked for that."""
    PostgresDatabase.sync = lambda self: None  # type: ignore[method-assign]


def answer_too_early() -> None:
    """A new state is answered before it is on the disk."""
    from otaflow.journal import Journal

    append = Journal._append
    Journal._append = lambda self, record, *, durable=True: append(  # type: ignore[method-assign]
        self, record, durable=durable and record["kind"] != "transition"
    )


BUGS = (
    Bug("no sync before the flip", "good update", leave_out_the_sync, since="flip_slot.before"),
    Bug(
        "the new system in ext4's journal only",
        "good update",
        fill_the_journal_only,
        kind="partitions",
        since="flip_slot.before",
    ),
    Bug("the flip before the sync", "good update", flip_before_the_sync, since="flip_slot.before"),
    Bug("the index rewritten in place", "good update", rewrite_in_place, since="flip_slot.before"),
    Bug("an undo skipped", "failing program", skip_an_undo, since="undo.run_update_program.before"),
    Bug("the intent not flushed", "good update", forget_the_intent),
    Bug("a state answered before it is durable", "good update", answer_too_early),
    Bug(
        "a migration that PostgreSQL has only answered",
        "PostgreSQL by a program",
        believe_postgresql,
        since="migrate.done",
    ),
    Bug("mounted nobarrier", "good update", options="nobarrier"),
)
