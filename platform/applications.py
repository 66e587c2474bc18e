"""The applications of a device: one tree each, replaced as one switch; their data lies beside, and is never replaced.

`root/NAME` is the present tree, with a label in it. What is prepared for NAME, and what is kept of it, is
`root/.NAME.KEPT`, on the same file system. A switch exchanges the two names in one call; installing and removing rename
one. Which of the two trees is the new one is told by their labels' generations, so that each call can be made again
wherever the power went.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from otaflow.errors import NothingToRevert, OtaflowError
from otaflow.files import fsync_folder, write_atomic
from otaflow.platform.exchange import exchange
from otaflow.platform.protocols import Trees

LABEL = ".otaflow-application.json"
UNITS = "services"
"""The folder of an application's tree that holds its unit files."""


@dataclass(frozen=True)
class Application:
    """What is installed. `services` are its own units; `dependencies` and `conflicts` as in its metadata."""

    name: str
    version: str
    update_number: int
    generation: str
    services: list[str] = field(default_factory=list)
    dependencies: list[dict[str, Any]] = field(default_factory=list)
    conflicts: list[dict[str, Any]] = field(default_factory=list)


class Applications:
    """The trees below `root` and the data below `data`."""

    def __init__(self, root: Path, data: Path, trees: Trees) -> None:
        self.root, self._data, self._trees = root, data, trees

    def names(self) -> list[str]:
        """What is installed, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if not path.name.startswith(".") and path.is_dir())

    def path(self, name: str) -> Path:
        """The application's tree."""
        return self.root / _plain(name)

    def units(self, name: str) -> Path:
        """The folder of its unit files, which it may not have."""
        return self.path(name) / UNITS

    def data(self, name: str) -> Path:
        """The application's data."""
        return self._data / _plain(name)

    def aside(self, name: str, kept: str) -> Path:
        """Where the tree of that name is that was prepared, or is kept, under `kept`."""
        return self.root / f".{_plain(name)}.{_plain(kept)}"

    def find(self, name: str) -> Application | None:
        """The installed application; None where there is none. OtaflowError when its label is damaged."""
        path = self.path(name)
        return read_application(path) if path.is_dir() else None

    def versions(self) -> dict[str, str]:
        """Every installed application's version; one with a damaged label is left out."""
        return {one.name: one.version for one in self.all()}

    def all(self) -> list[Application]:
        """Every installed application; one with a damaged label is left out."""
        found = []
        for name in self.names():
            try:
                found.append(read_application(self.path(name)))
            except OtaflowError:
                continue
        return found

    def services(self, name: str) -> list[str]:
        """The services of an installed application; of one with a damaged label, all that it has unit files of."""
        return read_services(self.path(name))

    def require(self, name: str) -> None:
        """Raise NothingToRevert where the application is not installed."""
        if name not in self.names():
            raise NothingToRevert(
                f"cannot remove {name}: it is not installed", hint="`otaflow app list` shows what is installed"
            )

    def switch(self, name: str, kept: str, generation: str) -> None:
        """Let the prepared tree of `generation` be the application, and keep the former one under `kept`."""
        path, aside = self.path(name), self.aside(name, kept)
        if _generation(path) == generation:
            return
        self._trees.sync(aside)
        if path.is_dir():
            exchange(aside, path)
        else:
            _rename(aside, path)

    def has_former(self, name: str, kept: str, generation: str) -> bool:
        """Whether the tree that `generation` took the place of is kept, or has its place again."""
        former = {_generation(self.aside(name, kept)), _generation(self.path(name))} - {"", generation}
        return bool(former)

    def switch_back(self, name: str, kept: str, generation: str) -> None:
        """Undo `switch`: the former tree, or none, is the application.

        What is kept tells: the new version may have damaged its own label.
        """
        path, aside = self.path(name), self.aside(name, kept)
        if _generation(aside) not in ("", generation):
            if path.is_dir():
                exchange(aside, path)
            else:
                _rename(aside, path)
        elif not aside.is_dir() and _generation(path) in ("", generation) and path.is_dir():
            _rename(path, aside)

    def take_away(self, name: str, kept: str) -> None:
        """Keep the application's tree under `kept`: it is not installed any more."""
        path, aside = self.path(name), self.aside(name, kept)
        if path.is_dir() and not aside.is_dir():
            _rename(path, aside)

    def give_back(self, name: str, kept: str) -> None:
        """Undo `take_away`."""
        path, aside = self.path(name), self.aside(name, kept)
        if aside.is_dir() and not path.is_dir():
            _rename(aside, path)

    def leavings(self) -> list[Path]:
        """All trees that are prepared or kept, and what was left of making them."""
        return sorted(self.root.glob(".*")) if self.root.is_dir() else []


def read_application(tree: Path) -> Application:
    """The label of an application's tree. OtaflowError when it has none that can be read."""
    try:
        return Application(**json.loads((tree / LABEL).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise OtaflowError(
            f"cannot tell which application is in {tree}: its label {LABEL} is missing or damaged ({error})",
            hint=f"`otaflow app remove {tree.name}`, then install it anew; its data stays",
        ) from error


def write_application(tree: Path, application: Application) -> None:
    """Give an application's tree its label, durably."""
    write_atomic(tree / LABEL, json.dumps(asdict(application), indent=1).encode() + b"\n")


def read_services(tree: Path) -> list[str]:
    """The services of an application's tree: of its label, else all that it has unit files of."""
    try:
        return read_application(tree).services
    except OtaflowError:
        return sorted(path.name for path in (tree / UNITS).glob("*.service"))


def _generation(tree: Path) -> str:
    """The generation of a tree; of none, or one that cannot be read, an empty text, which is no generation."""
    try:
        return read_application(tree).generation
    except OtaflowError:
        return ""


def _rename(source: Path, target: Path) -> None:
    os.rename(source, target)
    fsync_folder(target.parent)


def _plain(name: str) -> str:
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise OtaflowError(f"cannot use the application {name!r}: that is no plain name")
    return name
