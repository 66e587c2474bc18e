"""The boxes of the S16 chart up to the download: connect, certificate, login, repository, what is new, the package."""

import logging
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from otaflow import progress
from otaflow.errors import AuthenticationFailed, RepositoryRefused
from otaflow.package.versions import find_exact, newer
from otaflow.patience import within
from otaflow.platform.device import device
from otaflow.platform.directories import copy_tree
from otaflow.repo.chains import find_chain
from otaflow.repo.choice import Target
from otaflow.repo.client import LocalRepository, Repository, open_archive, open_repository
from otaflow.tasks.policy import find_avoided
from otaflow.tasks.step import step

log = logging.getLogger("otaflow.repo")

AnyRepository = Repository | LocalRepository
ARTIFACT_SECONDS = 1.0
ARTIFACT_PATIENCE = 5.0
"""How long a download waits for Prefect, once."""
HANDED_IN = "handed-in-"


def open_source(source: str, archive: str = "") -> AnyRepository:
    """The repository of the source called `source`, or the local repository package `archive` in its stead."""
    config = device().config
    return open_archive(config, Path(archive), source) if archive else open_repository(config, source)


def _connect_limits() -> tuple[int, float]:
    config = device().config
    source = config.source()
    return source.connect_tries - 1, source.connect_wait_seconds


@step("connect to the package management server", limits=_connect_limits)
def connect(repository: AnyRepository) -> None:
    """Reach the server; tried as often as the source's `connect_tries`, with its wait between. Raises Offline."""
    repository.connect()


@step("check ssl certificate of connection", retries=2)
def check_certificate(repository: AnyRepository) -> str:
    """Verify the server's certificate; returns whose it is. Raises CertificateRefused, which is never retried."""
    certificate = repository.check_certificate()
    return str(certificate.subject) if certificate else "no server: a local repository package"


@step("authenticate", retries=2)
def authenticate(repository: AnyRepository) -> None:
    """Log in to the server. Raises LoginRefused, which is never retried."""
    repository.authenticate()


@step("update package repository", retries=2)
def update_package_repository(repository: AnyRepository) -> None:
    """Refresh the signed metadata (TUF, section 5.3 to 5.6). Raises RepositoryRefused, which is never retried."""
    repository.refresh()


@step("find new packages")
def find_new_packages(repository: AnyRepository) -> list[Target]:
    """The packages that this device does not have, in the order in which they are installed."""
    here = device()
    system, model = here.running_system(), here.config.device.model
    return repository.new_packages(
        system.version, model, system.name, find_avoided(), applications=here.applications.versions()
    )


@step("find packages of application")
def find_packages_of(repository: AnyRepository, name: str, to: str) -> list[Target]:
    """The packages that bring the application `name` to the version `to` (empty: the highest), in order.

    Raises IncompatibleDelta, which names what is missing, and OldVersion.
    """
    here = device()
    return find_chain(
        repository.targets(),
        name=name,
        installed=here.applications.versions().get(name),
        to=to or None,
        model=here.config.device.model,
        avoid=find_avoided(),
    )


@step("download package", retries=2)
def download_package(repository: AnyRepository, target: Target) -> str:
    """Bring a package into the cache, going on where a cut left it, and verify it; returns its path."""
    show = _Download(target)
    return str(repository.download(target, show))


@step("take package file")
def take_file(package: str) -> str:
    """Copy a package file into the cache, ours alone: what is judged must be what is used. Returns the copy's path."""
    source = Path(package).resolve()
    if not source.is_file():
        raise AuthenticationFailed(f"cannot use the package {package}: there is no such file")
    folder = device().cache / "packages"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy = folder / f"{HANDED_IN}{source.name}"
    copy.unlink(missing_ok=True)
    copy_tree(source, copy)
    return str(copy)


@step("authenticate package")
def authenticate_package(repository: AnyRepository, package: str) -> Target:
    """The signed target that the file `package` is. AuthenticationFailed when it is none that this device trusts."""
    name = Path(package).name.removeprefix(HANDED_IN)
    try:
        target = repository.trusted(Path(package))
    except RepositoryRefused as error:
        raise AuthenticationFailed(f"cannot use the package {name}: {error}", hint=error.hint) from error
    if target is None:
        raise AuthenticationFailed(
            f"cannot use the package {name}: it is not signed by a repository that this device trusts",
            hint="`otaflow check` fetches the newest signatures; a local repository package (.nsr) brings its own",
        )
    return target


def find_missing_base(target: Target) -> str | None:
    """The version that the application must be at before the update `target`, where it is at a lower one or not there.

    None: nothing has to be installed before it, or that would not help.
    """
    if target.kind != "application" or not target.applies_to.versions:
        return None
    base = find_exact(target.applies_to.versions)
    installed = device().applications.versions().get(target.name)
    return base if base and (installed is None or newer(base, installed)) else None


def named(target: Target) -> str:
    """The version, and of an application its name before it: what was installed, for people and in lists."""
    return target.version if target.kind == "system" else f"{target.name} {target.version}"


class _Download:
    """Shows how far a download is: to the listeners, and as a progress artifact where Prefect runs it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.artifact: object | None = None
        self.given_up = False
        self.shown = 0.0

    def __call__(self, done: int) -> None:
        total = self.target.length
        progress.tell("bytes", "download package", done=done, total=total)
        if "prefect.context" in sys.modules and (done >= total or time.monotonic() - self.shown > ARTIFACT_SECONDS):
            self.shown = time.monotonic()
            self._show(100 * done / max(total, 1))

    def _show(self, percent: float) -> None:
        from prefect import artifacts
        from prefect.context import TaskRunContext

        if TaskRunContext.get() is None or self.given_up:
            return
        try:
            within(ARTIFACT_PATIENCE, partial(self._renew, artifacts, percent))
        except Exception as error:  # an API that goes away, or stands still, ends no download
            self.given_up = isinstance(error, TimeoutError)
            log.warning("cannot show how far the download is: %s", error)

    def _renew(self, artifacts: Any, percent: float) -> None:
        # `_sync`: a flow's loop runs in this thread, which would make these functions coroutines.
        create: Any = artifacts.create_progress_artifact
        renew: Any = artifacts.update_progress_artifact
        if self.artifact is None:
            about = f"download of {self.target.name} {self.target.version}"
            self.artifact = create(progress=percent, key="download", description=about, _sync=True)
        else:
            renew(artifact_id=self.artifact, progress=percent, _sync=True)
