"""What grows on a device that is updated again and again, and what may: rules that no machine's speed bears on.

By design these grow with each good update: the history, by a record for each action, and the incremental backups, which
stay for ever. Everything else has a bound.
"""

import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cycle_machine import CycleInside

from otaflow.journal import COMPACT_BYTES
from otaflow.platform.btrfs import BtrfsTrees
from otaflow.platform.flight_recorder import FILES
from otaflow.tasks.cleanup import KEPT_LOGS

MIB = 2**20
SESSION_BYTES = 32 * 1024
"""What one session adds to the journal at most; it is compacted at its end."""
RECORD_BYTES = 1024
CALM = 12 * MIB
"""What the disk may be larger by without the backups and otaflow's own records: 4 MiB of the machine's journal, two
slots that differ, and what btrfs needs to keep it."""
MEMORY = 4 * MIB
"""What a process may have more than in the cycles before: the allocator's grain."""


@dataclass
class Figures:
    """What was measured when a device was at rest; bytes, and numbers of things."""

    disk: int
    rest: int
    """Applications, cache, data, dumps, the main partition: what their files hold."""
    records: int
    """`nvm`, without the history."""
    history: int
    journal: int
    logs: int
    boot_logs: int
    ends: int
    """Records of the history."""
    backups: int
    full: int
    """Of these, the ones that are whole."""
    subvolumes: int
    systemd: int
    agent: int


def measure(world: CycleInside, agent: int = 0) -> Figures:
    """The figures of a device at rest; `agent` is the memory of one that ran."""
    device = world.device()
    nvm = device.nvm
    entries = [world.device().backups.path(entry.id) for entry in device.backups]
    return Figures(
        disk=disk_bytes(world.folder),
        rest=sum(folder_bytes(world.root / name) for name in ("applications", "cache", "data", "dumps", "main")),
        records=folder_bytes(nvm) - (nvm / "history").stat().st_size,
        history=(nvm / "history").stat().st_size,
        journal=(nvm / "journal").stat().st_size,
        logs=len(list(device.logs.glob("*.log"))),
        boot_logs=len(list(device.logs.glob("*.boot"))),
        ends=len(device.history.read()),
        backups=len(entries),
        full=sum((entry / "full.tar").exists() for entry in entries),
        subvolumes=len(world.subvolumes()),
        systemd=own_memory(world.machine.pid),
        agent=agent,
    )


def own_memory(pid: int) -> int:
    """The memory that a process has for itself (RssAnon), in bytes: it does not depend on what else runs."""
    for line in Path("/proc", str(pid), "status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no RssAnon of {pid}")


def disk_bytes(folder: Path) -> int:
    """What the btrfs has in use, when what was removed is really gone."""
    subprocess.run(["btrfs", "filesystem", "sync", folder], check=True, capture_output=True)
    subprocess.run(["btrfs", "subvolume", "sync", folder], check=True, capture_output=True)
    lines = subprocess.check_output(["btrfs", "filesystem", "df", "--raw", folder], text=True).splitlines()
    return sum(int(line.split("used=")[1]) for line in lines if not line.startswith("GlobalReserve"))


def folder_bytes(folder: Path) -> int:
    """What the files below `folder` hold, as their sizes say."""
    sizes = (path.lstat() for path in folder.rglob("*"))
    return sum(one.st_size for one in sizes if stat.S_ISREG(one.st_mode))


def find_growth(figures: Sequence[Figures], good: int, cleaned: int) -> list[str]:
    """Which rules the figures break, the first being of the start: `good` updates, cleaned up every `cleaned` cycles.

    The last third of the cycles is held against the third before it, since a device needs some to come to rest.
    """
    third = len(figures) // 3
    before, last, end = figures[third : 2 * third], figures[2 * third :], figures[-1]
    wrong = []

    def bound(name: str, found: float, most: float) -> None:
        if found > most:
            wrong.append(f"{name}: {found:.0f}, at most {most:.0f}")

    def compare(name: str, of: Callable[[Figures], int], more: int) -> None:
        bound(f"{name}, last third", max(map(of, last), default=0), max(map(of, before), default=0) + more)

    compare("memory of systemd", lambda one: one.systemd, MEMORY)
    if any(one.agent for one in before):
        compare("memory of the agent", lambda one: one.agent, MEMORY)
    compare("files beside slots and backups", lambda one: one.rest, 64 * 1024)
    compare("whole backups", lambda one: one.full, 0 if third >= 2 * cleaned else cleaned)
    bound("the journal", max(one.journal for one in figures), COMPACT_BYTES + SESSION_BYTES)
    bound("the history", end.history, end.ends * RECORD_BYTES)
    bound("logs of sessions", end.logs, KEPT_LOGS + 2 * cleaned)
    bound("logs of boots", end.boot_logs, FILES)
    bound("backups", end.backups, good)
    bound("subvolumes", end.subvolumes - figures[0].subvolumes, 2 * end.backups + end.full)
    slopes = [_slope(part, cleaned) for part in (before, last)]
    if None not in slopes:
        bound("bytes of the disk for each backup", slopes[1] or 0, (slopes[0] or 0) * 1.5 + 64 * 1024)
    return wrong


def _slope(part: Sequence[Figures], cleaned: int) -> float | None:
    """How much the disk has grown for each backup that stays; None where that cannot be told yet."""
    if len(part) < 3 * cleaned:
        return None
    least = [min(part[place : place + cleaned], key=lambda one: one.full) for place in (0, len(part) - cleaned)]
    more = least[1].backups - least[0].backups
    return (least[1].disk - least[0].disk) / more if more else None


def disk_without_backups(world: CycleInside, start: Figures) -> tuple[int, int, int]:
    """Remove every backup: what the disk had in use at the start, what it has now, and the most that it may have."""
    device = world.device()
    for entry in device.backups.folder.iterdir():
        BtrfsTrees().remove(entry)
    now = measure(world)
    grown = 2 * (now.records - start.records + now.history - start.history)
    return start.disk, now.disk, start.disk + grown + CALM
