"""The one-shot commands where an agent runs: they ask and download, and the agent does the work.

The agent holds the device; the repository's metadata is the commands' own business, under a lock of their own.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from otaflow import errors, history, progress
from otaflow.actions import Way
from otaflow.asked import EVERYTHING, Asked, find_packages
from otaflow.client import PAUSE, Client
from otaflow.errors import (
    HealthCheckFailed,
    NotAbleToRollback,
    Offline,
    OperationNotPermitted,
    OtaflowError,
    PackageInconsistent,
)
from otaflow.platform.device import Device, using
from otaflow.platform.lock import DeviceLock
from otaflow.repo.choice import Target
from otaflow.ucm.states import RESTING, State

DECIDED = (State.ACTIVATED, State.ROLLED_BACK, State.ROLLING_BACK_FAILED, State.IDLE)
"""The states in which a verification has ended."""
AWAY_SECONDS = 60.0
"""How long an agent that restarts is waited for."""


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


def install_new(client: Client, device: Device, asked: Asked = EVERYTHING) -> Iterator[str]:
    """Install what is asked for, one package after the other; yields each version as it is in place.

    Raises HealthCheckFailed when a system was rolled back, and what the agent refuses with.
    """
    from otaflow.tasks.repository import named

    def run(phase: Any, parameters: dict[str, Any], _name: str, _version: str = "") -> Any:
        with _asking(device):
            return phase(**parameters)

    _refuse_busy(client)
    for target, package in find_packages(device, asked, run):
        install_package(client, device, Path(package), accepted=asked.accepts)
        yield named(target)


def remove(client: Client, device: Device, name: str) -> None:
    """Remove the application `name`; its data stays. Raises NothingToRevert where there is none."""
    _carry_out(client, device, name, lambda: client.remove(name, unattended=True))


def uninstall(client: Client, device: Device, file: Path) -> None:
    """Take back what the package `file` installed, which runs now."""
    _refuse_busy(client)
    try:
        with file.open("rb") as content:
            id, size = client.transfer_start(max(file.stat().st_size, 1))
            for number, block in enumerate(iter(lambda: content.read(size), b""), 1):
                client.transfer_data(id, number, block)
    except OSError as error:
        raise PackageInconsistent(f"cannot read {file}: {error.strerror}") from error
    with _removing(client, id):
        _carry_out(client, device, id, lambda: client.uninstall(id, unattended=True))


def go_back(client: Client, device: Device, to: Way, backup: str | None = None) -> None:
    """Roll a session's system back, or begin a session that goes back. Raises what the agent refuses with."""
    state = client.current_status()["status"]
    if to == "previous-slot" and state in (State.VERIFYING, State.ACTIVATED, State.ROLLING_BACK_FAILED):
        client.rollback()
        client.finish()
        return
    _carry_out(client, device, to, lambda: client.go_back(to, backup, unattended=True))


def resume(client: Client, device: Device) -> str:
    """Wait until what the agent has in hand is over; why it was taken back, if it was."""
    session = device.journal.session if device.journal.state is not State.IDLE else None
    waits = session is not None and session.unattended
    _follow(client, None, State.IDLE, State.ROLLING_BACK_FAILED, *(() if waits else RESTING))
    ends = [record for record in device.history.read() if session and record.get("session") == session.id]
    failed = [record for record in ends if record["resolution"] != history.ACTIVATED]
    return str(failed[0].get("why") or failed[0]["resolution"]) if failed else ""


def _refuse_busy(client: Client) -> None:
    """A session that is going on is another client's: nothing is added to it."""
    status = client.current_status()["status"]
    if status != State.IDLE:
        raise OperationNotPermitted(
            f"cannot begin an update: the agent is {status}",
            hint="`otaflow ucm watch` shows how it goes on; a client's session is ended by finish, rollback or revert",
        )


