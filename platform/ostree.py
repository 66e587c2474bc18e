"""The two slots as checkouts of an OSTree repository beside them: `root/.ostree`, of the kind `bare`. Root is needed.

A copy is a commit of the source, of which only what changed is written, and a checkout of it that shares no file with
the repository, since programs write into it. It takes the target's place by rename, as any tree does (slots.py), and
so the former content is kept as a tree too: an undo needs neither room nor the repository.

What OSTree does not keep is taken from the source: times, hard links, FIFOs, devices, names that are no UTF-8. Holes
become zeros, and sockets are left out. The repository is derived: without it, or where it is damaged, the next copy
makes a new one.
"""

import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from otaflow.errors import CommandFailed, OtaflowError
from otaflow.platform.copying import copy_file, copy_metadata, copy_other, delete_tree, has_same_content
from otaflow.platform.directories import FolderTrees, hidden, prepare_new, publish, remove_folder
from otaflow.platform.run import CANCELLED, TIMED_OUT, Completed, require_program, run
from otaflow.platform.slots import TreeSlots

log = logging.getLogger("otaflow.ostree")

TIMEOUT = 3600.0
FOLDER = ".ostree"
REF = "otaflow/system"
"""The last commit, which the next one shares its unchanged files with."""
# What is committed is on the disk before it is in the repository; what is checked out is made durable here (publish).
SETTINGS = {"core.fsync": "true", "core.tmp-expiry-secs": "3600"}

File = tuple[int, int]


class OstreeSlots(TreeSlots):
    """The Slots protocol (protocols.py): trees that are filled from the repository."""

    def __init__(self, root: Path, names: tuple[str, str]) -> None:
        self._ostree = OstreeTrees(root / FOLDER)
        super().__init__(root, names, self._ostree)

    def forget(self, kept: str) -> None:
        super().forget(kept)
        self._ostree.prune()


class OstreeTrees(FolderTrees):
    """The Trees protocol (protocols.py): plain directories, whose clones go through the repository."""

    def __init__(self, repo: Path) -> None:
        self._repo = repo

    def clone(self, source: Path, target: Path) -> None:
        if os.path.lexists(target):
            return
        if not source.is_dir():
            raise OtaflowError(f"cannot copy {source}: there is no such tree")
        require_program("ostree")
        try:
            new = self._check_out(source, target)
        except CommandFailed as error:
            if error.returncode in (None, TIMED_OUT, CANCELLED):
                raise
            remove_folder(self._repo)  # damaged, or too large for the disk: from the beginning, once
            new = self._check_out(source, target)
        publish(new, target)

    def prune(self) -> None:
        """Remove from the repository what is of no use any more, or all of it where that fails."""
        if not (self._repo / "config").is_file():
            return
        try:
            self._run("prune", "--refs-only", "--depth=0")
        except CommandFailed as error:
            log.warning("%s is made anew: %s", self._repo, error)
            remove_folder(self._repo)

    def _check_out(self, source: Path, target: Path) -> Path:
        """A new copy of `source`. Where the repository holds it wrongly the copy is right, and the repository goes."""
        new = prepare_new(target)
        self._make_repo()
        began = time.time_ns()
        self._commit(source, hidden(target, "gone"))
        self._run("checkout", "--force-copy", "--fsync=false", REF, new)
        completion = Completion(began)
        completion.complete(source, new)
        if completion.damaged:
            log.warning("%s is damaged (%s): it is made anew", self._repo, completion.damaged[0])
            remove_folder(self._repo)
        return new

    def _make_repo(self) -> None:
        """The config is written last, so that a repository with one is a whole one."""
        if os.geteuid() != 0:
            raise OtaflowError('cannot use slots of kind "ostree" without root: owners could not be kept')
        if (self._repo / "config").is_file():
            return
        remove_folder(self._repo)
        new = hidden(self._repo, "new")
        new.mkdir(parents=True)
        self._run("init", "--mode=bare", repo=new)
        for key, value in SETTINGS.items():
            self._run("config", "set", key, value, repo=new)
        publish(new, self._repo)

    def _commit(self, source: Path, farm: Path) -> None:
        """Commit the tree; where OSTree cannot hold all of it, by way of a tree of its names without the rest."""
        rest = list(_find_rest(source))
        tree = source
        delete_tree(farm)
        if rest:
            share = "--link" if os.stat(source).st_dev == os.stat(farm.parent).st_dev else "--reflink=auto"
            run(["cp", "-a", share, "--one-file-system", "--no-target-directory", source, farm], timeout=TIMEOUT)
            for path in rest:
                delete_tree(farm / path.relative_to(source))
            tree = farm
        self._run("commit", f"--branch={REF}", "--parent=none", "--no-bindings", f"--tree=dir={tree}")
        delete_tree(farm)

    def _run(self, command: str, *arguments: str | Path, repo: Path | None = None) -> Completed:
        return run(["ostree", command, f"--repo={repo or self._repo}", *arguments], timeout=TIMEOUT)


