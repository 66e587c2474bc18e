"""A device's side of a repository: what is signed, what is new, and bringing it here verified.

`Repository` asks a server, `LocalRepository` one archive (a USB stick); they share the trusted metadata of their
source, so that neither can take the device back behind what the other has shown.
"""

import math
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, Self
from urllib.parse import quote

from tuf.api.metadata import Targets  # type: ignore[attr-defined]

from otaflow.config import Config, Source
from otaflow.errors import ConfigError, Offline, RepositoryRefused
from otaflow.repo import trust
from otaflow.repo.archive import Archive
from otaflow.repo.chains import choose_updates
from otaflow.repo.choice import Target, choose, read_target
from otaflow.repo.download import Progress, read_hashes
from otaflow.repo.transport import Certificate, Transport

MAX_PACKAGE_BYTES = 8 * 2**30


class Server(Protocol):
    """Where a repository's files come from."""

    def connect(self) -> None: ...
    def check_certificate(self) -> Certificate | None: ...
    def authenticate(self) -> None: ...
    def url(self, path: str) -> str: ...
    def fetch(self, url: str, max_length: int) -> Iterator[bytes]: ...
    def download(
        self, url: str, into: Path, length: int, hashes: Mapping[str, str], progress: Progress | None = None
    ) -> Path: ...
    def close(self) -> None: ...


class _Client:
    """What both kinds of repository do, over their `server`."""

    refresh_seconds = math.inf
    """How long bringing the metadata up to date may take."""

    def __init__(self, server: Server, root: Path, folder: Path, cache: Path, max_bytes: int) -> None:
        self._server, self._root = server, _read_root(root)
        self._folder, self._cache, self._max_bytes = folder, cache, max_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.close()

    def connect(self) -> None:
        """Reach the source (spec/s16-package-update.md, "connect"). Offline when it cannot be reached."""
        self._server.connect()

    def check_certificate(self) -> Certificate | None:
        """Verify the server's certificate ("check ssl certificate"); None where there is no server."""
        return self._server.check_certificate()

    def authenticate(self) -> None:
        """Log in once ("authenticate"). LoginRefused, CertificateRefused, Offline."""
        self._server.authenticate()

    def refresh(self) -> None:
        """Bring the trusted metadata up to date ("update package repository"). RepositoryRefused, Offline."""
        end = time.monotonic() + self.refresh_seconds

        # Each piece may take its time, and there are many: roots alone up to 256. All of it needs a bound.
        def fetch(url: str, max_length: int) -> Iterator[bytes]:
            for chunk in self._server.fetch(url, max_length):
                if time.monotonic() > end:
                    raise Offline(
                        f"cannot fetch {url} in time: the metadata takes longer than {self.refresh_seconds:g} s",
                        hint="the network is slow; `refresh_seconds` of the source is the limit",
                    )
                yield chunk

        trust.refresh(self._folder, self._root, self._server.url("metadata/"), fetch)

    def targets(self) -> list[Target]:
        """Every package that is signed, as of the last refresh; what we do not understand is left out."""
        found = (read_target(target) for target in self._load().targets.values())
        return [target for target in found if target is not None]

    def new_packages(
        self,
        installed_version: str,
        model: str,
        name: str | None = None,
        avoid: Collection[str] = (),
        applications: Mapping[str, str] = MappingProxyType({}),
    ) -> list[Target]:
        """What is to be installed, first one first ("new packages available"): the system, then applications.

        `applications` are those that are installed, with their versions. See `otaflow.repo.choice`, `.chains`.
        """
        targets = self.targets()
        system = choose(targets, installed=installed_version, model=model, name=name, avoid=avoid)
        return system + choose_updates(targets, applications, model=model, avoid=avoid)

    def path(self, target: Target) -> Path:
        """Where in the cache the package is, or will be."""
        return self._cache / quote(target.path, "")

    def download(self, target: Target, progress: Progress | None = None) -> Path:
        """Bring a package into the cache, verified; what a former try brought is used. See `otaflow.repo.download`."""
        if target.length > self._max_bytes:
            raise RepositoryRefused(
                f"cannot fetch {target.path}: it has {target.length} bytes, this device takes {self._max_bytes}",
                hint="`max_package_bytes` in [update] is the limit",
            )
        published = trust.published_path(self._folder, self._root, target.path, target.hashes)
        url = self._server.url(f"targets/{published}")
        return self._server.download(url, self.path(target), target.length, target.hashes, progress)

    def trusted(self, path: Path) -> Target | None:
        """The signed package that the file `path` is, by its length and hashes; asks no network.

        RepositoryRefused when this device holds no valid chain of metadata.
        """
        size = path.stat().st_size
        same = [target for target in self.targets() if target.length == size]
        if not same:
            return None
        with path.open("rb") as file:
            hashes = read_hashes(file, sorted({name for target in same for name in target.hashes}))
        return next((target for target in same if target.hashes and target.hashes.items() <= hashes.items()), None)

    def _load(self) -> Targets:
        return trust.load(self._folder, self._root)


class Repository(_Client):
    """The repository of `source`. `folder` holds its trusted metadata for ever, `cache` packages in transfer."""

    def __init__(self, source: Source, folder: Path, cache: Path, *, max_bytes: int = MAX_PACKAGE_BYTES) -> None:
        super().__init__(Transport(source), source.root, folder, cache, max_bytes)
        self.refresh_seconds = source.refresh_seconds


class LocalRepository(_Client):
    """A local repository package, verified with the root and the trusted metadata of the source that made it."""

    def __init__(
        self, archive: Path, root: Path, folder: Path, cache: Path, *, max_bytes: int = MAX_PACKAGE_BYTES
    ) -> None:
        super().__init__(Archive(archive), root, folder, cache, max_bytes)


def open_repository(config: Config, name: str | None = None) -> Repository:
    """The source called `name`, or the one the device uses."""
    source = locate(config, name)
    return Repository(source, *_places(config, name), max_bytes=config.update.max_package_bytes)


def open_archive(config: Config, archive: Path, name: str | None = None) -> LocalRepository:
    """The local repository package `archive`, as a copy of the source called `name`."""
    source = locate(config, name)
    return LocalRepository(archive, source.root, *_places(config, name), max_bytes=config.update.max_package_bytes)


def locate(config: Config, name: str | None = None) -> Source:
    """The source with its paths made absolute."""
    source = config.source(name)
    paths = {
        key: config.path(value)
        for key in ("root", "ca", "certificate", "key", "token_file")
        if (value := getattr(source, key)) is not None
    }
    return source.model_copy(update=paths)


def _places(config: Config, name: str | None) -> tuple[Path, Path]:
    folder = config.path(config.nvm.path) / "tuf" / (name or config.update.use)
    return folder, config.path(config.cache.path) / "packages"


def _read_root(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the source's root {path}: {error.strerror}",
            hint="`root` names the 1.root.json of the repository; `otaflow repo init` makes it",
        ) from error
