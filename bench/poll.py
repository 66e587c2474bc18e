"""What an idle poll costs, one that finds nothing new: in each way in which a device can be polled, side by side.

    python -m bench.poll [--rounds 7]

* without Prefect: the chart as plain functions, in a process that is there already
* runner: a run in the process of `otaflow up`, which is there already (`otaflow/agent/runner.py`)
* otaflow poll: a process of its own
* worker: a run as Prefect's process worker starts it, a process of its own (`python -m prefect.engine`)
* import prefect: a process that does no more
* the runner's look: what it asks every five seconds, whether a run is due

Bytes on the wire are those between device and repository, both directions, TLS included, TCP's and IP's own not. The
requests are those to Prefect's API; its websocket of events is one. After each way
there is a rest, in which Prefect is told what is told behind; the CPU of the rest counts.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from bad_wire import Wire
from update_world import Packages, World

from otaflow.cli.demo_site import free_port
from otaflow.embedded import Embedded
from otaflow.repo import admin, serve
from otaflow.repo.certificates import make_authority, make_server_certificate

REST_SECONDS = 3.0
LOOK, LOOKS = "the runner's look", 50
POLL = "import sys; sys.argv[1:] = ['poll']; from otaflow.cli import main; main()"
IMPORT = [sys.executable, "-c", "import prefect"]


@dataclass(frozen=True)
class Cost:
    """Of one poll: seconds, CPU seconds (ours, the server's), bytes on the wire, requests to Prefect's API."""

    seconds: float
    cpu: float
    server_cpu: float
    wire: float
    requests: float


@dataclass
class Bench:
    """The device, and what is measured on it."""

    environment: dict[str, str]
    config: Path
    wire: Wire
    server: psutil.Process
    api: Wire
    costs: dict[str, list[Cost]] = field(default_factory=dict)

    def measure(self, name: str, poll: Callable[[], Any], rest: float, times: int = 1) -> None:
        """One poll, or the middle of so many `times`."""
        before, server, wire, asked = os.times(), self._server_cpu(), self.wire.bytes, len(self.api.asked)
        started = time.perf_counter()
        for _ in range(times):
            poll()
        seconds = time.perf_counter() - started
        time.sleep(rest)
        cpu = sum(os.times()[:4]) - sum(before[:4])
        cost = Cost(seconds, cpu, self._server_cpu() - server, self.wire.bytes - wire, len(self.api.asked) - asked)
        self.costs.setdefault(name, []).append(Cost(*(value / times for value in astuple(cost))))

    def run(self, *command: str, **environment: str) -> None:
        """A process of its own."""
        subprocess.run(
            command, env=self.environment | environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def _server_cpu(self) -> float:
        processes = [self.server, *self.server.children(recursive=True)]
        return sum(one.cpu_times().user + one.cpu_times().system for one in processes)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rest", type=float, default=REST_SECONDS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="otaflow-bench-") as folder, preparing(Path(folder)) as bench:
        asked = measure(bench, chosen.rounds, chosen.rest)
        report(bench, asked)


@contextmanager
def preparing(folder: Path) -> Iterator[Bench]:
    """A device, its repository behind a wire, and the server of `otaflow up`."""
    with ExitStack() as stack:
        world = World(folder / "w", "directories", Packages(folder))
        world.folder.mkdir()
        world.make()
        admin.init(folder / "repository")
        authority = make_authority(folder / "tls")
        pair = make_server_certificate(authority, folder / "tls", ["127.0.0.1"])
        url = stack.enter_context(serve.running(folder / "repository/public", pair.certificate, pair.key))
        wire = stack.enter_context(Wire(urlsplit(url).port or 0))
        root = folder / "repository/public/metadata/1.root.json"
        world.configure(
            f'[sources.official]\nurl = "https://127.0.0.1:{wire.port}"\nroot = "{root}"\n'
            f'ca = "{authority.certificate}"\n[prefect]\nport = {free_port()}\n'
        )
        embedded = Embedded(world.device())
        stack.callback(embedded.stop)
        embedded.use()
        embedded.start()
        embedded.tried.wait()
        assert embedded._server is not None
        api = stack.enter_context(Wire(embedded.port))
        settings = {
            "PREFECT_API_URL": f"http://127.0.0.1:{api.port}/api",
            "PREFECT_HOME": str(folder / "client"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
            "OTAFLOW_CONFIG": str(world.config),
        }
        os.environ |= settings
        yield Bench(dict(os.environ), world.config, wire, psutil.Process(embedded._server.pid), api)


def measure(bench: Bench, rounds: int, rest: float) -> list[str]:
    """All ways in turn; returns what a run of the runner asks of Prefect's API."""
    from prefect.client.orchestration import get_client

    from otaflow.agent.runner import Deployed, Runner
    from otaflow.deployments.check import check, poll_alone
    from otaflow.work import load_device

    runner = Runner([Deployed(check, "bench", {"config": str(bench.config)})])
    asked: list[str] = []
    with get_client(sync_client=True) as client:
        runner.known = dict(runner._register(client))
        (deployment,) = runner.known
        for number in range(rounds + 1):
            if number == 1:
                bench.costs.clear()  # the first ones import and connect
            bench.measure("without Prefect", lambda: poll_alone(load_device(bench.config)), rest)
            run = client.create_flow_run_from_deployment(deployment)
            time.sleep(rest)
            before = len(bench.api.asked)
            bench.measure("runner", lambda run=run: runner._take(client, run) and runner._execute(check, run), rest)
            asked = bench.api.asked[before:]
            bench.measure("`otaflow poll`", lambda: bench.run(sys.executable, "-c", POLL), rest)
            run = client.create_flow_run_from_deployment(deployment)
            time.sleep(rest)
            bench.measure("worker", lambda run=run: execute(bench, run), rest)
            bench.measure("`import prefect`", lambda: bench.run(*IMPORT), rest)
            bench.measure("nothing", lambda: None, rest)
            bench.measure(LOOK, lambda: runner._look(client), rest, LOOKS)
        for run in client.read_flow_runs():
            assert run.state
            assert run.state.name == "Up to date", run.state
    return asked


def execute(bench: Bench, run: Any) -> None:
    """As Prefect's process worker does, once it has found the run."""
    bench.run(sys.executable, "-m", "prefect.engine", PREFECT__FLOW_RUN_ID=str(run.id))


def report(bench: Bench, asked: list[str]) -> None:
    """The medians, beside those of `import prefect`."""
    middle = {
        name: Cost(*(median(column) for column in zip(*map(astuple, costs), strict=True)))
        for name, costs in bench.costs.items()
    }
    bare, nothing = middle["`import prefect`"], middle["nothing"]
    rounds = len(bench.costs["nothing"])
    print(f"### An idle poll, median of {rounds}\n")
    print("| way | s | of `import prefect` | CPU s | of `import prefect` | server's CPU s | bytes | requests |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, cost in middle.items():
        idle = nothing if name != LOOK else Cost(*(value / LOOKS for value in astuple(nothing)))
        cpu = cost.cpu - idle.cpu
        cells = [f"{cost.seconds:.3f}", f"{cost.seconds / bare.seconds:.2f}", f"{cpu:.3f}"]
        cells += [f"{cpu / bare.cpu:.2f}", f"{cost.server_cpu - idle.server_cpu:.3f}"]
        print(f"| {name} | {' | '.join(cells)} | {cost.wire:.0f} | {cost.requests:.0f} |")
    print("\nThe runner's requests: " + ", ".join(re.sub(r"[0-9a-f-]{36}", "ID", one) for one in asked))


if __name__ == "__main__":
    main()
