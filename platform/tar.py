"""A tree as one tar file, for full backups: written whole under another name, on the disk before it gets its own."""

import os
from collections.abc import Sequence
from pathlib import Path

from otaflow.errors import OtaflowError
from otaflow.files import fsync_file, fsync_folder
from otaflow.platform.directories import hidden
from otaflow.platform.run import run

TIMEOUT = 4 * 3600.0
END_BYTES = 1024
RECORD_BLOCKS = 2048  # of 512 bytes: 1 MB instead of 10 KB takes a tenth of the time
KEEP = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"]


def archive(source: Path, target: Path, members: Sequence[str] = (".",)) -> None:
    """Write the folder `source`, or only `members` of it, to the file `target`, not compressed.

    Nothing happens where `target` is. What is mounted inside a member is left out, and a subvolume inside one too.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    new = hidden(target, "new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    command: list[str | Path] = ["tar", "--create", f"--file={new}", *KEEP]
    command += [f"--blocking-factor={RECORD_BLOCKS}", "--one-file-system", "--sparse", "--format=posix"]
    command += ["-C", source, "--", *members]
    run(command, timeout=TIMEOUT)
    fsync_file(new)
    os.rename(new, target)
    fsync_folder(target.parent)


def restore(archived: Path, into: Path) -> None:
    """Fill the empty folder `into` with the tree of a tar file of `archive`. Cut short, `into` is to be removed.

    Raises OtaflowError for an archive without its end; CommandFailed when tar cannot read it.
    """
    if not into.is_dir() or any(into.iterdir()):
        raise OtaflowError(f"cannot restore {archived} into {into}: it is no empty folder")
    _check_end(archived)
    options = ["--preserve-permissions", "--same-owner", "--delay-directory-restore"]
    command: list[str | Path] = ["tar", "--extract", f"--file={archived}", *KEEP, *options, "-C", into]
    run(command, timeout=TIMEOUT)


def _check_end(archived: Path) -> None:
    """It is whole records with zeros at the end; tar itself takes one that was cut between two members for whole."""
    with archived.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - END_BYTES))
        if not size or size % (RECORD_BLOCKS * 512) or file.read().strip(b"\0"):
            raise OtaflowError(
                f"cannot restore the full backup {archived}: it was cut off",
                hint="`otaflow backups` lists what else can be gone back to",
            )
