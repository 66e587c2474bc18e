"""500 MB into the store by four threads at once, beside `cp` and fsync of as many bytes on the same disk.

    python bench/transfer.py [FOLDER] [--rounds N]

Prints the rate of each round and the ratio of the medians; the aim is 70 %. Work that the machine has besides makes
single rounds slow, hence the ratio of the best rounds, too. FOLDER decides the disk (default: here).
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from otaflow.transfer.store import Accepted, Transfers

BYTES = 500 * 10**6
CLIENTS = 4


def time_copy(folder: Path, source: Path) -> float:
    """Seconds of `cp` and fsync."""
    target = folder / "copy"
    begin = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
    subprocess.run(["sync", target], check=True)
    seconds = time.perf_counter() - begin
    target.unlink()
    return seconds


def send(store: Transfers, source: Path) -> None:
    """One client: read its part of the bytes and send it in blocks."""
    size = BYTES // CLIENTS
    started = store.start(size)
    with source.open("rb") as file:
        counter = done = 0
        while done < size:
            block = file.read(min(started.block_size, size - done))
            counter += 1
            done = store.data(started.id, counter, block)
    store.exit(started.id, lambda path: Accepted("bench", "1.0.0"))


def time_transfers(folder: Path, source: Path) -> float:
    """Seconds of all clients together, from TransferStart to TransferExit."""
    store = Transfers(folder / "cache", timeout_seconds=3600)
    begin = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(send, [store] * CLIENTS, [source] * CLIENTS))
    seconds = time.perf_counter() - begin
    for info in store.packages():
        store.delete(info.id)
    return seconds


def measure(folder: Path, rounds: int) -> None:
    """Alternate both, so that a change of the disk's mood meets both."""
    source = folder / "source"
    source.write_bytes(os.urandom(BYTES))
    os.sync()
    copies, transfers = [], []
    for number in range(rounds):
        copies.append(time_copy(folder, source))
        os.sync()
        transfers.append(time_transfers(folder, source))
        os.sync()
        rates = f"cp + fsync {BYTES / copies[-1] / 1e6:7.0f} MB/s   transfer {BYTES / transfers[-1] / 1e6:7.0f} MB/s"
        print(f"round {number + 1}: {rates}")
    load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    print(f"ratio of the medians: {statistics.median(copies) / statistics.median(transfers):.0%} (aim: 70 %), {load}")
    print(f"ratio of the best: {min(copies) / min(transfers):.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder), options.rounds)


if __name__ == "__main__":
    main()
