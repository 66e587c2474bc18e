"""The tables of `make test-machines`."""

from collections.abc import Callable

from cycle_bench import Cycles
from cycle_figures import MIB, Figures
from rich.console import Console
from rich.table import Table

Tell = Callable[[Figures], str]


def show(cycles: Cycles, seconds: float, disk: tuple[int, int], console: Console) -> None:
    """What was done, and what was measured at the start, in the middle and at the end."""
    done = Table(title=f"{cycles.count} cycles, {sum(cycles.starts.values())} starts, {seconds:.0f} s")
    for name in ("the update", "cycles", "starts of the machine"):
        done.add_column(name, justify="left" if name == "the update" else "right")
    done.add_row("is good", str(cycles.good), str(cycles.starts[""]))
    for name, count in cycles.broken.items():
        done.add_row(name, str(count), str(cycles.starts[name]))
    console.print(done)
    measured = Table(title="measured")
    figures = cycles.figures
    places = [0, *(len(figures) * part // 3 for part in (1, 2)), len(figures) - 1]
    measured.add_column("after cycle")
    for place in places:
        measured.add_column(str(place), justify="right")
    for name, tell in ROWS.items():
        measured.add_row(name, *(tell(figures[place]) for place in places))
    measured.add_row("agent, MiB", *(_agent(figures, place) for place in places))
    console.print(measured)
    console.print(f"disk without backups: {disk[0] / MIB:.1f} MiB at the start, {disk[1] / MIB:.1f} MiB at the end")


def _mib(of: str) -> Tell:
    return lambda one: f"{getattr(one, of) / MIB:.2f}"


def _count(*of: str) -> Tell:
    return lambda one: " / ".join(str(getattr(one, name)) for name in of)


def _agent(figures: list[Figures], place: int) -> str:
    """Of the last agent that ran until then."""
    known = [one.agent for one in figures[: place + 1] if one.agent]
    return f"{known[-1] / MIB:.1f}" if known else "-"


ROWS: dict[str, Tell] = {
    "disk in use, MiB": _mib("disk"),
    "backups / whole ones": _count("backups", "full"),
    "subvolumes": _count("subvolumes"),
    "applications, data, cache, MiB": _mib("rest"),
    "history, MiB": _mib("history"),
    "journal, MiB": _mib("journal"),
    "other records and logs, MiB": _mib("records"),
    "systemd, MiB": _mib("systemd"),
}
