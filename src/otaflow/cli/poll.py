"""`otaflow poll`: one poll of the update policy, for a timer without Prefect's schedules."""

import asyncio
import sys
from typing import Any

from otaflow.cli.common import ConfigFile, Json, Source, load_device, print_json
from otaflow.work import prepare_prefect


def poll(*, config: ConfigFile = None, source: Source = None, json: Json = False) -> None:
    """Look for updates, tell the user, and install what may be installed; see `otaflow consent` for the answer.

    What a timer starts: unlike `otaflow update`, which installs what is new because somebody says so, it asks first
    (`policy.ask`), keeps to the maintenance windows, and leaves alone for a while what failed.
    """
    device = load_device(config, source)
    prepare_prefect(device)
    from otaflow.deployments.check import check

    file = str(config.absolute()) if config else None
    run: Any = check(config=file, source=source, return_state=True)
    state = asyncio.run(run)
    if json:
        print_json({"end": state.name, "message": state.message, "failed": state.is_failed()})
    else:
        print(f"{state.name}: {state.message}" if state.message != state.name else state.name)
    if not state.is_completed():
        sys.exit(1)
