"""A search for the updates of one application, as a run of the device's deployment `check`."""

import logging
import threading
import time
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import DeploymentStatus, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from otaflow.flows.clients import is_away
from otaflow.platform.device import Device

log = logging.getLogger("otaflow.runs")

LOOK_SECONDS = 1.0
WAIT_SECONDS = 600.0


def begin_search(device: Device, application: str) -> UUID | None:
    """Ask for a run; its id. None where nobody would execute it: Prefect is away, has no such deployment, or no worker.

    Never raises: a poll of one's own takes its place.
    """
    if get_current_settings().api.url is None or is_away():
        return None
    try:
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(f"check/{device.config.device.name}")
            if deployment.status is not DeploymentStatus.READY:
                return None
            run = client.create_flow_run_from_deployment(
                deployment.id, parameters={"application": application}, tags=["otaflow", f"requested-by:{application}"]
            )
            return run.id
    except ObjectNotFound:
        return None
    except Exception as error:
        log.warning("cannot ask Prefect for a search: %s", error)
        return None


def wait_for_search(run: UUID, ended: threading.Event) -> None:
    """Wait until the run has ended, or waits for the user; not for ever. Never raises."""
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until and not ended.wait(LOOK_SECONDS):
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(run).state
        except Exception as error:
            log.warning("cannot see how the search goes on: %s", error)
            return
        if state and (state.is_final() or state.type is StateType.PAUSED):
            return
