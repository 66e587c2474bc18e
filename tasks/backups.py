"""Steps 5, 6 and 7 of the update processes: the incremental backup, the full one, the main partition's snapshot."""

from otaflow.journal import now
from otaflow.platform import tar
from otaflow.platform.backups import Entry
from otaflow.platform.device import device
from otaflow.platform.labels import read_label
from otaflow.tasks.step import remember, step


@step("back up incrementally", retries=2)
def back_up_incremental(active: str) -> str:
    """Keep a picture of the running slot and of `/etc/sys`, for ever; returns the entry's id.

    It costs what changed since the entry before.
    """
    here = device()
    label = read_label(here.slots.path(active))
    time = now()
    memory = remember(entry=here.backups.new_id(label.update_number, time))
    folder = here.backups.path(memory["entry"])
    folder.mkdir(exist_ok=True)
    base = here.backups.latest()
    for source, part in ((here.slots.path(active), "sys"), (here.configuration, "etc-sys")):
        here.trees.freeze(source, folder / part, here.backups.path(base.id, part) if base else None)
    here.trees.sync(folder / "sys")
    here.trees.sync(folder)
    here.backups.complete(
        Entry(
            id=memory["entry"],
            name=label.name,
            version=label.version,
            update_number=label.update_number,
            generation=label.generation,
            time=time,
            boots=here.boots.count(),
        )
    )
    return str(memory["entry"])


@back_up_incremental.undo
def remove_incremental(entry: str) -> None:
    """Remove the entry of this attempt. Its `entry.json` goes first: what is half removed is no backup."""
    folder = device().backups.path(entry)
    (folder / "entry.json").unlink(missing_ok=True)
    for part in ("sys", "etc-sys"):
        device().trees.remove(folder / part)
    if folder.is_dir():
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()


@step("back up in full", retries=2)
def back_up_full(backup: str) -> None:
    """Write the entry's slot and configuration into one archive that shares nothing with anything."""
    memory = remember(entry=backup)
    folder = device().backups.path(memory["entry"])
    tar.archive(folder, folder / "full.tar", members=("sys", "etc-sys"))


@back_up_full.undo
def remove_full(entry: str) -> None:
    """Remove the archive."""
    for name in ("full.tar", ".full.tar.new"):
        device().backups.path(entry, name).unlink(missing_ok=True)


@step("snapshot main partition", retries=2)
def snapshot_main_partition(backup: str) -> None:
    """Keep a read-only picture of the main partition."""
    here = device()
    memory = remember(entry=backup)
    target = here.backups.path(memory["entry"], "main")
    before = [entry for entry in here.backups if here.backups.path(entry.id, "main").exists() and entry.id != backup]
    base = here.backups.path(before[-1].id, "main") if before else None
    here.trees.freeze(here.main, target, base)
    here.trees.sync(target)


@snapshot_main_partition.undo
def remove_snapshot(entry: str) -> None:
    """Remove the picture."""
    device().trees.remove(device().backups.path(entry, "main"))
