"""A device with a past, packages for it, and a picture of all that an update must leave as it was.

A world is a folder that holds `otaflow.toml` and the device below it. The device was made at 1.0.0 and updated to
1.1.0, so that its slots differ and a backup is there. `World.picture` describes everything of the device that is not
its record of what happened: contents, modes, owners, attributes, times, subvolumes, and that nothing is left over.
"""

import ast
import contextlib
import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slot_kinds import images

from otaflow import fault
from otaflow.action import Action
from otaflow.config import load
from otaflow.errors import OtaflowError
from otaflow.package.build import build
from otaflow.platform.btrfs import is_subvolume
from otaflow.platform.describe import describe
from otaflow.platform.device import Device, using
from otaflow.platform.labels import read_label
from otaflow.platform.ostree import FOLDER as REPOSITORY
from otaflow.platform.setup import init_device
from otaflow.service import Ucm

Picture = dict[str, Any]

NAME, MODEL = "demo-system", "board"
RECORDS = ("history", "journal", "logs", "lock", "boots.json")
"""What is in `nvm` and tells of the past: it grows, whatever becomes of an update."""

PROGRAM = """#!/bin/sh
set -e
echo "installing $OTAFLOW_VERSION_TO over $OTAFLOW_VERSION_FROM"
[ -f "$OTAFLOW_HISTORY" ]
echo "version=$OTAFLOW_VERSION_TO" >> "$OTAFLOW_ETC/net.conf"
echo "$OTAFLOW_VERSION_TO" > "$OTAFLOW_ETC/new-$OTAFLOW_VERSION_TO.conf"
chmod 0600 "$OTAFLOW_ETC/net.conf"
rm -f "$OTAFLOW_ETC/removed.conf"
cp -a "$OTAFLOW_ASSETS/." "$OTAFLOW_SLOT/"
rm -f "$OTAFLOW_SLOT/bin/legacy"
chmod 0751 "$OTAFLOW_SLOT/etc/closed"
echo changed > "$OTAFLOW_SLOT/bin/tool"
mkdir -p "$OTAFLOW_SLOT/var/$OTAFLOW_VERSION_TO"
"""


def fill_system(root: Path, version: str) -> None:
    """A small system with what a tree can hold: links, attributes, closed folders, empty ones."""
    for folder in ("bin", "etc/closed", "var/empty"):
        (root / folder).mkdir(parents=True)
    (root / "bin/hello").write_text(version)
    (root / "bin/tool").write_text("#!/bin/sh\n")
    (root / "bin/tool").chmod(0o4755 if os.geteuid() == 0 else 0o755)
    (root / "bin/legacy").write_text("goes with the update")
    os.link(root / "bin/tool", root / "bin/same-tool")
    (root / "bin/link").symlink_to("hello")
    (root / "etc/secret").write_text("s" * 5000)
    (root / "etc/secret").chmod(0o600)
    os.setxattr(root / "etc/secret", "user.note", b"kept")
    (root / "etc/closed/file").write_text("c")
    if os.geteuid() == 0:
        os.chown(root / "etc/secret", 12, 34)
    (root / "etc/closed").chmod(0o555)


def fill_configuration(root: Path) -> None:
    """What `/etc/sys` holds."""
    (root / "keys").mkdir(parents=True)
    (root / "net.conf").write_text("first=1\n")
    (root / "removed.conf").write_text("the update removes this\n")
    (root / "keys/private").write_text("k" * 100)
    (root / "keys/private").chmod(0o400)
    os.setxattr(root / "keys/private", "user.note", b"kept")
    os.link(root / "net.conf", root / "same.conf")
    (root / "current").symlink_to("net.conf")
    (root / "keys").chmod(0o500)


