"""What otaflow asks of a machine: small protocols, one adapter a file, the fakes in fake.py.

Each method is safe to call twice: a step that is retried, or undone after a power cut, calls it again. `Path`s are
absolute. A method that fails raises CommandFailed or OSError and leaves what was there before it, or less of what it
was making; it never leaves half of a tree under its final name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Trees(Protocol):
    """Whole file trees on one kind of storage (btrfs subvolumes, plain directories)."""

    def create(self, path: Path) -> None:
        """Make an empty tree; nothing happens where one is."""

    def clone(self, source: Path, target: Path) -> None:
        """Make `target` a writable copy of `source`; it appears whole or not at all. Nothing happens where it is."""

    def freeze(self, source: Path, target: Path, base: Path | None = None) -> None:
        """Make `target` a read-only picture of `source`, at the price of what changed since the picture `base`."""

    def remove(self, path: Path) -> None:
        """Remove a tree of any kind above; nothing happens where none is. Cut short, the rest goes next time."""

    def sync(self, path: Path) -> None:
        """Return when all that was written into the tree at `path` is on the disk, its own name included."""


class Slots(Protocol):
    """The two places a system can start from (update processes, steps 3 and 4; UCM design, data flow)."""

    @property
    def names(self) -> tuple[str, str]:
        """The two names, in the configuration's order."""

    def path(self, slot: str) -> Path:
        """The root folder of the slot's content. OtaflowError where it cannot be reached."""

    def place(self, slot: str) -> Path:
        """The same folder, also where the content cannot be reached: to tell the slots apart, not to write into."""

    def create(self, slot: str) -> None:
        """Make the slot an empty tree. OtaflowError where something is in it."""

    def copy(self, source: str, target: str, kept: str) -> None:
        """Make slot `target` a copy of `source`; its former content is kept under the name `kept`."""

    def fill(self, source: Path, target: str, kept: str) -> None:
        """Make slot `target` a copy of the tree `source` (a backup); else like `copy`."""

    def put_back(self, target: str, kept: str) -> None:
        """Undo `copy` or `fill`: `target` has its former content again. Nothing was kept: nothing happens."""

    def kept_names(self) -> list[str]:
        """All names under which something is kept, also that there was nothing."""

    def forget(self, kept: str) -> None:
        """Give up the content kept under `kept`."""

    def sync(self, slot: str) -> None:
        """Return when the slot's content is on the disk, where a boot loader finds it."""


class BootTarget(Protocol):
    """Which slot runs, and which one starts next.

    A target is *on trial* until it is confirmed: the boot loader counts how often it starts it, and after
    `boot.tries` starts it starts the other slot by itself; `target` goes on naming the one on trial. Where no boot
    loader starts the slots (`restart = "switch"`), no target is ever on trial.
    """

    def running(self) -> str:
        """The slot that the present system was started from."""

    def target(self) -> str:
        """The slot that starts next."""

    def promise(self) -> str:
        """What the target was set with: the generation of the content that is to start."""

    def set_target(self, slot: str, promise: str, *, trial: bool = False) -> None:
        """Make `slot` start next, durably, in one atomic change. `promise` names the content expected in it.

        `trial`: it is not trusted before `confirm`; the slot to fall back to is the other one.
        """

    def tries_left(self) -> int | None:
        """How often the boot loader will start the target before it falls back; None where it is not on trial."""

    def confirm(self) -> None:
        """Trust the target: the boot loader counts its starts no more; durable. Nothing happens where it is trusted."""

    def give_try_back(self) -> None:
        """The present start of the target shall not count (a power cut made it necessary); durable.

        Never more than `boot.tries`; nothing happens where it is not on trial.
        """

    def restart(self) -> bool:
        """Restart into the target. True: done, the new system runs. False: asked for, the machine is going down."""


@dataclass(frozen=True)
class ServiceState:
    """What a service does now. `starts` is another text whenever it was started anew, by us or by its supervisor."""

    active: bool
    failed: bool = False
    pids: tuple[int, ...] = ()
    starts: str = ""
    words: str = ""
    """For people: `active (running)`, `failed (exit status 3)`, `not there`."""


class Services(Protocol):
    """The programs that run in the background, by the names of their units (`notes.service`).

    ServiceFailed says why a service did not do as it was asked, with its last words.
    """

    def check(self, name: str, folder: Path | None = None) -> None:
        """ServiceFailed when there is no such service, or it cannot be used: known here, or a unit file in `folder`."""

    def link(self, folder: Path) -> None:
        """Make the unit files in `folder` (`*.service`) known, started at each boot; again after they changed."""

    def unlink(self, folder: Path, but: Path | None = None) -> None:
        """Forget the unit files of `folder`; those that `but` has too stay known."""

    def arrange(self, folders: list[Path], held: list[str]) -> None:
        """At a boot: known is what `folders` have and nothing else, held are these services and no others.

        Another slot, or a main partition that was brought back, may know what was. What is known anew is started.
        """

    def start(self, name: str) -> None:
        """Start it and return when it is up; nothing happens where it is. ServiceFailed where it is held."""

    def stop(self, name: str) -> None:
        """Stop it and return when none of its processes is left; nothing happens where it does not run."""

    def reload(self, name: str) -> None:
        """Have it read its configuration anew; started where it does not run."""

    def state(self, name: str) -> ServiceState:
        """What it does now; of a service that is not known, that it is not active."""

    def hold(self, name: str) -> None:
        """Nobody starts it from now on, nor does a boot, until `release`; durable. It is not stopped by this."""

    def release(self, name: str) -> None:
        """It may be started again; it is not started by this."""

    def read_log(self, name: str, lines: int) -> list[str]:
        """The last lines that it wrote, at most `lines`."""


class Database(Protocol):
    """One database of an application: dumped, checked, brought back. DatabaseFailed says what went wrong."""

    @property
    def url(self) -> str:
        """Where a program finds it, as SQLAlchemy writes it (`sqlite:////…`, `postgresql://…`); may hold a password."""

    def exists(self) -> bool:
        """Whether it is there."""

    def size(self) -> int:
        """About how many bytes a dump takes."""

    def dump(self, target: Path) -> None:
        """Write all of it into the new file `target`, durably; `target` appears whole or not at all."""

    def check(self, dump: Path) -> None:
        """Open the dump and read all of it. DatabaseFailed when it could not be restored."""

    def restore(self, dump: Path | None) -> None:
        """Make the database exactly what the dump holds (None: there was none), in one switch; again is as once."""

    def execute(self, script: Path, timeout: float, cancelled: Callable[[], bool] | None = None) -> None:
        """Run a SQL script, all or nothing. MigrationFailed with the statement that failed, or when time is over."""

    def sync(self) -> None:
        """Return when all that was written to it, by whomever, is on the disk."""
