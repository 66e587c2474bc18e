"""A process that has the agent loaded and forks one for each line, so that a killed agent costs milliseconds.

A line of stdin is `{"start": {"config", "fault", "env", "log", "drain"}}`, answered by the agent's pid, or
`{"wait": pid}`, answered by its exit status (minus the signal that ended it). Prefect is not loaded here: an agent
that is given an API in `env` loads it itself.
"""

import faulthandler
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import h11  # noqa: F401
import uvicorn.lifespan.off
import uvicorn.loops.asyncio
import uvicorn.protocols.http.h11_impl  # noqa: F401

from otaflow import fault
from otaflow.agent.agent import Agent
from otaflow.api.app import make_app
from otaflow.api.serve import Server
from otaflow.platform.sandbox import enforced
from otaflow.tasks.step import STEPS
from otaflow.work import load_device

LOADED = enforced()
faulthandler.register(signal.SIGUSR1)  # where an agent hangs is told in its log


def main() -> None:
    """Answer until stdin ends; the agents that are left then are ended."""
    children = set()
    for line in sys.stdin:
        asked = json.loads(line)
        if "start" in asked:
            pid = os.fork()
            if pid == 0:
                _run(asked["start"])
            children.add(pid)
            print(pid, flush=True)
        else:
            _, status = os.waitpid(asked["wait"], 0)
            children.discard(asked["wait"])
            print(os.waitstatus_to_exitcode(status), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _run(job: dict[str, Any]) -> None:
    """The agent, as `otaflow agent` runs it."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(job["env"])
    for step in STEPS.values():
        retries = step.limits()[0]
        step.limits = lambda retries=retries: (retries, 0)  # type: ignore[misc]
    fault.arm(*job["fault"].rsplit(":", 1) if job["fault"] else ("", ""))
    code = 1
    try:
        _serve(job)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(job: dict[str, Any]) -> None:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    device = load_device(Path(job["config"]))

    def connect() -> Any:
        from otaflow.flows import clients, session
        from otaflow.work import connect_prefect

        # a test is not about how fast the machine is
        session.PATIENCE_SECONDS = session.FLUSH_SECONDS = clients.FIRST_SECONDS = 120
        return connect_prefect(device)

    agent = Agent(device, connect if "PREFECT_API_URL" in job["env"] else None)
    agent.start()
    server = Server(make_app(agent), device.config)
    server.start()
    ended.wait()
    server.stop()
    agent.stop(job["drain"])


if __name__ == "__main__":
    main()
