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
    PREFECT_API_URL names one. In the UI the device is watched, polled, rolled back and answered.
    """
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    device = load_device(config)
    prepare_prefect(device)
    with ExitStack() as stack:
        login = ""
        if "PREFECT_API_URL" not in os.environ:
            server = Embedded(device)
            stack.callback(server.stop)
            print("Prefect's server starts …", flush=True)
            server.start()
            login = f", login {server.login}"
        stack.enter_context(running_agent(device))
        from otaflow.agent.runner import Runner
        from otaflow.deployments.alarms import make_alarms
        from otaflow.deployments.local import deployed

        runner = Runner(
            deployed(device.config, config),
            device=device.config.device.name,
            then=lambda client, ids: make_alarms(client, device.config, ids["report"]),
        )
        runner.start()
        print(f"Prefect   {os.environ['PREFECT_API_URL'].removesuffix('/api')}{login}", flush=True)
        ended.wait()
        runner.stop(DRAIN_SECONDS)
