"""Processing: steps 1 to 8 of the update processes, in the slot that is not running; applications likewise."""

from otaflow.flows.phase import phase
from otaflow.tasks.applications import prepare_files
from otaflow.tasks.backups import back_up_full, back_up_incremental, snapshot_main_partition
from otaflow.tasks.package import check_application, check_metadata, check_removal, extract_package
from otaflow.tasks.program import run_update_program
from otaflow.tasks.slots import copy_active_slot, find_active_slot

Processed = dict[str, str]
"""What Processing hands to Activating.

Of a system: `target` slot, `generation`, `folder` of the extracted package, `backup`. Of an application: `name`,
`generation`, `folder`, and `kept`, under which its new tree lies, and later its former one.
"""


@phase("process")
def process(
    package: str, direction: str, version: str, update_number: int, base: str, spare: str, accepted: bool = False
) -> Processed:
    """Put a package into the spare slot (spec/update-processes.md, steps 1-8).

    `base` is the slot that is copied: the running one, or the spare one when a former package of the session is in it.
    `accepted`: the user agreed to a migration that cannot be brought back.
    """
    folder = extract_package(package)
    check_metadata(folder, direction, base, accepted)
    active = find_active_slot()
    copy_active_slot(base, spare)
    backup = back_up_incremental(active)
    back_up_full(backup)
    snapshot_main_partition(backup)
    generation = run_update_program(folder, direction, base, spare, backup, version, update_number)
    return {"target": spare, "generation": generation, "folder": folder, "backup": backup}


@phase("process")
def process_application(package: str, name: str, kept: str, accepted: bool = False) -> Processed:
    """Prepare an application's new files beside the present ones (spec/update-processes.md, application updates)."""
    folder = extract_package(package)
    check_application(folder, accepted)
    generation = prepare_files(folder, kept)
    return {"name": name, "generation": generation, "folder": folder, "kept": kept}


@phase("process")
def process_removal(name: str, kept: str) -> Processed:
    """Nothing is prepared: the application goes at the activation."""
    check_removal(name)
    return {"name": name, "kept": kept}
