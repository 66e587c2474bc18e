"""Processing: steps 1 to 8 of the update processes, in the slot that is not running."""

from otaflow.flows.phase import phase
from otaflow.tasks.backups import back_up_full, back_up_incremental, snapshot_main_partition
from otaflow.tasks.package import check_metadata, extract_package
from otaflow.tasks.program import run_update_program
from otaflow.tasks.slots import copy_active_slot, find_active_slot

Processed = dict[str, str]
"""What Processing hands to Activating: `target` slot, `generation`, `folder` of the extracted package, `backup`."""


@phase("process")
def process(package: str, direction: str, version: str, update_number: int, base: str, spare: str) -> Processed:
    """Put a package into the spare slot (spec/update-processes.md, steps 1-8).

    `base` is the slot that is copied: the running one, or the spare one when a former package of the session is in it.
    """
    folder = extract_package(package)
    check_metadata(folder, direction, base)
    active = find_active_slot()
    copy_active_slot(base, spare)
    backup = back_up_incremental(active)
    back_up_full(backup)
    snapshot_main_partition(backup)
    generation = run_update_program(folder, direction, base, spare, backup, version, update_number)
    return {"target": spare, "generation": generation, "folder": folder, "backup": backup}
