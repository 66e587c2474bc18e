"""*Update packages* of the chart: the UCM installs what a poll brought, through the agent or in this process."""

from collections.abc import Callable
from pathlib import Path

from otaflow import through, work
from otaflow.flows.clients import run_beside
from otaflow.platform.device import Device
from otaflow.repo.choice import Target


def install(device: Device, target: Target, package: str, allow: Callable[[], None]) -> None:
    """Install `package`; `allow` is called before the activation and may refuse it. Raises what failed.

    What changes data for good is agreed to here: the policy has asked about it.

    Where an agent runs, it does the work. Otherwise this process does, in a thread of its own: the phases are runs
    beside the poll, not tasks of it.
    """
    if agent := through.find_agent(device):
        with agent:
            through.install_package(agent, device, Path(package), allow, accepted=target.irreversible)
        return
    run_beside(lambda: _install_here(Device(device.config), target, package, allow))


def _install_here(device: Device, target: Target, package: str, allow: Callable[[], None]) -> None:
    with work.working(device) as (ucm, _):
        if error := work.go_on(ucm):
            raise error
        action = work.action_of(device, target, package, accepted=target.irreversible)
        ucm.process(action, unattended=True)
        try:
            allow()
        except BaseException:
            ucm.revert()
            raise
        ucm.go_on()
