"""The update policy (spec/s16-package-update.md): when the device looks, whether it may install, what it says.

`check`, `fetch` and `accept_file` are the chart's beginning, for the commands; `poll` is the chart, box by box. What is
behind *update packages* is the UCM's: its phases are subflow runs of the session's run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from otaflow.errors import (
    AuthenticationFailed,
    CertificateRefused,
    IncompatibleDelta,
    Locked,
    LoginRefused,
    OperationNotPermitted,
    OtaflowError,
    Restarting,
    TryLater,
    UcmError,
)
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
    find_missing_base,
    find_new_packages,
    find_packages_of,
    named,
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


@phase("find application", reverts=False)
def find_application(source: str, name: str, to: str = "") -> list[Target]:
    """The packages that bring the application `name` to the version `to` (empty: the highest), in order.

    Raises IncompatibleDelta, which names what is missing, OldVersion, and what `check` raises.
    """
    check.story(source)
    with open_source(source) as repository:
        return find_packages_of(repository, name, to)


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


@phase("find earlier packages", reverts=False)
def find_earlier(source: str, target: Target) -> list[Target]:
    """What must be installed, in order, before the application's package `target`, which somebody handed in.

    The repository is asked only where something is missing. Raises IncompatibleDelta, which names the missing link,
    OldVersion, and what `check` raises.
    """
    base = find_missing_base(target)
    if base is None:
        return []
    try:
        return find_application.story(source, target.name, base)
    except (IncompatibleDelta, TryLater) as error:
        raise type(error)(
            f"cannot install {target.name} {target.version}: it applies to {base}; {error}", hint=error.hint
        ) from error


@dataclass(frozen=True)
class Polled:
    """How a poll ended: what it installed, and the decisions on what it left."""

    installed: tuple[str, ...] = ()
    left: tuple[Decision, ...] = ()
    restarting: bool = False
    busy: bool = False

    @property
    def waits(self) -> Decision | None:
        """The decision that somebody can change: the first that asks the user, else the first one; None without any."""
        return next((one for one in self.left if one.verdict is Verdict.ASK), next(iter(self.left), None))

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


def poll(source: str, install: Install, run: str = "", application: str = "") -> Polled:
    """The chart, from *connect* on: look for updates, tell the user, and install what may be installed.

    `run` is the flow run in which it happens, if any. With `application` only its updates are installed, whatever else
    is found and told. Where the update of the system or of an application fails or has to wait, the others are tried
    all the same. Raises what failed, after the chart's red side: error log, message to the applications, diagnostic
    data where the user agreed.
    """
    lock = DeviceLock(device().nvm / "poll.lock")
    try:
        lock.acquire()
    except Locked:
        return Polled(busy=True)
    try:
        return _poll(source, install, run, application)
    finally:
        lock.release()


@dataclass
class _Progress:
    """What a poll has come to."""

    installed: list[str] = field(default_factory=list)
    left: list[Decision] = field(default_factory=list)
    failed: list[tuple[Offer | None, Exception]] = field(default_factory=list)
    over: bool = False

    def polled(self, *, restarting: bool = False) -> Polled:
        return Polled(tuple(self.installed), tuple(self.left), restarting=restarting)


def _poll(source: str, install: Install, run: str, application: str) -> Polled:
    so_far = _Progress()
    try:
        for row in _look(source, run):
            if application in ("", row[0].name) and not so_far.over:
                _install(source, install, row, so_far)
    except Restarting:
        return so_far.polled(restarting=True)
    except Exception as error:
        _fail(so_far, None, error, datetime.now(UTC))
    if so_far.failed:
        _report(source)
        raise _sum_up(so_far)
    return so_far.polled()


def _look(source: str, run: str) -> list[list[Target]]:
    """What is new, of the system and of each application a row of updates that build on each other."""
    look_at_what_ended()
    with _asking():
        targets = check.story(source)
    forget_trouble()
    if not are_packages_new(targets):
        close_offers()
        return []
    notify_user([offer_of(target) for target in targets], run)
    rows: dict[tuple[str, str], list[Target]] = {}
    for target in targets:
        rows.setdefault((target.kind, target.name), []).append(target)
    return list(rows.values())


def _install(source: str, install: Install, row: list[Target], so_far: _Progress) -> None:
    """One after the other, until one has to wait, or fails."""
    for target in row:
        offer, since = offer_of(target), datetime.now(UTC)
        try:
            decision = decide_now(offer)
            is_priority_update(decision.offer)
            if decision.verdict is not Verdict.INSTALL:
                wait_for_user(explain(decision))
                so_far.left.append(decision)
                return
            with _asking():
                package = fetch.story(source, target)
            update_packages(install, target, package, decision)
            log_success(decision.offer)
        except Restarting:
            raise
        except Exception as error:
            _fail(so_far, offer, error, since)
            return
        so_far.installed.append(named(target))


@contextmanager
def _asking() -> Iterator[None]:
    """Only one at a time changes what is known of the repository; others are waited for. Raises Locked."""
    lock = DeviceLock(device().nvm / "asking.lock")
    lock.acquire(PATIENCE)
    try:
        yield
    finally:
        lock.release()


def _fail(so_far: _Progress, offer: Offer | None, error: Exception, since: datetime) -> None:
    """The chart's red side, of one update or of the search for them. Where nothing else would go better, it is over."""
    name, version = (offer.name, offer.version) if offer else ("check", "")
    log_error(name, version, type(error).__name__, str(error))
    if offer and isinstance(error, UcmError) and not isinstance(error, OperationNotPermitted):
        note_refusal(offer, str(error), since)
    so_far.failed.append((offer, error))
    so_far.over = not isinstance(error, OtaflowError) or isinstance(error, (TryLater, CertificateRefused, LoginRefused))


def _report(source: str) -> None:
    if has_consented_to_diagnostics():
        send_diagnostic_data(source)


def _sum_up(so_far: _Progress) -> Exception:
    """One error for all that failed; each update is named where there is more to say than that one failed."""
    (offer, first), *others = so_far.failed
    alone = offer is None or (offer.kind == "system" and not others and not so_far.installed)
    if alone or not isinstance(first, OtaflowError):
        return first
    what = [f"{one.title()}: {error}" if one else str(error) for one, error in so_far.failed]
    if so_far.installed:
        what.append(f"{', '.join(so_far.installed)} {'is' if len(so_far.installed) == 1 else 'are'} installed")
    error = type(first)("; ".join(what), hint=first.hint)
    error.__cause__ = first
    return error
