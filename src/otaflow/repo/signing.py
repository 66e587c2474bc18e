"""The maker's signed state: keys, the four roles of TUF, and writing them so that clients never see a mixture.

A repository is a folder: `public/` is what a web server serves, `keys/` (or another place) holds one PEM file a key,
`repository.json` our settings. What `public/metadata/timestamp.json` leads to IS the repository: consistent snapshots
(TUF, section 6.2) give every other file a name that is never used again, so replacing that one file is the commit.
"""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.exceptions import Error as KeyError_
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from otaflow.errors import OtaflowError
from otaflow.files import write_atomic

ROLES = ("root", "targets", "snapshot", "timestamp")
SETTINGS = "repository.json"


@dataclass(frozen=True)
class Expiry:
    """After how many days each role's metadata expires; `None` keeps what the repository was made with."""

    root: float | None = None
    targets: float | None = None
    snapshot: float | None = None
    timestamp: float | None = None


DEFAULT_EXPIRY = Expiry(root=365, targets=365, snapshot=90, timestamp=14)


@dataclass
class Site:
    """Where a repository's parts are, and how long its metadata is good for."""

    folder: Path
    keys: Path
    expiry: Expiry = DEFAULT_EXPIRY

    @property
    def metadata(self) -> Path:
        return self.folder / "public" / "metadata"

    @property
    def targets(self) -> Path:
        return self.folder / "public" / "targets"

    def save(self) -> None:
        keys = os.path.relpath(self.keys, self.folder) if self.keys.is_relative_to(self.folder) else str(self.keys)
        content = {"keys": keys, "expiry_days": asdict(self.expiry)}
        write_atomic(self.folder / SETTINGS, json.dumps(content, indent=2).encode() + b"\n")


@dataclass
class State:
    """The current metadata of the four roles, and the signers of each."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    also: dict[str, CryptoSigner] = field(default_factory=dict)
    """A further signer of a role whose key is being replaced."""


def open_site(folder: Path, expiry: Expiry | None = None) -> Site:
    """The repository in `folder`. OtaflowError when there is none."""
    try:
        settings = json.loads((folder / SETTINGS).read_bytes())
        kept = Expiry(**settings["expiry_days"])
        site = Site(folder, folder / settings["keys"], merge(kept, expiry))
    except FileNotFoundError as error:
        raise OtaflowError(
            f"cannot use {folder}: there is no repository", hint="`otaflow repo init` makes one"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OtaflowError(f"cannot use {folder}: {SETTINGS} cannot be read: {error}") from error
    return site


def merge(kept: Expiry, wanted: Expiry | None) -> Expiry:
    """`kept`, save where `wanted` says otherwise."""
    return replace(kept, **{role: days for role, days in asdict(wanted or Expiry()).items() if days is not None})


def make_key(site: Site, role: str) -> CryptoSigner:
    """A new ed25519 key for `role`, in a file of its own that only its owner can read."""
    signer = CryptoSigner.generate_ed25519()
    site.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(_key_path(site, role, signer.public_key.keyid), signer.private_bytes, mode=0o600)
    return signer


def read_signers(site: Site, root: Root, role: str) -> list[CryptoSigner]:
    """The signers of `role` as the root names them. OtaflowError when a key's file is not here."""
    signers = []
    for keyid in root.roles[role].keyids:
        path = _key_path(site, role, keyid)
        try:
            key = cast(SSlibKey, root.keys[keyid])
            signers.append(CryptoSigner(load_pem_private_key(path.read_bytes(), None), key))
        except FileNotFoundError as error:
            raise OtaflowError(
                f"cannot sign as {role}: the key {path} is not here", hint="bring the folder of keys, then try again"
            ) from error
        except (OSError, ValueError, TypeError, KeyError_) as error:
            raise OtaflowError(f"cannot sign as {role}: the key {path} cannot be used: {error}") from error
    return signers


def has_keys(site: Site, root: Root, role: str) -> bool:
    return all(_key_path(site, role, keyid).is_file() for keyid in root.roles[role].keyids)


def load_state(site: Site) -> State:
    """What timestamp.json leads to, and the newest root."""
    try:
        timestamp: Metadata[Timestamp] = _read(site, "timestamp.json")
        snapshot: Metadata[Snapshot] = _read(site, f"{timestamp.signed.snapshot_meta.version}.snapshot.json")
        targets: Metadata[Targets] = _read(site, f"{snapshot.signed.meta['targets.json'].version}.targets.json")
        version = 1
        while (site.metadata / f"{version + 1}.root.json").exists():
            version += 1
        root: Metadata[Root] = _read(site, f"{version}.root.json")
    except (OSError, RepositoryError, KeyError) as error:
        raise OtaflowError(
            f"cannot use the repository {site.folder}: {error}",
            hint="`otaflow repo init` makes a repository; a damaged one comes back from its backup",
        ) from error
    return State(root, targets, snapshot, timestamp)


def commit(site: Site, state: State, *, targets: bool) -> None:
    """Sign and publish: targets where they changed, snapshot, and last timestamp.json, which makes them current."""
    if targets:
        data = _sign(site, state, "targets")
        state.snapshot.signed.meta["targets.json"] = _describe(state.targets.signed.version, data)
        write_atomic(site.metadata / f"{state.targets.signed.version}.targets.json", data)
    data = _sign(site, state, "snapshot")
    state.timestamp.signed.snapshot_meta = _describe(state.snapshot.signed.version, data)
    write_atomic(site.metadata / f"{state.snapshot.signed.version}.snapshot.json", data)
    write_atomic(site.metadata / "timestamp.json", _sign(site, state, "timestamp"))


def write_root(site: Site, root: Metadata[Root], signers: list[CryptoSigner]) -> None:
    """Sign `root`, whose version is already the new one, and publish it. Clients need every version of it."""
    root.signed.expires = expires(site, "root")
    root.signatures.clear()
    for signer in signers:
        root.sign(signer, append=True)
    write_atomic(site.metadata / f"{root.signed.version}.root.json", root.to_bytes())


def expires(site: Site, role: str) -> datetime:
    """When metadata of `role` that is signed now expires, in UTC."""
    days = getattr(site.expiry, role)
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def _sign(site: Site, state: State, role: str) -> bytes:
    metadata: Metadata[Any] = getattr(state, role)
    metadata.signed.version += 1
    metadata.signed.expires = expires(site, role)
    metadata.signatures.clear()
    signers = read_signers(site, state.root.signed, role)
    for signer in [*signers, *([state.also[role]] if role in state.also else [])]:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _describe(version: int, data: bytes) -> MetaFile:
    return MetaFile.from_data(version, data, ["sha256"])


def _read(site: Site, name: str) -> Metadata[Any]:
    return Metadata[Any].from_bytes((site.metadata / name).read_bytes())


def _key_path(site: Site, role: str, keyid: str) -> Path:
    return site.keys / f"{role}-{keyid[:16]}.pem"
