"""What `otaflow up` deploys on its device: the flows of this folder, with the schedules of the configuration."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect.schedules import Cron, Interval

from otaflow.agent.runner import Deployed
from otaflow.config import Config
from otaflow.deployments.application import application
from otaflow.deployments.check import check
from otaflow.deployments.clean_up import clean_up
from otaflow.deployments.diagnostics import send_diagnostics
from otaflow.deployments.install import install
from otaflow.deployments.report import report
from otaflow.deployments.rollback import rollback
from otaflow.deployments.update import update
from otaflow.policy.spread import share_of

NETWORK = "network"
"""The lane of what waits for servers; nothing else waits behind it."""


def deployed(config: Config, file: Path | None) -> list[Deployed]:
    """Every flow, for the device whose configuration is in `file`."""
    name = config.device.name
    tags = ("otaflow", f"device:{name}")
    parameters = {"config": str(file.absolute())} if file else {}
    interval = timedelta(minutes=config.poll.interval_minutes)
    polls = Interval(interval, anchor_date=_anchor(name, interval))
    return [
        Deployed(
            check,
            name,
            parameters,
            polls,
            jitter=timedelta(minutes=config.poll.jitter_minutes),
            at_start=True,
            again=True,
            lane=NETWORK,
            tags=tags,
        ),
        Deployed(update, name, parameters, once=True, lane=NETWORK, tags=tags),
        Deployed(install, name, parameters, lane=NETWORK, tags=tags),
        Deployed(application, name, parameters, lane=NETWORK, tags=tags),
        Deployed(send_diagnostics, name, parameters, once=True, lane=NETWORK, tags=tags),
        Deployed(rollback, name, parameters, once=True, tags=tags),
        Deployed(clean_up, name, parameters, Cron("30 3 * * *"), once=True, tags=tags),
        Deployed(report, name, parameters, again=True, tags=tags),
    ]


def _anchor(name: str, interval: timedelta) -> datetime:
    """A moment of the device's own within the interval: devices that were switched on together do not poll together."""
    return datetime(2026, 1, 1, tzinfo=UTC) + interval * share_of(name)
