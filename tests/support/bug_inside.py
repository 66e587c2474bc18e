"""Runs inside a machine: a job, see job_inside.py, of an otaflow in which a bug is planted.

usage: bug_inside.py BUG JOB. The bench of cycles is trusted because it finds each of them.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import job_inside

import otaflow.service  # noqa: F401  (loads every step)
from otaflow.platform.index_file import IndexFile
from otaflow.tasks import cleanup
from otaflow.tasks.step import STEPS


def skip_an_undo(name: str) -> None:
    """What the step changed is said to be taken back, and is not."""
    STEPS[name].take_back = lambda **memory: None


def trust_at_once() -> None:
    """The new system is trusted as soon as the boot target names it."""
    set_target = IndexFile.set_target

    def wrong(self: IndexFile, slot: str, promise: str, *, trial: bool = False) -> None:
        set_target(self, slot, promise, trial=False)

    IndexFile.set_target = wrong  # type: ignore[method-assign]


def leave_what_was_extracted() -> None:
    """Nothing of a session's temporary files is removed."""

    def wrong(*_: Any) -> None:
        pass

    cleanup.remove_scratch = wrong
    STEPS["extract_package"].take_back = lambda **memory: None


BUGS: dict[str, Callable[[], None]] = {
    "the undo of the update program skipped": lambda: skip_an_undo("run_update_program"),
    "the undo of the slot's copy skipped": lambda: skip_an_undo("copy_active_slot"),
    "the undo of the backup skipped": lambda: skip_an_undo("back_up_incremental"),
    "what was extracted is left": leave_what_was_extracted,
    "trusted at once": trust_at_once,
}

if __name__ == "__main__":
    BUGS[sys.argv[1]]()
    job_inside.main(json.loads(sys.argv[2]))
