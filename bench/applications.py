"""What an application's update costs by its size and by what changes: seconds, and bytes that the disk lost.

python -m bench.applications [--megabytes 200 2000] [--changed 20] [--rounds 3] [--folder /somewhere]

The same change is installed in applications of each size, on btrfs. Beside it: a copy of the changed files with `cp`
and an fsync, and the package's own extraction, which every update does first.
"""

import argparse
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from statistics import median

from bench import disk
from otaflow.action import Action
from otaflow.config import parse
from otaflow.files import sync_file_system
from otaflow.package.build import build
from otaflow.package.extract import extract
from otaflow.platform.device import Device
from otaflow.platform.setup import init_device
from otaflow.work import working

FILE_BYTES = 1_000_000


def make_device(top: Path) -> Device:
    """A device on btrfs with an empty system."""
    values = {
        "device": {"name": "bench", "model": "bench", "root": str(top / "device")},
        "slots": {"kind": "btrfs"},
        "services": {"kind": "processes", "settle_seconds": 0},
    }
    device = Device(parse(values, top / "otaflow.toml"))
    init_device(device, system=None, name="system", version="1.0.0", configuration=None)
    return device


def make_package(top: Path, version: str, before: str, megabytes: int) -> Path:
    """A package with that many files of a megabyte; each update has other content."""
    source = top / f"source-{version}"
    (source / "files/data").mkdir(parents=True)
    for number in range(megabytes):
        (source / f"files/data/{number:05}").write_bytes(os.urandom(FILE_BYTES))
    metadata = {"format": 1, "name": "big", "kind": "application", "version": version, "update_number": 1}
    if before:
        metadata["applies_to"] = {"versions": before}  # type: ignore[assignment]
    (source / "metadata").write_text(json.dumps(metadata))
    package = top / f"{version}.nua"
    build(source, package)
    shutil.rmtree(source)
    return package


def install(device: Device, package: Path, version: str, kind: str) -> float:
    """The seconds of the whole update, all steps, without Prefect."""
    began = time.perf_counter()
    with working(Device(device.config), prefect=False) as (ucm, _):
        ucm.install(Action(kind, "big", version, 1, package=str(package)))  # type: ignore[arg-type]
    return time.perf_counter() - began


def used(top: Path) -> int:
    """The bytes that are taken on the disk of `top`."""
    sync_file_system(top)
    state = os.statvfs(top)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def copied(package: Path, top: Path) -> tuple[float, float]:
    """The seconds of extracting the package, and of copying what is in it, durable."""
    target = top / "extracted"
    began = time.perf_counter()
    extract(package, target)
    extracted = time.perf_counter() - began
    sync_file_system(top)
    began = time.perf_counter()
    subprocess.run(["cp", "-a", "--reflink=never", target / "files", top / "copy"], check=True)
    sync_file_system(top)
    seconds = time.perf_counter() - began
    for folder in (target, top / "copy"):
        shutil.rmtree(folder)
    return extracted, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--changed", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    print(f"### an application's update that changes {chosen.changed} MB, on btrfs, median of {chosen.rounds}\n")
    print("| application | update, s | of it extraction, s | `cp` + sync of the change, s | taken on the disk, MB |")
    print("| --- | --- | --- | --- | --- |")
    for megabytes in chosen.megabytes:
        with disk.disk("btrfs", chosen.folder) as top:
            device = make_device(top)
            package = make_package(top, "1.0.0", "", megabytes)
            install(device, package, "1.0.0", "install")
            package.unlink()
            taken, extracted, copies, grown = [], [], [], []
            for number in range(1, chosen.rounds + 1):
                package = make_package(top, f"1.{number}.0", f"1.{number - 1}.0", chosen.changed)
                before = used(top)
                taken.append(install(device, package, f"1.{number}.0", "update"))
                grown.append((used(top) - before) / 1e6)
                for kept, value in zip((extracted, copies), copied(package, top), strict=True):
                    kept.append(value)
            print(
                f"| {megabytes} MB | {median(taken):.2f} | {median(extracted):.2f} | {median(copies):.2f} "
                f"| {median(grown):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
