"""`otaflow agent`: the process that decides, works and answers for one device."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from otaflow.cli.common import ConfigFile
from otaflow.patience import within
from otaflow.work import load_device, prepare_prefect

if TYPE_CHECKING:
    from otaflow.agent.agent import Agent
    from otaflow.flows.session import PrefectRuns
    from otaflow.platform.device import Device

log = logging.getLogger("otaflow.agent")

DRAIN_SECONDS = 60.0
"""How long SIGTERM waits for work in hand; what is not done then is left to recovery, not taken back."""
CLOSE_SECONDS = 30.0
"""How long connecting waits for a server to close the runs that were cut off."""
ANSWER_SECONDS = 20.0
"""How long the interface may take to show that it answers."""


def agent(*, config: ConfigFile = None) -> None:
    """Run the device's update manager until SIGTERM: its HTTP interface, its work, its runs in Prefect.

    It holds the device: a second agent is refused. It starts in whatever state the device was left in. No step is
    undone by its end; work in hand is finished, or left to recovery. Prefect may be away.
    """
    device = load_device(config)
    prepare_prefect(device)
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with running_agent(device):
        ended.wait()


@contextmanager
def running_agent(device: "Device") -> "Iterator[Agent]":
    """The device's agent and its interface, until the block ends; work in hand is drained then."""
    from otaflow.agent.agent import Agent
    from otaflow.agent.overdue import Overdue
    from otaflow.api.app import make_app
    from otaflow.api.serve import Server, load_credentials
    from otaflow.platform.watchdog import Watchdog

    serving = False  # before that it recovers, after it it drains: both have their own bounds
    watchdog = Watchdog(lambda: not serving or (the_agent.is_alive and server.answers(ANSWER_SECONDS)))
    watchdog.start()
    the_agent = Agent(device, connect=lambda: _connect(device))
    the_agent.start()
    server = Server(make_app(the_agent, credentials=load_credentials(device.config)), device.config)
    overdue = Overdue(device)
    try:
        server.start()
        print(f"{device.config.device.name}: {the_agent.status()['status']}, answering on {server.socket}", flush=True)
        overdue.start()
        serving = True
        yield the_agent
        serving = False
        server.stop()
        overdue.stop()
    finally:
        serving = False
        the_agent.stop(DRAIN_SECONDS)
        watchdog.stop()


def _connect(device: "Device") -> "PrefectRuns":
    from otaflow.deployments.cut_off import close_cut_off, queue_of
    from otaflow.work import connect_prefect

    # First what may fail: this is tried again and again, and each connection has a thread.
    try:
        within(CLOSE_SECONDS, lambda: close_cut_off(queue_of(device.config.device.name)))
    except TimeoutError as error:
        log.warning("Prefect's server stands still: %s", error)  # asked already, it closes them when it goes on
    return connect_prefect(device)
