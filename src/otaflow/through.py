"""The one-shot commands where an agent runs: they ask and download, and the agent does the work.

The agent holds the device; the repository's metadata is the commands' own business, under a lock of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from otaflow import progress
from otaflow.client import Client
from otaflow.errors import HealthCheckFailed, Offline, OperationNotPermitted, UcmError
from otaflow.platform.device import Device, using
from otaflow.platform.lock import DeviceLock
from otaflow.repo.choice import Target
from otaflow.ucm.states import State

DECIDED = (State.ACTIVATED, State.ROLLED_BACK, State.ROLLING_BACK_FAILED, State.IDLE)
"""The states in which a verification has ended."""


def find_agent(device: Device) -> Client | None:
    """A client of the agent that runs on this device; None where none answers."""
    socket = device.config.path(device.config.api.socket)
    if not socket.exists():
        return None
    client = Client(socket)
    try:
        client.current_status()
    except Offline:
        client.close()
        return None
    return client


def find_new(device: Device) -> list[Target]:
    """What the device's source has that the device has not. Nothing is installed."""
    from otaflow.flows.check import check

    with _asking(device):
        return check(device.config.update.use)


def install_new(client: Client, device: Device, file: Path | None = None) -> Iterator[str]:
    """Install what is new, or the package `file`, one after the other; yields each version as it is in place.

    Raises HealthCheckFailed when a system was rolled back, and what the agent refuses with.
    """
    from otaflow.flows.check import accept_file, check, fetch

    source = device.config.update.use
    archive = str(file.absolute()) if file and file.suffix == ".nsr" else ""
    _refuse_busy(client)
    if file and not archive:
        with _asking(device):
            target, package = accept_file(source, str(file.absolute()))
        _install(client, device, Path(package))
        yield target.version
        return
    with _asking(device):
        targets = check(source, archive)
    for target in targets:
        with _asking(device):
            package = fetch(source, target, archive)
        _install(client, device, Path(package))
        yield target.version


def roll_back(client: Client, device: Device) -> None:
    """Roll the session's system back, and put the former one in order. Raises what the agent refuses with."""
    if client.current_status()["status"] not in (State.VERIFYING, State.ACTIVATED, State.ROLLING_BACK_FAILED):
        raise OperationNotPermitted(
            f"cannot roll back: the agent is {client.current_status()['status']}, there is no session to roll back",
            hint="to go back to the previous slot, a snapshot or a backup, stop the agent first",
        )
    client.rollback()
    client.finish()


def _refuse_busy(client: Client) -> None:
    """A session that is going on is another client's: nothing is added to it."""
    status = client.current_status()["status"]
    if status != State.IDLE:
        raise OperationNotPermitted(
            f"cannot begin an update: the agent is {status}",
            hint="`otaflow ucm watch` shows how it goes on; a client's session is ended by finish, rollback or revert",
        )


def _install(client: Client, device: Device, package: Path) -> None:
    def show(sent: int, size: int) -> None:
        progress.tell("bytes", "transfer to the agent", done=sent, total=size)

    id = client.transfer(package, show)
    session = None
    try:
        _refuse_busy(client)
        client.process_sw_package(id)
        session = client.current_status()["session"]
        _tell(client)
        client.activate()
    except Exception:
        status = client.current_status()
        if status["status"] == State.READY and status["session"] == session:
            client.revert_processed_sw_packages()
        with suppress(UcmError):
            client.delete_transfer(id)
        raise
    package.unlink(missing_ok=True)
    for status in client.watch(reconnect=True):
        progress.tell("state", status["status"])
        if status["status"] in DECIDED:
            break
    rolled_back = status["status"] != State.ACTIVATED
    client.finish()
    _tell(client)
    if rolled_back:
        client.delete_transfer(id)
        last = device.history.last() or {}
        raise HealthCheckFailed(
            str(last.get("why") or "the new system did not prove itself healthy: it was rolled back")
        )


def _tell(client: Client) -> None:
    progress.tell("state", client.current_status()["status"])


@contextmanager
def _asking(device: Device) -> Iterator[None]:
    """Only one command at a time changes what is known of the repository. Raises Locked."""
    with using(device), DeviceLock(device.nvm / "asking.lock"):
        yield
