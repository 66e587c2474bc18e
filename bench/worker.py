"""One measured piece of work in a process of its own: `python -m bench.worker '{"work": …}'`, the figures as JSON.

A fresh process for each, so that the peak of one is not the start of the next.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.meter import Meter
from otaflow import progress
from otaflow.action import Action
from otaflow.config import parse
from otaflow.flows.phase import phase
from otaflow.platform.device import Device, using
from otaflow.platform.setup import init_device

NAME = "bench-system"
START_SECONDS = 60.0
QUIET_PERCENT = 10.0


@phase("warm up")
def warm_up() -> None:
    """A phase without a step: Prefect's engine is imported, and its clients connect."""


def open_device(top: str, kind: str) -> Device:
    """The device below `top`."""
    values = {"device": {"name": "bench", "model": "bench", "root": "device"}, "slots": {"kind": kind}}
    return Device(parse(values, Path(top) / "otaflow.toml"))


def make_device(top: str, kind: str, system: str, first: str) -> dict[str, Any]:
    """A device that was updated once (by the small package `first`), so that there is a backup to build upon."""
    from otaflow.service import Ucm

    device = open_device(top, kind)
    device.root.mkdir()
    (device.root / "main").parent.mkdir(exist_ok=True)
    init_device(device, system=Path(system), name=NAME, version="1.0.0", configuration=None)
    with using(device), device.lock:
        Ucm(device).install(Action("up", NAME, "1.0.1", 1, package=first))
        for full in device.backups.folder.glob("*/full.tar"):
            full.unlink()
    return {}


def update(top: str, kind: str, package: str, version: str, prefect: bool) -> dict[str, Any]:
    """A whole update, and what each step, phase and gap between them took (seconds)."""
    device = open_device(top, kind)
    happened: list[tuple[float, str, str, float]] = []

    def listen(event: progress.Event) -> None:
        if event.kind in ("step", "done", "state"):
            happened.append((time.perf_counter(), event.kind, event.name, float(event.facts.get("seconds", 0))))

    with ExitStack() as stack:
        stack.enter_context(using(device))
        stack.enter_context(device.lock)
        stack.enter_context(progress.listening(listen))
        from otaflow.service import Ucm

        runs, server = _start_prefect(device, stack) if prefect else (None, None)
        with Meter(apart=server) as meter:
            started = time.perf_counter()
            Ucm(device, runs).install(Action("up", NAME, version, 2, package=package))
            happened.append((time.perf_counter(), "state", "end", 0))
        steps = [(name, seconds) for _, kind_, name, seconds in happened if kind_ == "done"]
        timeline = [(round(at - started, 4), kind_, name) for at, kind_, name, _ in happened]
    return {"cost": meter.cost.record(), "steps": steps, "timeline": timeline}


def tar(top: str, kind: str, package: str) -> dict[str, Any]:
    """What the update is held against: a copy of the slot, `tar xzf` of the same package into it, sync."""
    device = open_device(top, kind)
    with using(device), Meter() as meter:
        spare, slots = device.spare(), device.slots
        device.slots.copy(device.boot.running(), spare, "bench")
        taken = ["tar", "-xzf", package, "-C", str(slots.path(spare)), "--strip-components=1", "--no-same-owner"]
        subprocess.run([*taken, "assets"], check=True)
        slots.sync(spare)
    return {"cost": meter.cost.record()}


def _start_prefect(device: Device, stack: ExitStack) -> tuple[Any, int | None]:
    """Prefect's embedded server, running and warm: its start is not the update's."""
    import psutil

    from otaflow.work import prepare_prefect

    prepare_prefect(device)
    from otaflow.flows.session import PrefectRuns

    runs = PrefectRuns(device)
    stack.callback(runs.close)
    runs.run(warm_up, {})
    servers = psutil.Process().children()
    if not servers:
        return runs, None
    # It answers long before its services have all started.
    deadline = time.monotonic() + START_SECONDS
    while servers[0].cpu_percent(interval=1) > QUIET_PERCENT and time.monotonic() < deadline:
        pass
    return runs, servers[0].pid


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    figures = globals()[arguments.pop("work")](**arguments)
    sys.stdout.flush()
    os.write(1, b"\n" + json.dumps(figures).encode() + b"\n")