def _find_rest(source: Path) -> Iterator[Path]:
    """What OSTree cannot hold: special files, names that are no UTF-8; and what is mounted inside."""
    device = os.stat(source).st_dev
    folders = [source]
    while folders:
        for entry in os.scandir(folders.pop()):
            seen = entry.stat(follow_symlinks=False)
            path = Path(entry.path)
            if not _is_plain(entry.name, seen) or (stat.S_ISDIR(seen.st_mode) and seen.st_dev != device):
                yield path
            elif stat.S_ISDIR(seen.st_mode):
                folders.append(path)


def _is_plain(name: str, seen: os.stat_result) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return any(check(seen.st_mode) for check in (stat.S_ISDIR, stat.S_ISREG, stat.S_ISLNK))


class Completion:
    """Gives a checkout what its commit does not hold, and compares what it does: `bare` is read without a check."""

    def __init__(self, began: int) -> None:
        self._began = began
        self._made: dict[File, Path] = {}
        self.damaged: list[Path] = []
        """What was not in the checkout as in the source, which had not changed since `began` (ns)."""

    def complete(self, source: Path, new: Path, *, held: bool = True) -> None:
        """Make the checkout `new` equal to `source`; what went from there meanwhile is not missed.

        `held`: OSTree can hold the folder.
        """
        for entry in os.scandir(source):
            with suppress(FileNotFoundError):
                seen = entry.stat(follow_symlinks=False)
                target = new / entry.name
                expected = held and _is_plain(entry.name, seen)
                if expected and seen.st_mtime_ns < self._began and not _is_like(seen, target):
                    self.damaged.append(target)
                self._complete_entry(Path(entry.path), target, seen, held=expected)
        copy_metadata(source, new)

    def _complete_entry(self, source: Path, target: Path, seen: os.stat_result, *, held: bool) -> None:
        if stat.S_ISDIR(seen.st_mode):
            target.mkdir(exist_ok=True)
            if seen.st_dev == os.stat(source.parent).st_dev:
                self.complete(source, target, held=held)
            else:
                copy_metadata(source, target)
        elif not stat.S_ISREG(seen.st_mode):
            delete_tree(target)
            copy_other(source, target, seen)
        elif (first := self._made.get((seen.st_dev, seen.st_ino))) is not None:
            delete_tree(target)
            os.link(first, target)
        else:
            self._complete_file(source, target, seen)
            if seen.st_nlink > 1:
                self._made[seen.st_dev, seen.st_ino] = target

    def _complete_file(self, source: Path, target: Path, seen: os.stat_result) -> None:
        if os.path.lexists(target):
            if has_same_content(source, target):
                copy_metadata(source, target)
                return
            if seen.st_mtime_ns < self._began:
                self.damaged.append(target)
            delete_tree(target)
        copy_file(source, target)


def _is_like(seen: os.stat_result, target: Path) -> bool:
    if not os.path.lexists(target):
        return False
    there = os.lstat(target)
    return (seen.st_mode, seen.st_uid, seen.st_gid) == (there.st_mode, there.st_uid, there.st_gid)
