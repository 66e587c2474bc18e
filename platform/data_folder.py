"""A folder of data (uploads, a cache of models) as a database: its tree is kept, compared, and brought back whole."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from otaflow.errors import DatabaseFailed, MigrationFailed, OtaflowError
from otaflow.files import fsync_folder, write_atomic
from otaflow.platform.btrfs import is_subvolume
from otaflow.platform.copying import delete_tree, sync_file_system
from otaflow.platform.describe import describe
from otaflow.platform.directories import copy_tree, hidden
from otaflow.platform.exchange import exchange
from otaflow.platform.mirror import mirror
from otaflow.platform.protocols import Trees

FILES = "files"
MANIFEST = "manifest.json"


class DataFolder:
    """The Database protocol (protocols.py) on the folder `path`; a dump is a tree of `trees` with a list of itself."""

    def __init__(self, path: Path, trees: Trees) -> None:
        self.path, self.trees = path, trees

    @property
    def url(self) -> str:
        return self.path.absolute().as_uri()

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def size(self) -> int:
        """The bytes of its files."""
        sizes = [os.lstat(os.path.join(top, name)).st_size for top, _, names in os.walk(self.path) for name in names]
        return sum(sizes)

    def dump(self, target: Path) -> None:
        """A copy of the tree that shares data where it can; a `target` that is there already is replaced."""
        if self.path.is_symlink() or not self.path.is_dir():
            raise DatabaseFailed(f"cannot dump {self.path}: it is no folder")
        new = hidden(target, "dump")
        try:
            self.trees.remove(new)
            self.trees.remove(target)
            new.mkdir(parents=True)
            self.trees.clone(self.path, new / FILES)
            write_atomic(new / MANIFEST, json.dumps(_list(self.path)).encode())
            self.trees.sync(new / FILES)
            os.rename(new, target)
            fsync_folder(target.parent)
        except (OSError, OtaflowError) as error:
            self.trees.remove(new)
            raise DatabaseFailed(f"cannot dump the folder {self.path}: {error}") from error

    def check(self, dump: Path) -> None:
        """Every file of it is read."""
        try:
            wanted, found = json.loads((dump / MANIFEST).read_bytes()), _list(dump / FILES)
        except (OSError, ValueError) as error:
            raise DatabaseFailed(f"cannot use the dump {dump} of {self.path}: {error}") from error
        if wrong := [key for key in found if wanted.get(key) != found[key]]:
            key = wrong[0]
            why = f"it has {found[key]} {key} and should have {wanted.get(key)}"
            if key == "sha256":
                why = "its content is another one"
            raise DatabaseFailed(
                f"cannot use the dump {dump} of {self.path}: {why}",
                hint="does a program still write into the folder?",
            )

    def restore(self, dump: Path | None) -> None:
        """One exchange; file by file where there is no room for both, or the folder cannot change its place."""
        new = hidden(self.path, "restored")
        try:
            delete_tree(new)
            if dump is None:
                self._take_away(new)
            elif self.path.is_dir() and (self.path.is_mount() or is_subvolume(self.path)):
                mirror(dump / FILES, self.path)
            else:
                self._replace(dump / FILES, new)
        except (OSError, OtaflowError) as error:
            raise DatabaseFailed(f"cannot restore the folder {self.path}: {error}") from error

    def execute(self, script: Path, timeout: float, cancelled: Callable[[], bool] | None = None) -> None:
        raise MigrationFailed(
            f"cannot run {script.name} on the folder {self.path}: a folder knows no SQL",
            hint="a migration of kind `files` is a `program`",
        )

    def _replace(self, files: Path, new: Path) -> None:
        if not files.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "there is no such dump", str(files))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            copy_tree(files, new)
            sync_file_system(new)
        except (OSError, OtaflowError):  # no room, most likely; what is wrong otherwise is met again
            delete_tree(new)
            mirror(files, self.path)
            return
        if os.path.lexists(self.path):
            exchange(new, self.path)
            delete_tree(new)
        else:
            os.rename(new, self.path)
        fsync_folder(self.path.parent)

    def _take_away(self, new: Path) -> None:
        if os.path.lexists(self.path):
            os.rename(self.path, new)
            fsync_folder(self.path.parent)
            delete_tree(new)


def _list(tree: Path) -> dict[str, object]:
    """What a tree holds: how many files and bytes, and one sha256 of all that can be said of it."""
    entries = describe(tree, times=True)
    if not entries:
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(tree))
    sizes = [entry[5][0] for entry in entries.values() if entry[0] == "file"]
    text = repr(sorted(entries.items())).encode(errors="surrogateescape")
    return {"files": len(sizes), "bytes": sum(sizes), "sha256": hashlib.sha256(text).hexdigest()}
