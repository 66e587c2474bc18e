"""SIGKILL at any moment: what was answered is there, and the transfer goes on.

A child works through transfers and says each answer in a line of its own; the parent kills it, at a random moment or at
a named one, opens the store and compares.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from otaflow.transfer.cached import PackageState
from otaflow.transfer.store import Accepted, Transfers

BLOCK = 20_000

CHILD = """
import json, sys
from pathlib import Path
from random import Random
from otaflow.transfer.store import Accepted, Transfers

BLOCK = 20_000
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
random = Random(seed)

def say(*words):
    sys.stdout.write(json.dumps(words) + "\\n")
    sys.stdout.flush()

def content(size):
    return Random(size).randbytes(size)

store = Transfers(folder, block_size=BLOCK, timeout_seconds=1e9, keep_free=0)
while True:
    going_on = [info for info in store.packages() if info.state == "kTransferring"]
    if going_on and random.random() < 0.8:
        info = random.choice(going_on)
        id, size, at, number = info.id, info.size, info.consecutive_bytes_received, info.consecutive_blocks_received
    else:
        size, at, number = random.randint(1, 200_000), 0, 0
        id = store.start(size).id
        say("start", id, size)
    while at < size and random.random() < 0.9:
        number += 1
        at = store.data(id, number, content(size)[at : at + BLOCK])
        say("data", id, number)
    if at == size:
        say("exiting", id)
        store.exit(id, lambda path: Accepted("name", "1.0.0"))
        say("exit", id)
    if random.random() < 0.3:
        say("deleting", id)
        store.delete(id)
        say("delete", id)
    if len(store.packages()) > 12:
        for info in store.packages()[:6]:
            say("deleting", info.id)
            store.delete(info.id)
            say("delete", info.id)
"""

POINTS = [
    "transfer.start.made",
    "transfer.start.named",
    "transfer.data.written",
    "transfer.data.counted",
    "transfer.exit.accepted",
    "transfer.exit.recorded",
    "transfer.delete.renamed",
    "transfer.delete.removed",
]


class Answers:
    """What the child was told, over all its lives."""

    def __init__(self) -> None:
        self.size: dict[str, int] = {}
        self.blocks: dict[str, int] = {}
        self.exited: set[str] = set()
        self.asked: set[tuple[str, str]] = set()
        """What was begun, and perhaps not answered."""

    def add(self, lines: list[list[Any]]) -> None:
        for word, id, *rest in lines:
            match word:
                case "start":
                    self.size[id], self.blocks[id] = rest[0], 0
                case "data":
                    self.blocks[id] = rest[0]
                case "exit":
                    self.exited.add(id)
                case "delete":
                    self.forget(id)
                case _:
                    self.asked.add((word, id))

    def forget(self, id: str) -> None:
        self.size.pop(id, None)
        self.blocks.pop(id, None)

    def compare(self, folder: Path) -> None:
        """What was answered is there; of what was not, at most one call took effect."""
        store = Transfers(folder, block_size=BLOCK, timeout_seconds=1e9, keep_free=0)
        infos = {info.id: info for info in store.packages()}
        assert {path.name for path in folder.iterdir()} == set(infos)
        for id in set(self.size) - set(infos):
            assert ("deleting", id) in self.asked, "a package is lost"
            self.forget(id)
        unanswered = 0
        for id, info in infos.items():
            if id not in self.size:
                assert info.consecutive_blocks_received == 0
                self.size[id], self.blocks[id] = info.size, 0
                unanswered += 1
            blocks = self.blocks[id]
            assert info.size == self.size[id]
            assert info.consecutive_blocks_received in (blocks, blocks + 1)
            assert info.consecutive_bytes_received == min(info.size, info.consecutive_blocks_received * BLOCK)
            unanswered += info.consecutive_blocks_received - blocks
            self.blocks[id] = info.consecutive_blocks_received
            if info.state is PackageState.TRANSFERRED:
                assert ("exiting", id) in self.asked
                unanswered += id not in self.exited
                self.exited.add(id)
            else:
                assert id not in self.exited
            have = info.consecutive_bytes_received
            expected = Random(info.size).randbytes(info.size)
            assert (folder / id / "package").read_bytes()[:have] == expected[:have]
        assert unanswered <= 1

    def finish(self, folder: Path) -> None:
        """Every transfer can be brought to its end."""
        store = Transfers(folder, block_size=BLOCK, timeout_seconds=1e9, keep_free=0)
        for info in store.packages():
            content, number = Random(info.size).randbytes(info.size), info.consecutive_blocks_received
            while number * BLOCK < info.size:
                store.data(info.id, number + 1, content[number * BLOCK : (number + 1) * BLOCK])
                number += 1
            if info.state is PackageState.TRANSFERRING:
                store.exit(info.id, lambda path: Accepted("name", "1.0.0"))
            assert store.path(info.id).read_bytes() == content


def run_child(folder: Path, seed: int, *, seconds: float | None = None, fault: str = "") -> list[list[Any]]:
    """The whole lines of a child that was killed after `seconds` of work, or that killed itself at `fault`."""
    environment = os.environ | ({"OTAFLOW_FAULT": f"{fault}:kill"} if fault else {})
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, folder, str(seed)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert child.stdout
        first = child.stdout.readline()
        if seconds is not None:
            time.sleep(seconds)
            child.kill()
        rest = child.stdout.read()
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -9
    lines = (first + rest).split("\n")[:-1]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random(tmp_path: Path, seed: int) -> None:
    random, answers, folder = Random(seed), Answers(), tmp_path / "cache"
    for _ in range(12):
        answers.add(run_child(folder, random.randrange(10**6), seconds=random.random() ** 2 * 0.3))
        answers.compare(folder)
    answers.finish(folder)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(tmp_path: Path, point: str) -> None:
    answers, folder = Answers(), tmp_path / "cache"
    for seed in range(4):
        answers.add(run_child(folder, seed, fault=point))
        answers.compare(folder)
    answers.finish(folder)
