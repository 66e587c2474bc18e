"""What the agent costs: answers in ms (p50, p99), its resident memory, and what Prefect adds to both.

    python -m bench.agent                 # without and with a Prefect server of its own, side by side
    SESSIONS=200 python -m bench.agent    # memory over 200 sessions (50 unless told)
    REQUESTS=FILE python -m bench.agent   # every request to Prefect's API into FILE, a line of JSON each

It makes devices of directories in a temporary folder, and for each an agent in a process of its own; both take turns.
Before a call that is measured both rest for half a second, as clients do: what Prefect is told behind a caller's back
is told then. The calls "at once" follow each other without a rest.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from agent_rig import Signed
from update_world import Packages, World

from otaflow.cli.demo_site import Site
from otaflow.client import Client
from otaflow.errors import Offline, OtaflowError

ROUNDS = 300
SESSIONS = int(os.environ.get("SESSIONS", "50"))
WHOLE = int(os.environ.get("WHOLE", "20"))
CONNECT_SECONDS = 30.0
REST_SECONDS = 0.5
LOOKED_AT = (10, 50, 100, 200)
AGENT = """
import os
from pathlib import Path
if os.environ.get("REQUESTS"):
    from bench.requests import note_requests
    note_requests(Path(os.environ["REQUESTS"]))
from otaflow.cli import main
main()
"""


@dataclass
class Way:
    """One agent, and what its calls took (seconds)."""

    name: str
    client: Client
    pid: int
    took: dict[str, list[float]] = field(default_factory=dict)

    def call(self, name: str, call: Callable[[], Any], rest: float = 0) -> None:
        time.sleep(rest)
        started = time.perf_counter()
        call()
        self.took.setdefault(name, []).append(time.perf_counter() - started)

    def p50(self, name: str) -> float:
        """ms."""
        return 1000 * statistics.median(self.took[name])


def main() -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory(prefix="otaflow-bench-") as folder, ExitStack() as stack:
        packages = Packages(Path(folder))
        world = World(Path(folder, "w"), "directories", packages)
        world.folder.mkdir()
        world.make()
        signed = Signed(Path(folder, "repository"), packages)
        url = stack.enter_context(serving_prefect(Path(folder, "prefect")))
        ways = []
        for name, api in (("plain", "http://127.0.0.1:9/api"), ("prefect", url)):
            own = world.copy(Path(folder, name))
            signed.introduce(own)
            ways.append(stack.enter_context(running(name, own, api, folder)))
        measure(ways, signed)


@contextmanager
def serving_prefect(folder: Path) -> Iterator[str]:
    """A Prefect server of our own; its API's address."""
    site = Site(folder)
    site.folder.mkdir()
    try:
        url = site.start_prefect()
        site.wait_for("prefect", f"{url}/api/health")
        yield f"{url}/api"
    finally:
        site.remove()


@contextmanager
def running(name: str, world: World, api: str, home: str) -> Iterator[Way]:
    """An agent on the world's device."""
    environment = {**os.environ, "PREFECT_API_URL": api, "PREFECT_HOME": f"{home}/client", "DO_NOT_TRACK": "1"}
    environment["OTAFLOW_CONFIG"] = str(world.config)
    quiet = None if os.environ.get("LOUD") else subprocess.DEVNULL
    agent = subprocess.Popen([sys.executable, "-c", AGENT, "agent"], env=environment, stdout=quiet, stderr=quiet)
    try:
        with Client(world.device().config.path(Path("../ucm.sock"))) as client:
            yield Way(name, client, agent.pid)
    finally:
        agent.terminate()
        agent.wait()


def measure(ways: list[Way], signed: Signed) -> None:
    """All numbers of the agents."""
    ids = {}
    for way in ways:
        wait_for_agent(way)
    for way in ways:
        ids[way.name] = way.client.transfer(signed.path("good"))
    time.sleep(10)  # they connect
    say("resident memory idle", ways)
    for _ in range(ROUNDS):
        for way in ways:
            ask(way)
    for number in range(SESSIONS + 1):
        for way in ways:
            way.call("ProcessSwPackage at once", lambda way=way: way.client.process_sw_package(ids[way.name]))
            way.call("RevertProcessedSwPackages at once", way.client.revert_processed_sw_packages)
        if number in (0, *LOOKED_AT):
            say(f"resident memory after {number} sessions", ways)
    for _ in range(WHOLE):
        for way in ways:
            change(way, ids[way.name])
    print("\n| call, p50 (p99) in ms | plain | prefect | ratio | difference |\n| --- | --- | --- | --- | --- |")
    for name in ways[0].took:
        one, other = (way.p50(name) for way in ways)
        cells = [f"{way.p50(name):.1f} ({1000 * slowest(way.took[name]):.1f})" for way in ways]
        print(f"| {name} | {' | '.join(cells)} | {other / one:.2f} | {other - one:.1f} |")


def ask(way: Way) -> None:
    """The calls that change nothing."""
    way.call("CurrentStatus", way.client.current_status)
    way.call("GetSwPackages", way.client.get_sw_packages)
    way.call("GetHistory", way.client.get_history)
    way.call("GetSwClusterInfo", way.client.get_sw_cluster_info)
    way.call("refused call", lambda: refused(way.client))


def change(way: Way, id: str) -> None:
    """The calls that change the state, with a rest before each."""
    client = way.client
    way.call("ProcessSwPackage", lambda: client.process_sw_package(id), REST_SECONDS)
    way.call("RevertProcessedSwPackages", client.revert_processed_sw_packages, REST_SECONDS)
    client.process_sw_package(id)
    way.call("Activate", client.activate, REST_SECONDS)
    wait_for(client, "Activated")
    way.call("Rollback", client.rollback, REST_SECONDS)
    way.call("Finish", client.finish, REST_SECONDS)


def refused(client: Client) -> None:
    with suppress(OtaflowError):
        client.finish()


def wait_for_agent(way: Way) -> None:
    end = time.monotonic() + CONNECT_SECONDS
    while time.monotonic() < end:
        with suppress(Offline):
            way.client.current_status()
            return
        time.sleep(0.05)
    raise TimeoutError(f"the agent {way.name} does not answer")


def wait_for(client: Client, state: str) -> None:
    while client.current_status()["status"] != state:
        time.sleep(0.01)


def slowest(times: list[float]) -> float:
    """p99."""
    return sorted(times)[min(len(times) - 1, int(len(times) * 0.99))]


def say(what: str, ways: list[Way]) -> None:
    print(f"{what}: " + ", ".join(f"{way.name} {resident(way.pid):.0f} MB" for way in ways), flush=True)


def resident(pid: int) -> float:
    """MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
