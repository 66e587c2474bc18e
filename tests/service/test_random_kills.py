"""SIGKILL from outside, at any moment, while a slow update program and its children write."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from update_world import PROGRAM, World, differences

SLOW = (
    PROGRAM
    + """
write() { n=0; while :; do n=$((n + 1)); echo $n > "$OTAFLOW_SLOT/$1"; echo $n > "$OTAFLOW_ETC/$1"; sleep 0.01; done; }
write one & setsid sh -c 'while :; do date > "$OTAFLOW_SLOT/two"; sleep 0.01; done' &
write three
"""
)
INSTALL = """
import sys, json
from pathlib import Path
from otaflow.action import Action
from otaflow.work import load_device, working
if sys.argv[3] == "marked":
    from otaflow.platform import sandbox
    sandbox.enforced = lambda: False
with working(load_device(Path(sys.argv[1])), prefect=False) as (ucm, _):
    ucm.install(Action(**json.loads(sys.argv[2])))
"""


def processes_of(world: World) -> list[int]:
    """Whoever has the world's folder in its environment."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and f"OTAFLOW_SLOT={world.root}".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize(
    "guard", [pytest.param("enclosed", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")), "marked"]
)
def test_killed_at_any_moment(world: World, guard: str, seed: int, zygote: Any) -> None:
    import json

    before = world.picture()
    action = world.up(world.packages.make(program=SLOW))
    arguments = [str(world.config), json.dumps(action.record()), guard]
    process = subprocess.Popen([sys.executable, "-c", INSTALL, *arguments], stderr=subprocess.DEVNULL)
    journal = world.device().nvm / "journal"
    size = journal.stat().st_size
    while journal.stat().st_size == size:
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(random.Random(seed).uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert zygote.run(world, "recover") == 0
    assert processes_of(world) == []
    assert differences(before, world.picture()) == {}
    assert [end for _, end in world.resolutions()[1:]] == ["kFailed"]
