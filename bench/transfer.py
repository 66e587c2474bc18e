"""500 MB transferred by four clients at once, beside `cp` and fsync of as many bytes on the same disk.

    python -m bench.transfer [FOLDER] [--rounds N] [--only WAY ...]

Three ways, in turn with `cp` so that a change of the disk's mood meets all:

store    the store alone, four threads: what there is without HTTP
agent    `otaflow agent` on its Unix socket, four processes that use `otaflow.client`
curl     the same agent, four processes of curl

Timed is from before the first TransferStart to the answer to the last block, when all bytes are on the disk.
TransferExit, which reads the whole package again to check its signature, is not in it. Prints the rate of each round
and the ratio to `cp` + fsync, of the medians and of the best; the aim is 70 %. FOLDER decides the disk (default: here).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from otaflow.client import Client
from otaflow.config import load
from otaflow.errors import Offline
from otaflow.transfer.store import Transfers

BYTES = 500 * 10**6
CLIENTS = 4
SIZE = BYTES // CLIENTS
WAYS = ("store", "agent", "curl")
CONFIG = """
[device]
name = "bench"
model = "bench"
root = "device"
[slots]
kind = "directories"
"""


def warm(folder: Path) -> None:
    """Fill as much page cache as is going to be needed, and give it back.

    A virtual machine's host takes memory away that is free for two seconds, and to get it back costs more than to copy
    500 MB: who runs second would win.
    """
    path = folder / "warm"
    block = bytes(2**20)
    with path.open("wb") as file:
        for _ in range(BYTES // len(block) * 5 // 4):
            file.write(block)
    path.unlink()


def time_copy(folder: Path, source: Path) -> float:
    """Seconds of `cp` and fsync."""
    target = folder / "copy"
    warm(folder)
    begin = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
    subprocess.run(["sync", target], check=True)
    seconds = time.perf_counter() - begin
    target.unlink()
    return seconds


# --- the store alone --------------------------------------------------------------------------------------------------


def time_store(folder: Path, source: Path) -> float:
    """Seconds of four threads that put their blocks into a store."""
    store = Transfers(folder / "cache", timeout_seconds=3600)
    warm(folder)
    begin = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(put, [store] * CLIENTS, [source] * CLIENTS))
    seconds = time.perf_counter() - begin
    for info in store.packages():
        store.delete(info.id)
    return seconds


def put(store: Transfers, source: Path) -> None:
    """One client of the store."""
    started = store.start(SIZE)
    with source.open("rb") as file:
        for counter, size in enumerate(blocks(started.block_size), start=1):
            store.data(started.id, counter, file.read(size))


def blocks(block_size: int) -> list[int]:
    """The sizes of the blocks of one client."""
    return [min(block_size, SIZE - start) for start in range(0, SIZE, block_size)]


# --- over HTTP --------------------------------------------------------------------------------------------------------


@contextmanager
def agent(folder: Path) -> Iterator[tuple[int, Path]]:
    """An agent in a process of its own, on a device in `folder`; its process id and its socket."""
    config = folder / "otaflow.toml"
    config.write_text(CONFIG)
    (folder / "system").mkdir()
    otaflow = [sys.executable, "-c", "from otaflow.cli import main; main()"]
    environment = {"PREFECT_API_URL": "http://127.0.0.1:9/api", **os.environ, "OTAFLOW_CONFIG": str(config)}
    options: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    device = ["--system", str(folder / "system"), "--name", "bench", "--version", "1.0.0"]
    subprocess.run([*otaflow, "device", "init", *device], check=True, **options)
    values = load(config)
    process = subprocess.Popen([*otaflow, "agent"], **options)
    try:
        socket = values.path(values.api.socket)
        with Client(socket) as client:
            wait_for(client, process)
        yield process.pid, socket
    finally:
        process.terminate()
        process.wait()


def wait_for(client: Client, agent: "subprocess.Popen[bytes]") -> None:
    """Wait until the agent answers."""
    while agent.poll() is None:
        with suppress(Offline):
            client.current_status()
            return
        time.sleep(0.05)
    raise SystemExit("the agent does not start")


def time_agent(socket: Path, source: Path) -> float:
    """Seconds of four processes that use `otaflow.client`; they have imported it when the clock starts."""
    command = [sys.executable, "-m", "bench.transfer", "--send", str(socket), str(source)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    clients = [subprocess.Popen(command, **pipes) for _ in range(CLIENTS)]
    for client in clients:
        client.stdout.readline()
    warm(source.parent)
    begin = time.perf_counter()
    for client in clients:
        client.stdin.write("go\n")
        client.stdin.flush()
    for client in clients:
        client.stdout.readline()
    seconds = time.perf_counter() - begin
    for client in clients:
        client.communicate()
    delete_all(socket)
    return seconds


def send(socket: Path, source: Path) -> None:
    """One client, in a process of its own: it says that it is ready, and when it is done."""
    with Client(socket) as client, source.open("rb") as file:
        client.current_status()
        print("ready", flush=True)
        sys.stdin.readline()
        transfer = client.transfer_start(SIZE)
        for counter, size in enumerate(blocks(transfer.block_size), start=1):
            client.transfer_data(transfer.id, counter, file.read(size))
        print("done", flush=True)


def time_curl(socket: Path, source: Path, folder: Path) -> float:
    """Seconds of four processes of curl that post blocks which lie in files of their own."""
    with Client(socket) as client:
        begin = time.perf_counter()
        transfers = [client.transfer_start(SIZE) for _ in range(CLIENTS)]
        started = time.perf_counter() - begin
    split(source, transfers[0].block_size, folder)
    calls = []
    for number, transfer in enumerate(transfers):
        config = folder / f"curl-{number}"
        config.write_text(
            "next\n".join(
                f'unix-socket = "{socket}"\nurl = "http://ucm/ucm/TransferData?id={transfer.id}&blockCounter={counter}"\n'
                f'request = POST\nheader = "Content-Type: application/octet-stream"\nheader = "Expect:"\nfail\n'
                f'upload-file = "{folder}/block-{counter}"\n'
                for counter, _ in enumerate(blocks(transfer.block_size), start=1)
            )
        )
        calls.append(["curl", "-sS", "--no-progress-meter", "-K", str(config)])
    warm(folder)
    begin = time.perf_counter()
    clients = [subprocess.Popen(call, stdout=subprocess.PIPE) for call in calls]
    answers = [client.communicate()[0] for client in clients]
    seconds = time.perf_counter() - begin
    assert all(answer.endswith(b'{"consecutiveBytesReceived":%d}' % SIZE) for answer in answers), answers
    delete_all(socket)
    return started + seconds


def split(source: Path, block_size: int, folder: Path) -> None:
    """The blocks of one client as files, once; in the page cache, as the source is."""
    with source.open("rb") as file:
        for counter, size in enumerate(blocks(block_size), start=1):
            block = folder / f"block-{counter}"
            if not block.exists():
                file.seek((counter - 1) * block_size)
                block.write_bytes(file.read(size))
    os.sync()


def delete_all(socket: Path) -> None:
    """Nothing is left for the next round."""
    with Client(socket) as client:
        for package in client.get_sw_packages():
            client.delete_transfer(package["id"])


# --- what is printed --------------------------------------------------------------------------------------------------


def measure(folder: Path, rounds: int, only: list[str]) -> dict[str, list[float]]:
    """Seconds of each way in each round; prints the rates."""
    source = folder / "source"
    source.write_bytes(os.urandom(BYTES))
    (folder / "blocks").mkdir()
    (folder / "agent").mkdir()
    with agent(folder / "agent") as (pid, socket):
        ways: dict[str, Callable[[], float]] = {"cp": lambda: time_copy(folder, source)}
        ways |= {
            "store": lambda: time_store(folder, source),
            "agent": lambda: time_agent(socket, source),
            "curl": lambda: time_curl(socket, source, folder / "blocks"),
        }
        found: dict[str, list[float]] = {name: [] for name in ("cp", *only)}
        print(f"agent, before: {memory(pid)}", flush=True)
        for number in range(rounds):
            for name, seconds in found.items():
                os.sync()
                seconds.append(ways[name]())
            rates = "   ".join(f"{name} {BYTES / seconds[-1] / 1e6:5.0f}" for name, seconds in found.items())
            print(f"round {number + 1}, MB/s: {rates}", flush=True)
        print(f"agent, after: {memory(pid)}")
    return found


def describe(found: dict[str, list[float]]) -> None:
    """The ratios."""
    copies = found["cp"]
    for name in list(found)[1:]:
        seconds = found[name]
        each = statistics.median(copy / taken for copy, taken in zip(copies, seconds, strict=True))
        print(
            f"{name}: {statistics.median(copies) / statistics.median(seconds):.0%} of cp + fsync (medians), "
            f"{min(copies) / min(seconds):.0%} (best), {each:.0%} (median of the rounds' ratios); the aim is 70 %"
        )
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


def memory(pid: int) -> str:
    """What a process holds now, and the most it ever held; and its CPU seconds."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = [int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in fields[11:13]]
    now, peak = (int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return f"{now:.0f} MB, at most {peak:.0f} MB; CPU {cpu[0]:.2f} s user, {cpu[1]:.2f} s system"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path, help="keep the seconds of each round in this file")
    parser.add_argument("--send", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        send(*options.send)
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="otaflow-bench-") as folder:
        found = measure(Path(folder).resolve(), options.rounds, options.only)
    describe(found)
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
