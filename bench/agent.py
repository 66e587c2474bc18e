"""What the agent costs: answers in ms (p50, p99), its resident memory. `python -m bench.agent` prints a line for each.

It makes a device of directories in a temporary folder, and an agent in a process of its own, without Prefect's API
unless PREFECT_API_URL names one.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from agent_rig import Signed
from update_world import Packages, World

from otaflow.client import Client
from otaflow.errors import Offline, OtaflowError

ROUNDS = 300
SESSIONS = int(os.environ.get("SESSIONS", "50"))


def main() -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory(prefix="otaflow-bench-") as folder:
        packages = Packages(Path(folder))
        world = World(Path(folder, "w"), "directories", packages)
        world.folder.mkdir()
        world.make()
        signed = Signed(Path(folder, "repository"), packages)
        signed.introduce(world)
        environment = {"PREFECT_API_URL": "http://127.0.0.1:9/api", **os.environ, "OTAFLOW_CONFIG": str(world.config)}
        agent = subprocess.Popen(
            [sys.executable, "-c", "from otaflow.cli import main; main()", "agent"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with Client(world.device().config.path(Path("../ucm.sock"))) as client:
                measure(client, agent.pid, signed)
        finally:
            agent.terminate()
            agent.wait()


def measure(client: Client, pid: int, signed: Signed) -> None:
    """All numbers of one agent."""
    while True:
        with suppress(Offline):
            client.current_status()
            break
        time.sleep(0.05)
    time.sleep(5)  # it connects
    print(f"resident memory idle: {resident(pid):.0f} MB")
    id = client.transfer(signed.path("good"))
    tell("CurrentStatus", client.current_status, ROUNDS)
    tell("GetSwPackages", client.get_sw_packages, ROUNDS)
    tell("GetHistory", client.get_history, ROUNDS)
    tell("GetSwClusterInfo", client.get_sw_cluster_info, ROUNDS)
    tell("refused call", lambda: refused(client), ROUNDS)
    process, revert = [], []
    for number in range(SESSIONS):
        process.append(seconds(lambda: client.process_sw_package(id)))
        revert.append(seconds(client.revert_processed_sw_packages))
        if number == 9:
            print(f"resident memory after 10 sessions: {resident(pid):.0f} MB")
    print(f"ProcessSwPackage: p50 {1000 * statistics.median(process):.1f} ms")
    print(f"RevertProcessedSwPackages: p50 {1000 * statistics.median(revert):.1f} ms")
    print(f"resident memory after {SESSIONS} sessions: {resident(pid):.0f} MB")


def refused(client: Client) -> None:
    with suppress(OtaflowError):
        client.finish()


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def tell(name: str, call: Callable[[], Any], rounds: int) -> None:
    """Print p50 and p99 of `call` in ms."""
    times = sorted(1000 * seconds(call) for _ in range(rounds))
    print(f"{name}: p50 {statistics.median(times):.2f} ms, p99 {times[int(rounds * 0.99)]:.2f} ms")


def resident(pid: int) -> float:
    """MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
