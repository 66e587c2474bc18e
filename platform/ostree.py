"""The two slots as checkouts of an OSTree repository beside them: `root/.ostree`, of the kind `bare`. Root is needed.

A copy is a commit of the source, of which only what changed is written, and a checkout of it that shares no file with
the repository, since programs write into it. It takes the target's place by rename, as any tree does (slots.py), and
so the former content is kept as a tree too: an undo needs neither room nor the repository.

What OSTree does not keep is taken from the source: times, hard links, FIFOs, devices, names that are no UTF-8. Holes
become zeros, and sockets are left out. The repository is derived: without it the next copy makes a new one.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from otaflow.errors import CommandFailed, OtaflowError
from otaflow.platform.copying import copy_file, copy_metadata, copy_other, delete_tree
from otaflow.platform.directories import FolderTrees, hidden, prepare_new, publish
from otaflow.platform.run import Completed, run
from otaflow.platform.slots import TreeSlots

TIMEOUT = 3600.0
FOLDER = ".ostree"
REF = "otaflow/system"
"""The last commit, which the next one shares its unchanged files with."""
# What is committed is on the disk before it is in the repository; what is checked out is made durable here (publish).
SETTINGS = {"core.fsync": "true", "core.tmp-expiry-secs": "3600"}
HINT = "`ostree fsck --repo={repo}` finds damage; where there is any, remove the folder: the next update makes it anew"

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
        self._make_repo()
        new = prepare_new(target)
        self._commit(source, hidden(target, "gone"))
        self._run("checkout", "--force-copy", "--fsync=false", REF, new)
        _complete(source, new, {})
        publish(new, target)

    def prune(self) -> None:
        """Remove from the repository what is of no use any more."""
        if (self._repo / "config").is_file():
            self._run("prune", "--refs-only", "--depth=0")

    def _make_repo(self) -> None:
        """The config is written last, so that a repository with one is a whole one."""
        if os.geteuid() != 0:
            raise OtaflowError('cannot use slots of kind "ostree" without root: owners could not be kept')
        if (self._repo / "config").is_file():
            return
        delete_tree(self._repo)
        new = hidden(self._repo, "new")
        delete_tree(new)
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
        repo = repo or self._repo
        try:
            return run(["ostree", command, f"--repo={repo}", *arguments], timeout=TIMEOUT)
        except CommandFailed as error:
            error.hint = error.hint or HINT.format(repo=repo)
            raise


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


def _complete(source: Path, new: Path, made: dict[File, Path]) -> None:
    """Give the checkout `new` what is in `source` and not in the commit. What went meanwhile is not missed."""
    for entry in os.scandir(source):
        seen = entry.stat(follow_symlinks=False)
        with suppress(FileNotFoundError):
            _complete_entry(Path(entry.path), new / entry.name, seen, made)
    copy_metadata(source, new)


def _complete_entry(source: Path, target: Path, seen: os.stat_result, made: dict[File, Path]) -> None:
    if stat.S_ISDIR(seen.st_mode):
        target.mkdir(exist_ok=True)
        if seen.st_dev == os.stat(source.parent).st_dev:
            _complete(source, target, made)
        return
    if stat.S_ISREG(seen.st_mode) and (first := made.get((seen.st_dev, seen.st_ino))) is not None:
        target.unlink(missing_ok=True)
        os.link(first, target)
        return
    if not os.path.lexists(target):
        copy_file(source, target) if stat.S_ISREG(seen.st_mode) else copy_other(source, target, seen)
    else:
        copy_metadata(source, target)
    if stat.S_ISREG(seen.st_mode) and seen.st_nlink > 1:
        made[seen.st_dev, seen.st_ino] = target
