"""Step 8 of the update processes: the package's up-down program works on the spare slot.

What it is given (docs/package-format.md) is laid out here: a JSON history of all system updates, and a folder with the
slot's picture at each point of it.
"""

import json
import os
from pathlib import Path
from uuid import uuid4

from otaflow import progress
from otaflow.errors import ProcessedSoftwarePackageInconsistent
from otaflow.files import sync_file_system
from otaflow.platform import sandbox
from otaflow.platform.device import device
from otaflow.platform.labels import Label, read_label, write_label
from otaflow.records import RESERVE
from otaflow.tasks.configuration import bring_configuration
from otaflow.tasks.package import metadata_of
from otaflow.tasks.step import remember, step, stop_if_asked

RESERVE_BYTES = 8 * 2**20  # beside the configuration: the journal, the logs, what btrfs wants free to change anything
BLOCK = 4096


@step("run update program", when="early")
def run_update_program(
    folder: str, direction: str, base: str, spare: str, backup: str, version: str, update_number: int
) -> str:
    """Run `update up` or `update down` on the spare slot, then label the slot; returns the new content's generation.

    `base` is the slot whose version it starts from: the running one, or the spare slot itself when a former package of
    the session is in it. It is not retried: on a slot that it changed half, the program could not be expected to do
    right. Raises ProcessedSoftwarePackageInconsistent when it fails or takes too long.
    """
    here = device()
    memory = remember(backup=backup, reserve=f"{RESERVE}-{here.journal.session.current}")
    hold_reserve(memory["reserve"])
    before = read_label(here.slots.path(base))
    _lay_out_history(Path(folder))
    _run(Path(folder), direction, spare, before.version, version)
    # What the program wrote is on the disk before the label says so: a power cut in Ready must not leave a promise.
    here.slots.sync(spare)
    for written in (here.configuration, Path(folder)):
        sync_file_system(written)
    label = Label(metadata_of(folder).name, version, update_number, generation=uuid4().hex)
    write_label(here.slots.path(spare), label)
    return label.generation


@run_update_program.undo
def return_configuration(backup: str, reserve: str) -> None:
    """Give `/etc/sys` back what it held; the slot's own content goes with the copy's undo."""
    sandbox.end_left_over(device().nvm / "lock")
    release_reserve(reserve)
    bring_configuration(backup)


def hold_reserve(name: str) -> None:
    """Keep room for the undo: a program that fills the disk fills it around this. OSError where there is none."""
    here = device()
    sizes = [path.lstat().st_size for path in here.configuration.rglob("*")]
    with (here.nvm / name).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES + sum(-(-size // BLOCK) * BLOCK for size in sizes))


def release_reserve(pattern: str = f"{RESERVE}-*") -> None:
    """Give the room back: of one action to its undo, or all of it at the session's end."""
    for reserve in device().nvm.glob(pattern):
        reserve.unlink()
        sync_file_system(reserve.parent)


def _run(folder: Path, direction: str, spare: str, version_from: str, version_to: str) -> None:
    here = device()
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    slot = here.slots.path(spare)
    program = folder / "update"
    if not program.is_file():
        raise ProcessedSoftwarePackageInconsistent("cannot run the update program: the package has none")
    lines: list[str] = []

    def output(line: str) -> None:
        lines.append(line)
        del lines[:-20]
        progress.tell("output", "update program", line=line)

    timeout = here.config.program.timeout_seconds
    code = sandbox.run_program(
        [str(program), direction],
        cwd=folder,
        env={
            "OTAFLOW_SLOT": str(slot),
            "OTAFLOW_ASSETS": str(folder / "assets"),
            "OTAFLOW_ETC": str(here.configuration),
            "OTAFLOW_HISTORY": str(folder / "history.json"),
            "OTAFLOW_SNAPSHOTS": str(folder / "snapshots"),
            "OTAFLOW_VERSION_FROM": version_from,
            "OTAFLOW_VERSION_TO": version_to,
            "OTAFLOW_TMP": str(scratch),
        },
        timeout=timeout,
        writable=[slot, here.configuration, folder],
        protected=[here.root, slot.parent, here.slots.path(here.boot.running()), here.backups.folder, here.nvm],
        output=output,
        cancelled=here.stop_work.is_set,
    )
    stop_if_asked()
    if code:
        last = f"; its last words: {lines[-1]}" if lines else ""
        why = f"it did not end within {timeout:g} s" if code == sandbox.TIMED_OUT else f"it ended with exit code {code}"
        raise ProcessedSoftwarePackageInconsistent(
            f"cannot install {version_to}: the update program failed ({why}{last})",
            hint="its whole output is in the processing log: `otaflow history --log`",
        )


def _lay_out_history(folder: Path) -> None:
    """Write history.json, and snapshots/ with one link for each backup entry that it names."""
    here = device()
    entries = {entry.id: entry for entry in here.backups}
    snapshots = folder / "snapshots"
    snapshots.mkdir(exist_ok=True)
    for entry_id in entries:
        link = snapshots / entry_id
        if not link.is_symlink():
            link.symlink_to(here.backups.path(entry_id, "sys"))
    known = [
        {
            "update_number": entry.update_number,
            "version": entry.version,
            "time": entry.time,
            "action": "Backup",
            "result": "kept",
            "snapshot": entry.id,
        }
        for entry in entries.values()
    ]
    known += [
        {
            "update_number": record.get("update_number", 0),
            "version": record["version"],
            "time": record["time"],
            "action": record["action"],
            "result": record["resolution"],
            "snapshot": record.get("backup", ""),
        }
        for record in here.history.read()
    ]
    known.sort(key=lambda item: str(item["time"]))
    (folder / "history.json").write_text(json.dumps(known, indent=1))