def install_package(
    client: Client,
    device: Device,
    package: Path,
    allow: Callable[[], None] = lambda: None,
    *,
    accepted: bool = False,
) -> None:
    """Transfer a package and have it installed; `allow` is called before the activation, and may refuse it.

    `accepted`: the user agreed to a migration of data that cannot be brought back.
    Raises HealthCheckFailed when the system was rolled back, and what the agent refuses with.
    """

    def show(sent: int, size: int) -> None:
        progress.tell("bytes", "transfer to the agent", done=sent, total=size)

    id = client.transfer(package, show)

    def begin() -> None:
        client.process_sw_package(id, unattended=True, accept_irreversible=accepted)

    with _removing(client, id):
        _carry_out(client, device, id, begin, allow)
    package.unlink(missing_ok=True)


@contextmanager
def _removing(client: Client, id: str) -> Iterator[None]:
    """A package that was not installed is not left in the agent's cache."""
    try:
        yield
    except BaseException:
        with suppress(OtaflowError):
            client.delete_transfer(id)
        raise


def _carry_out(
    client: Client, device: Device, what: str, begin: Callable[[], None], allow: Callable[[], None] = lambda: None
) -> None:
    """A whole unattended session: `begin` processes `what`, the rest follows. Raises what failed and is taken back.

    This command drives it as long as it is there, and the agent is; an agent that is started again goes on by itself,
    and is only watched.
    """
    known = len(device.history.read())
    session = None
    try:
        _refuse_busy(client)
        begin()
        session = client.current_status()["session"]
        _tell(client)
        _ask(client, allow)
        client.activate()
        _finish(client, session, _follow(client, session, *DECIDED))
    except Offline:
        _follow(client, session, State.IDLE)
    except (KeyboardInterrupt, SystemExit):
        _stop(client, session, what)
        raise
    _tell(client)
    _raise_end(device, known)


def _ask(client: Client, allow: Callable[[], None]) -> None:
    """Where the activation is not allowed any more, what was processed is given up."""
    try:
        allow()
    except BaseException:
        client.revert_processed_sw_packages()
        raise


def _finish(client: Client, session: str | None, state: State) -> None:
    if state is State.ROLLING_BACK_FAILED:
        raise NotAbleToRollback(
            "the new system is not healthy, and the former one could not be brought back",
            hint="`otaflow rollback` tries again; `otaflow history --log` shows what failed",
        )
    with suppress(OperationNotPermitted):  # the agent was started again, and has done it
        client.finish()
    _follow(client, session, State.IDLE)


def _follow(client: Client, session: str | None, *states: State) -> State:
    """Watch until it is in one of `states` or `session` is over. A restart of it is waited for. Raises Offline."""
    last = ""
    heard = time.monotonic()
    while True:
        with suppress(Offline):
            for status in client.watch():
                heard = 0.0
                if status["status"] in states:
                    return State(status["status"])
                if session and status["session"] != session:
                    return State.IDLE
                if status["status"] != last:
                    progress.tell("state", last := status["status"])
        heard = heard or time.monotonic()
        if time.monotonic() - heard > AWAY_SECONDS:
            raise Offline(
                "cannot say how it ended: the agent is away", hint="it goes on when it is back: `otaflow history`"
            )
        time.sleep(PAUSE)


def _stop(client: Client, session: str | None, what: str) -> None:
    """Ctrl-C: what is not started yet is taken back, as far as the agent answers; a trial goes on without us."""
    with suppress(OtaflowError):
        match client.current_status()["status"]:
            case State.PROCESSING:
                client.cancel(what)
            case State.READY if session is not None:
                client.revert_processed_sw_packages()
            case State.IDLE:
                pass
            case state:
                progress.tell("note", f"the agent is {state}, and goes on by itself")


def _raise_end(device: Device, known: int) -> None:
    """Raise what the session ended with, as the history has it; `known`: how many records it had before."""
    records = [record for record in device.history.read()[known:] if record.get("session")]
    if not records:
        raise Offline("the agent was started again before anything had begun", hint="try again")
    end = records[0]
    if end["resolution"] == history.ACTIVATED:
        return
    kind = getattr(errors, str(end.get("error")), HealthCheckFailed)
    raise kind(str(end.get("why") or f"the new system was taken back: {end['resolution']}"))


def _tell(client: Client) -> None:
    progress.tell("state", client.current_status()["status"])


@contextmanager
def _asking(device: Device) -> Iterator[None]:
    """Only one command at a time changes what is known of the repository. Raises Locked."""
    with using(device), DeviceLock(device.nvm / "asking.lock"):
        yield
