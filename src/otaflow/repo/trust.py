"""What a device trusts of a repository: TUF metadata, brought up to date and read again without the network.

`refresh` is the client workflow of TUF (specification 1.0, section 5), done by python-tuf's ngclient on a copy of the
stored metadata; what it accepted is then written durably, because ngclient does not fsync and an empty timestamp
after a power cut would be the end of the protection against rollback. `load` verifies the stored chain again.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from tuf.api import exceptions
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from otaflow.errors import ConfigError, LoginRefused, OtaflowError, RepositoryRefused
from otaflow.files import fsync_folder, write_atomic
from otaflow.repo.download import Missing

Fetch = Callable[[str, int], Iterator[bytes]]
"""Called with an address and the most bytes that may come."""

Role = TypeVar("Role", Root, Snapshot, Targets, Timestamp)

REASONS: dict[type[Exception], tuple[str, str]] = {
    exceptions.ExpiredMetadataError: (
        "it has expired, or newer metadata is held back (freeze)",
        "its owner runs `otaflow repo refresh`; check the device's clock, too",
    ),
    exceptions.BadVersionNumberError: (
        "a version is not the one expected (rollback, or a mixture of states)",
        "an old copy is being served; tell the repository's owner",
    ),
    exceptions.UnsignedMetadataError: (
        "it is not signed by the keys that this device trusts",
        "this is another repository, or the device's root is of another one",
    ),
    exceptions.LengthOrHashMismatchError: (
        "files do not belong together (mix and match)",
        "a copy may have been made while the repository changed; tell its owner",
    ),
}


def refresh(folder: Path, root: bytes, url: str, fetch: Fetch, wanted: str | None = None) -> TargetFile | None:
    """Bring the trusted metadata in `folder` up to date from `url`; `root` is the device's embedded one.

    Returns the target with the path `wanted`, delegated ones included; None when there is none, or none is wanted.
    What was accepted before a failure stays accepted. RepositoryRefused says what did not verify; whatever `fetch`
    raises comes through; ConfigError when `root` is none.
    """
    work = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _copy(folder, work)
    try:
        updater = _start(work, root, url, _Fetcher(fetch))
        try:
            updater.refresh()
            return None if wanted is None else updater.get_targetinfo(wanted)
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise explain(error) from error
        finally:
            _keep(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def load(folder: Path, root: bytes) -> Targets:
    """The signed targets in `folder`, each link of the chain verified from `root` on; expiry is for `refresh` to judge.

    RepositoryRefused when the chain does not hold, or there is none yet.
    """
    try:
        trusted = _load_roots(folder, root)
        timestamp = _load(folder, Timestamp, trusted)
        meta = timestamp.snapshot_meta
        snapshot = _load(folder, Snapshot, trusted, meta.version)
        meta.verify_length_and_hashes(_read(folder, Snapshot))
        meta = snapshot.meta["targets.json"]
        targets = _load(folder, Targets, trusted, meta.version)
        meta.verify_length_and_hashes(_read(folder, Targets))
    except FileNotFoundError as error:
        raise RepositoryRefused(
            "cannot verify without the repository's metadata: this device has none yet",
            hint="`otaflow check` fetches it from the source",
        ) from error
    except (exceptions.RepositoryError, KeyError) as error:
        raise explain(error) from error
    return targets


def published_path(folder: Path, root: bytes, path: str, hashes: Mapping[str, str]) -> str:
    """The quoted path of a target below `targets/`: with consistent snapshots its name begins with a hash.

    TUF, section 5.7.2. RepositoryRefused when the roots in `folder` do not hold.
    """
    try:
        consistent = _load_roots(folder, root).consistent_snapshot
    except exceptions.RepositoryError as error:
        raise explain(error) from error
    parent, slash, name = path.rpartition("/")
    return quote(f"{parent}{slash}{next(iter(hashes.values()))}.{name}" if consistent else path)


def explain(error: Exception) -> OtaflowError:
    """An error of python-tuf as one of ours, with the plain reason."""
    if isinstance(error, exceptions.DownloadHTTPError) and isinstance(error.__cause__, OtaflowError):
        return error.__cause__
    for kind, (reason, hint) in REASONS.items():
        if isinstance(error, kind):
            return RepositoryRefused(f"cannot trust the repository's metadata: {reason}: {error}", hint=hint)
    return RepositoryRefused(
        f"cannot trust the repository's metadata: {error}", hint="check the source's url; tell the repository's owner"
    )


class _Fetcher(FetcherInterface):
    """ngclient's view of our transport; its errors come through as they are, save those that ngclient must know."""

    def __init__(self, fetch: Fetch) -> None:
        self._source = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self._source(url, UpdaterConfig().targets_max_length)

    def download_bytes(self, url: str, max_length: int) -> bytes:
        try:
            return b"".join(self._source(url, max_length))
        except Missing as error:
            raise exceptions.DownloadHTTPError(str(error), 404) from error
        except LoginRefused as error:  # some stores answer so for the root that is not there yet
            raise exceptions.DownloadHTTPError(str(error), 403) from error


