"""`otaflow up`: a whole device in one command: Prefect's server, the agent, and the deployments."""

import os
import signal
import threading
from contextlib import ExitStack
from types import FrameType

from otaflow.cli.agent import DRAIN_SECONDS, running_agent
from otaflow.cli.common import ConfigFile
from otaflow.embedded import Embedded
from otaflow.work import load_device, prepare_prefect


def up(*, config: ConfigFile = None) -> None:
    """Run the device until SIGTERM: the update manager, its runs in Prefect's UI, and the polls.

    Prefect's server is started on loopback with a login of its own (SQLite, in the device's nvm), unless
    PREFECT_API_URL names one; when it cannot start, that is tried again, and the device works without it. In the UI
    the device is watched, polled, rolled back and answered.
    """
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    device = load_device(config)
    server = None if "PREFECT_API_URL" in os.environ else Embedded(device)
    if server:
        server.use()
    prepare_prefect(device)
    with ExitStack() as stack:
        if server:
            stack.callback(server.stop)
        # The agent first: a system on trial is verified, whatever keeps Prefect's server from starting.
        stack.enter_context(running_agent(device))
        if server:
            print("Prefect's server starts …", flush=True)
            server.start()
        from otaflow.agent.runner import Runner
        from otaflow.deployments.alarms import make_alarms
        from otaflow.deployments.local import deployed

        runner = Runner(
            deployed(device.config, config),
            device=device.config.device.name,
            then=lambda client, ids: make_alarms(client, device.config, ids["report"]),
        )
        runner.start()
        while server and not ended.is_set() and not server.tried.wait(0.2):
            pass
        if server is None or server.runs:
            login = f", login {server.login}" if server else ""
            print(f"Prefect   {os.environ['PREFECT_API_URL'].removesuffix('/api')}{login}", flush=True)
        else:
            print(f"Prefect   is away: {server.problem}; it is tried again", flush=True)
        ended.wait()
        runner.stop(DRAIN_SECONDS)