class Packages:
    """Builds each package once; a package is told by its arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, Path] = {}

    def make(
        self, version: str = "1.2.0", *, number: int = 2, program: str = PROGRAM, health: str = "", **more: Any
    ) -> Path:
        """The path of a package; `health` is a shell command, `more` goes into the metadata."""
        key = json.dumps([version, number, program, health, more], sort_keys=True)
        if key not in self._made:
            source = Path(tempfile.mkdtemp(dir=self.folder))
            self._made[key] = self._build(source, version, number, program, health, more)
        return self._made[key]

    def _build(self, source: Path, version: str, number: int, program: str, health: str, more: dict[str, Any]) -> Path:
        (source / "assets/bin").mkdir(parents=True)
        (source / "assets/bin/hello").write_text(version)
        (source / "assets/bin/added").write_text("new")
        (source / "assets/bin/added").chmod(0o755)
        (source / "assets/lib").mkdir()
        (source / "assets/lib/data").write_bytes(version.encode() * 3000)
        (source / "assets/lib/link").symlink_to("data")
        (source / "assets/empty").mkdir()
        (source / "update").write_text(program)
        (source / "update").chmod(0o755)
        metadata: dict[str, Any] = {
            "format": 1,
            "name": NAME,
            "kind": "system",
            "version": version,
            "update_number": number,
        }
        if health:
            metadata["health"] = [{"name": "hello", "command": ["sh", "-c", health], "tries": 1}]
        (source / "metadata").write_text(json.dumps(metadata | more))
        output = source.with_suffix(".nsu")
        build(source, output)
        shutil.rmtree(source)
        return output


class World:
    """One device in `folder`."""

    def __init__(self, folder: Path, kind: str, packages: Packages) -> None:
        self.folder, self.kind, self.packages = folder, kind, packages
        self.config = folder / "otaflow.toml"

    @property
    def root(self) -> Path:
        return self.folder / "device"

    def device(self) -> Device:
        """The device as a process that begins now sees it."""
        return Device(load(self.config))

    @property
    def partitions(self) -> Sequence[Path]:
        """What the slots are, where they are partitions."""
        return images(self.folder)

    def configure(self, more: str = "") -> None:
        """Write the configuration file; `more` is TOML."""
        values = f'[device]\nname = "demo"\nmodel = "{MODEL}"\nroot = "device"\n[slots]\nkind = "{self.kind}"\n'
        if self.kind == "partitions":
            values += f"devices = {json.dumps([str(device) for device in self.partitions])}\n"
        self.config.write_text(values + more)

    # --- work in this process -------------------------------------------------------------------------------------

    @contextmanager
    def ucm(self) -> Iterator[Ucm]:
        """The update manager without Prefect, as `otaflow recover` has it."""
        from otaflow.cli.common import working

        with working(self.device(), prefect=False, view=False) as (ucm, _):
            yield ucm

    def install(self, action: Action) -> None:
        """A whole update; raises what it ended with."""
        with self.ucm() as ucm:
            ucm.install(action)

    def action(self, kind: str) -> Action:
        """One of the ways back, as `otaflow rollback` asks for it."""
        device = self.device()
        entry = device.backups.latest()
        assert entry is not None
        if kind == "snapshot":
            system = device.running_system()
            return Action("snapshot", NAME, system.version, system.update_number, backup=entry.id)
        if kind == "backup":
            return Action("backup", NAME, entry.version, entry.update_number, backup=entry.id)
        former = read_label(device.slots.path(device.spare()))
        return Action("previous-slot", NAME, former.version, former.update_number)

    def up(self, package: Path | None = None, version: str = "1.2.0", number: int = 2) -> Action:
        """The action that installs `package`, by default a good one."""
        path = package or self.packages.make()
        return Action("up", NAME, version, number, package=str(path), facts={"from_version": "1.1.0"})

    # --- what can be seen -----------------------------------------------------------------------------------------

    def picture(self) -> Picture:
        """Everything of the device but its record of the past; equal pictures are equal devices.

        OSTree's repository is derived, and not in it.
        """
        entries: Picture = {
            name: value[:-1] if _is_own(self.root, name) else value
            for name, value in describe(self.root, times=True).items()
            if not _is_record(name)
            and not _is_idle_folder(self.root, name)
            and not name.startswith(f"slots/{REPOSITORY}")
        }
        device = self.device()
        entries["?subvolumes"] = [n for n in entries if self.kind == "btrfs" and is_subvolume(self.root / n)]
        entries["?state"] = str(device.journal.state)
        entries["?open intents"] = (
            [i.id for i in device.journal.open_intents()] if device.journal.state != "Idle" else []
        )
        entries["?running"] = device.boot.running()
        return entries

    def outcome(self) -> Picture:
        """The picture without what differs between two good updates: generations, times, the names of new backups."""
        device = self.device()
        outcome: Picture = {}
        for name, value in self.picture().items():
            if name.endswith((".otaflow.json", "entry.json", "index.json", "full.tar")):
                value = value[:5]
            elif isinstance(value, tuple):
                value = value[:6]
            outcome[name] = value
        text = repr(sorted(outcome.items()))
        for number, entry in enumerate(device.backups):
            text = text.replace(entry.id, f"backup {number}")
        outcome = dict(ast.literal_eval(text))
        running = device.running_system()
        outcome["?label"] = (running.name, running.version, running.update_number)
        outcome["?promise kept"] = device.boot.promise() == running.generation
        outcome["?target runs"] = device.boot.target() == device.boot.running()
        return outcome

    def resolutions(self) -> list[tuple[str, str]]:
        """Version and resolution of each record of the history."""
        return [(record["version"], record["resolution"]) for record in self.device().history.read()]

    def last(self) -> dict[str, Any]:
        """The newest record of the history."""
        return self.device().history.read()[-1]

    # --- making ---------------------------------------------------------------------------------------------------

    def make(self) -> None:
        """Make the device with its past."""
        sample = self.folder / "sample"
        fill_system(sample / "system", "1.0.0")
        fill_configuration(sample / "configuration")
        self.configure()
        device = self.device()
        init_device(
            device,
            system=sample / "system",
            name=NAME,
            version="1.0.0",
            configuration=sample / "configuration",
        )
        (device.main / "home").mkdir()
        (device.main / "home/data").write_text("what the users did")
        self.install(self.up(self.packages.make("1.1.0", number=1), "1.1.0", 1))
        (device.main / "home/data").write_text("what the users did since")
        shutil.rmtree(sample)

    def copy(self, folder: Path) -> "World":
        """The same device once more, in the new `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self.config, folder / "otaflow.toml")
        other = World(folder, self.kind, self.packages)
        subvolumes = self.picture()["?subvolumes"]
        if not subvolumes:
            subprocess.run(["cp", "-a", self.root, other.root], check=True)
            return other
        _copy_around(self.root, other.root, set(subvolumes))
        for name in subvolumes:
            writable = "ro=false" in _btrfs("property", "get", self.root / name, "ro")
            _btrfs("subvolume", "snapshot", *([] if writable else ["-r"]), self.root / name, other.root / name)
        for entry in self.device().backups.folder.iterdir():
            shutil.copystat(entry, other.device().backups.folder / entry.name)
        return other


def _btrfs(*arguments: str | Path) -> str:
    return subprocess.run(["btrfs", *arguments], check=True, capture_output=True, text=True).stdout


def _copy_around(source: Path, target: Path, subvolumes: set[str], name: str = "") -> None:
    target.mkdir()
    for path in source.iterdir():
        inner = f"{name}/{path.name}".lstrip("/")
        if inner in subvolumes:
            continue
        if path.is_dir():
            _copy_around(path, target / path.name, subvolumes, inner)
        else:
            shutil.copy2(path, target / path.name)
    shutil.copystat(source, target)


def _is_record(name: str) -> bool:
    first, _, rest = name.partition("/")
    return first == "nvm" and rest.partition("/")[0] in RECORDS


def _is_own(root: Path, name: str) -> bool:
    """What otaflow itself keeps: its times tell only that something was there for a while."""
    own = (".", "slots", "slots/.kept", "backups", "nvm", "cache", "cache/extracted", "index.json", "nvm/running.json")
    return name in own


def _is_idle_folder(root: Path, name: str) -> bool:
    """Two folders are made when they are first needed, and stay, empty."""
    return name in ("slots/.kept", "cache/extracted") and not any((root / name).iterdir())


@contextmanager
def working_on(world: World) -> Iterator[Device]:
    """`device()` is the world's, for tests of single steps."""
    with using(world.device()) as device, device.lock:
        yield device


def differences(one: Picture, other: Picture) -> dict[str, Any]:
    """What is not the same, for a message that can be read."""
    names = one.keys() | other.keys()
    return {name: (one.get(name), other.get(name)) for name in sorted(names) if one.get(name) != other.get(name)}


# --- the stories whose every moment is tried --------------------------------------------------------------------------

FAILING = PROGRAM + 'echo "it cannot be done" >&2\nexit 3\n'
SICK = "echo sick >&2; exit 1"
STORIES: dict[str, Callable[[World], Action]] = {
    "good": lambda world: world.up(),
    "failing program": lambda world: world.up(world.packages.make(program=FAILING)),
    "sick system": lambda world: world.up(world.packages.make(health=SICK)),
    "previous-slot": lambda world: world.action("previous-slot"),
    "backup": lambda world: world.action("backup"),
    "snapshot": lambda world: world.action("snapshot"),
}


@functools.cache
def recorded() -> dict[str, list[str]]:
    """Every fault point that each story passes, in order: steps, their undo, and transitions."""
    passed: dict[str, list[str]] = {}
    point, fault.point = fault.point, lambda name: names.append(name)
    try:
        with tempfile.TemporaryDirectory(prefix="otaflow-test-") as folder:
            template = World(Path(folder, "template"), "directories", Packages(Path(folder)))
            names: list[str] = []
            template.make()
            for story, choose in STORIES.items():
                world = template.copy(Path(folder, story))
                names = []
                with contextlib.suppress(OtaflowError):
                    world.install(choose(world))
                passed[story] = list(dict.fromkeys(names))
    finally:
        fault.point = point
    return passed