def _start(folder: Path, root: bytes, url: str, fetcher: FetcherInterface) -> Updater:
    try:
        return Updater(str(folder), url, fetcher=fetcher, bootstrap=root)
    except exceptions.RepositoryError as error:
        raise ConfigError(
            f"cannot use the source's root: {error}", hint="`root` names the repository's 1.root.json, unchanged"
        ) from error


def _copy(folder: Path, work: Path) -> None:
    (work / "root_history").mkdir(parents=True)
    for path in _files(folder):
        (work / path.relative_to(folder)).write_bytes(path.read_bytes())


def _keep(work: Path, folder: Path) -> None:
    """Write what is new in `work` into `folder`, in the order in which it was verified."""
    (folder / "root_history").mkdir(exist_ok=True)
    fsync_folder(folder)
    for path in _files(work):
        kept, content = folder / path.relative_to(work), path.read_bytes()
        if not kept.is_file() or kept.read_bytes() != content:
            write_atomic(kept, content)


def _files(folder: Path) -> list[Path]:
    """The metadata in `folder`, roots first, then timestamp, snapshot, targets and delegated ones."""
    history = sorted((folder / "root_history").glob("*.root.json"), key=lambda path: (len(path.name), path.name))
    order = ["root.json", "timestamp.json", "snapshot.json"]
    others = sorted(path for path in folder.glob("*.json") if path.name not in order)
    return [path for path in (*history, *(folder / name for name in order), *others) if path.is_file()]


def _load_roots(folder: Path, root: bytes) -> Root:
    first = _parse(Root, root)
    first.signed.verify_delegate(Root.type, first.signed_bytes, first.signatures)
    trusted = first.signed
    while (path := folder / "root_history" / f"{trusted.version + 1}.root.json").is_file():
        new = _parse(Root, path.read_bytes())
        for judge in (trusted, new.signed):
            judge.verify_delegate(Root.type, new.signed_bytes, new.signatures)
        if new.signed.version != trusted.version + 1:
            raise exceptions.BadVersionNumberError(f"{path.name} is version {new.signed.version}")
        trusted = new.signed
    return trusted


def _load(folder: Path, kind: type[Role], root: Root, version: int | None = None) -> Role:
    metadata = _parse(kind, _read(folder, kind))
    root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
    if version is not None and metadata.signed.version != version:
        raise exceptions.BadVersionNumberError(f"{kind.type} is version {metadata.signed.version}, not {version}")
    return metadata.signed


def _read(folder: Path, kind: type[Role]) -> bytes:
    return (folder / f"{kind.type}.json").read_bytes()


def _parse(kind: type[Role], content: bytes) -> Metadata[Role]:
    metadata = Metadata[Role].from_bytes(content)
    if not isinstance(metadata.signed, kind):
        raise exceptions.RepositoryError(f"it is not of type {kind.type}")
    return metadata
