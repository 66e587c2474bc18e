"""The update policy's beginning (spec/s16-package-update.md): from connect to what is new, and the download."""

from pathlib import Path

from otaflow.errors import AuthenticationFailed
from otaflow.flows.phase import phase
from otaflow.repo.choice import Target
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
