"""A folder of data (uploads, a cache of models) as a database: its tree is kept, compared, and brought back whole."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from otaflow.errors import DatabaseFailed, MigrationFailed, OtaflowError
from otaflow.files import fsync_folder, sync_file_system, write_atomic
from otaflow.platform.btrfs import is_subvolume
from otaflow.platform.copying import delete_tree
from otaflow.platform.describe import describe
from otaflow.platform.directories import copy_tree, hidden
from otaflow.platform.exchange import exchange
from otaflow.platform.held import hold_parent, hold_private
from otaflow.platform.mirror import mirror
from otaflow.platform.protocols import Trees

FILES = "files"
MANIFEST = "manifest.json"


class DataFolder:
    """The Database protocol (protocols.py) on the folder `path`; a dump is a tree of `trees` with a list of itself.

    Neither `root` (None: the parent), which others may write in, nor anything from there to `path` may be a symbolic
    link: DatabaseFailed.
    """

    def __init__(self, path: Path, trees: Trees, root: Path | None = None) -> None:
        self.path, self.trees, self.root = path, trees, root

    @property
    def url(self) -> str:
        return self.path.absolute().as_uri()

    def exists(self) -> bool:
        with suppress(FileNotFoundError), hold_parent(self.path, self.root) as path:
            return os.path.lexists(path)
        return False

    def size(self) -> int:
        """The bytes of its files."""
        if not self.exists():
            return 0
        with hold_parent(self.path, self.root) as path:
            files = (os.path.join(top, name) for top, _, names in os.walk(path) for name in names)
            return sum(os.lstat(file).st_size for file in files)

    def sync(self) -> None:
        with suppress(FileNotFoundError), hold_parent(self.path, self.root) as path:
            # the folder may be a mount point
            sync_file_system(path if path.is_dir() and not path.is_symlink() else path.parent)

    def dump(self, target: Path) -> None:
        """A copy of the tree that shares data where it can; a `target` that is there already is replaced."""
        new = hidden(target, "dump")
        with self._explain("dump"), hold_parent(self.path, self.root) as path:
            if path.is_symlink() or not path.is_dir():
                raise DatabaseFailed(f"cannot dump {self.path}: it is no folder")
            try:
                self._dump(path, new, target)
            except (OSError, OtaflowError):
                self.trees.remove(new)
                raise

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
        if dump is None and not self.path.parent.exists():
            return
        with self._explain("restore"), hold_parent(self.path, self.root, make=dump is not None) as path:
            new = hidden(path, "restored")
            delete_tree(new)
            if dump is None:
                _take_away(path, new)
            elif path.is_dir() and (path.is_mount() or is_subvolume(path)):
                mirror(dump / FILES, path)
            else:
                _replace(dump / FILES, path, new)

    def execute(self, script: Path, timeout: float, cancelled: Callable[[], bool] | None = None) -> None:
        raise MigrationFailed(
            f"cannot run {script.name} on the folder {self.path}: a folder knows no SQL",
            hint="a migration of kind `files` is a `program`",
        )

    def _dump(self, path: Path, new: Path, target: Path) -> None:
        self.trees.remove(new)
        self.trees.remove(target)
        new.mkdir(parents=True)
        self.trees.clone(path, new / FILES)
        write_atomic(new / MANIFEST, json.dumps(_list(path)).encode())
        self.trees.sync(new / FILES)
        os.rename(new, target)
        fsync_folder(target.parent)

    @contextmanager
    def _explain(self, verb: str) -> Iterator[None]:
        try:
            yield
        except DatabaseFailed:
            raise
        except (OSError, OtaflowError) as error:
            raise DatabaseFailed(f"cannot {verb} the folder {self.path}: {error}") from error


def _replace(files: Path, path: Path, new: Path) -> None:
    if not files.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "there is no such dump", str(files))
    try:
        with hold_private(new) as private:
            copy_tree(files, private / FILES)
            sync_file_system(private)
            if os.path.lexists(path):
                exchange(private / FILES, path)
            else:
                os.rename(private / FILES, path)
            fsync_folder(path.parent)
    except (OSError, OtaflowError):  # no room, most likely; what is wrong otherwise is met again
        mirror(files, path)


def _take_away(path: Path, new: Path) -> None:
    if os.path.lexists(path):
        os.rename(path, new)
        fsync_folder(path.parent)
        delete_tree(new)


def _list(tree: Path) -> dict[str, object]:
    """What a tree holds: how many files and bytes, and one sha256 of all that can be said of it."""
    entries = describe(tree, times=True)
    if not entries:
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(tree))
    sizes = [entry[5][0] for entry in entries.values() if entry[0] == "file"]
    text = repr(sorted(entries.items())).encode(errors="surrogateescape")
    return {"files": len(sizes), "bytes": sum(sizes), "sha256": hashlib.sha256(text).hexdigest()}
