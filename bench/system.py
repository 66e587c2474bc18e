"""Systems made of numbers: the same seed makes the same files, about half of which gzip can take away."""

import random
import shutil
from pathlib import Path

from otaflow.package.build import build

WORDS = [b"kernel ", b"module ", b"return ", b"0x00000000 ", b"library\n", b"the ", b"= NULL;\n", b"static int "]
FILES_IN_FOLDER = 40

WHOLE = """#!/bin/sh
set -e
find "$OTAFLOW_SLOT" -mindepth 1 -maxdepth 1 ! -name '.otaflow*' -exec rm -rf {} +
cp -a --reflink=auto "$OTAFLOW_ASSETS/." "$OTAFLOW_SLOT/"
"""
CHANGED = """#!/bin/sh
set -e
cp -a --reflink=auto "$OTAFLOW_ASSETS/." "$OTAFLOW_SLOT/"
"""
METADATA = """format: 1
name: bench-system
kind: system
version: {version}
update_number: {number}
health:
  - {{name: there, command: [test, -d, "."], tries: 1}}
"""


def make_system(folder: Path, size: int, files: int, seed: int = 0) -> None:
    """Fill `folder` with `files` files of `size` bytes together: many small ones and a few big ones."""
    chance = random.Random(seed)
    weights = [chance.lognormvariate(0, 1.6) for _ in range(files)]
    unit = size / sum(weights)
    for number, weight in enumerate(weights):
        path = folder / f"d{number // FILES_IN_FOLDER:04d}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_content(chance, int(weight * unit)))


def take_changed(system: Path, assets: Path, share: float, seed: int = 1) -> None:
    """Put new contents for `share` of the system's files into `assets`; their sizes stay."""
    chance = random.Random(seed)
    files = sorted(path for path in system.rglob("f*") if path.is_file())
    goal = share * sum(path.stat().st_size for path in files)
    chance.shuffle(files)
    taken = 0
    for path in files:
        size = path.stat().st_size
        if taken + size > goal:
            continue
        taken += size
        target = assets / path.relative_to(system)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_content(chance, size))


def make_package(folder: Path, version: str, number: int, program: str) -> Path:
    """Build the package of `folder/assets` as `folder.nsu`; the folder goes."""
    (folder / "metadata").write_text(METADATA.format(version=version, number=number))
    (folder / "update").write_text(program)
    (folder / "update").chmod(0o755)
    package = folder.with_suffix(".nsu")
    build(folder, package)
    shutil.rmtree(folder)
    return package


def _content(chance: random.Random, size: int) -> bytes:
    """Blocks of noise and of words, in turn."""
    made = bytearray()
    while len(made) < size:
        made += chance.randbytes(1500)
        made += b"".join(chance.choices(WORDS, k=40)) * 8
    return bytes(made[:size])
