"""The update policy (spec/s16-package-update.md): when the device looks, whether it may install, what it says.

`check`, `fetch` and `accept_file` are the chart's beginning, for the commands; `poll` is the chart, box by box. What is
behind *update packages* is the UCM's: its phases are subflow runs of the session's run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from otaflow.errors import AuthenticationFailed, Locked, OperationNotPermitted, Restarting, UcmError
from otaflow.flows.phase import phase
from otaflow.platform.device import device
from otaflow.platform.lock import DeviceLock
from otaflow.policy.decide import Decision, Verdict
from otaflow.policy.explain import explain
from otaflow.policy.offer import Offer
from otaflow.repo.choice import Target
from otaflow.tasks.policy import (
    Install,
    are_packages_new,
    close_offers,
    decide_now,
    forget_trouble,
    has_consented_to_diagnostics,
    is_priority_update,
    log_error,
    log_success,
    look_at_what_ended,
    note_refusal,
    notify_user,
    offer_of,
    send_diagnostic_data,
    update_packages,
    wait_for_user,
)
from otaflow.tasks.repository import (
    authenticate,
    authenticate_package,
    check_certificate,
    connect,
    download_package,
    find_new_packages,
    open_source,
    take_file,
    update_package_repository,
)

PATIENCE = 60.0
"""Seconds that a poll waits for another one to be done with the repository."""


@phase("check", reverts=False)
def check(source: str, archive: str = "") -> list[Target]:
    """What the source has that this device has not, in the order in which it is installed.

    `archive` is a local repository package that is asked in the server's stead. Raises Offline, CertificateRefused,
    LoginRefused, RepositoryRefused.
    """
    with open_source(source, archive) as repository:
        connect(repository)
        check_certificate(repository)
        authenticate(repository)
        update_package_repository(repository)
        return find_new_packages(repository)


@phase("fetch", reverts=False)
def fetch(source: str, target: Target, archive: str = "") -> str:
    """Bring one package into the cache, verified; returns its path."""
    with open_source(source, archive) as repository:
        return download_package(repository, target)


@phase("accept file", reverts=False)
def accept_file(source: str, package: str) -> tuple[Target, str]:
    """Take a package file that somebody handed in, if it is a signed target; also where its copy is.

    Raises AuthenticationFailed.
    """
    with open_source(source) as repository:
        copy = take_file(package)
        try:
            return authenticate_package(repository, copy), copy
        except AuthenticationFailed:
            Path(copy).unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class Polled:
    """How a poll ended: what it installed, and the decision on what it left, if it left anything."""

    installed: tuple[str, ...] = ()
    waits: Decision | None = None
    restarting: bool = False
    busy: bool = False

    @property
    def name(self) -> str:
        """In a few words, as the run's state."""
        if self.restarting:
            return "Restarting"
        if self.busy:
            return "Another poll is at work"
        if self.waits:
            return "Waiting for the user" if self.waits.verdict is Verdict.ASK else "Not now"
        return "Installed" if self.installed else "Up to date"


def poll(source: str, install: Install, run: str = "") -> Polled:
    """The chart, from *connect* on: look for updates, tell the user, and install what may be installed.

    `run` is the flow run in which it happens, if any. Raises what failed, after the chart's red side: error log,
    message to the applications, diagnostic data where the user agreed.
    """
    lock = DeviceLock(device().nvm / "poll.lock")
    try:
        lock.acquire()
    except Locked:
        return Polled(busy=True)
    try:
        return _poll(source, install, run)
    finally:
        lock.release()


def _poll(source: str, install: Install, run: str) -> Polled:
    installed: list[str] = []
    offer: Offer | None = None
    since = datetime.now(UTC)
    try:
        look_at_what_ended()
        with _asking():
            targets = check.story(source)
        forget_trouble()
        if not are_packages_new(targets):
            close_offers()
            return Polled()
        notify_user([offer_of(target) for target in targets], run)
        for target in targets:
            offer = offer_of(target)
            decision = decide_now(offer)
            is_priority_update(decision.offer)
            if decision.verdict is not Verdict.INSTALL:
                wait_for_user(explain(decision))
                return Polled(tuple(installed), decision)
            with _asking():
                package = fetch.story(source, target)
            update_packages(install, target, package, decision)
            log_success(decision.offer)
            installed.append(offer.version)
    except Restarting:
        return Polled(tuple(installed), restarting=True)
    except Exception as error:
        _report(source, offer, error, since)
        raise
    return Polled(tuple(installed))


@contextmanager
def _asking() -> Iterator[None]:
    """Only one at a time changes what is known of the repository; others are waited for. Raises Locked."""
    lock = DeviceLock(device().nvm / "asking.lock")
    lock.acquire(PATIENCE)
    try:
        yield
    finally:
        lock.release()


def _report(source: str, offer: Offer | None, error: Exception, since: datetime) -> None:
    """The chart's red side."""
    name, version = (offer.name, offer.version) if offer else ("check", "")
    log_error(name, version, type(error).__name__, str(error))
    if offer and isinstance(error, UcmError) and not isinstance(error, OperationNotPermitted):
        note_refusal(offer, str(error), since)
    if has_consented_to_diagnostics():
        send_diagnostic_data(source)
