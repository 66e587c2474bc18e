"""The maker's side of a repository: make it, publish packages, keep it fresh, change keys, copy it to a stick.

Each call leaves the repository as it was or as it should be, also when it is killed: see `otaflow.repo.signing`.
"""

import fcntl
import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from otaflow.errors import Locked, OtaflowError
from otaflow.files import fsync_file, fsync_folder
from otaflow.repo.choice import Target, read_target
from otaflow.repo.signing import (
    DEFAULT_EXPIRY,
    ROLES,
    Expiry,
    Site,
    State,
    commit,
    has_keys,
    load_state,
    make_key,
    merge,
    open_site,
    read_signers,
    write_root,
)

SUFFIX = {"system": ".nsu", "application": ".nua"}
DUE = timedelta(days=30)  # root and targets are signed anew when less than this is left


@dataclass(frozen=True)
class Overview:
    """A repository at a glance: `roles` maps a role to its version and expiry."""

    roles: dict[str, tuple[int, datetime]]
    packages: list[Target]


def init(folder: Path, *, keys: Path | None = None, expiry: Expiry | None = None) -> Path:
    """Make an empty repository and its four keys; returns the root that devices are made with (1.root.json)."""
    site = Site(folder, keys.resolve() if keys else folder / "keys", merge(DEFAULT_EXPIRY, expiry))
    if (site.metadata / "timestamp.json").exists():
        raise OtaflowError(f"cannot make a repository in {folder}: there is one", hint="name another folder")
    site.metadata.mkdir(parents=True, exist_ok=True)
    site.targets.mkdir(parents=True, exist_ok=True)
    with _locked(site):
        site.save()
        root: Metadata[Root] = Metadata(Root(consistent_snapshot=True))
        for role in ROLES:
            root.signed.add_key(make_key(site, role).public_key, role)
        write_root(site, root, read_signers(site, root.signed, "root"))
        state = State(root, Metadata(Targets()), Metadata(Snapshot()), Metadata(Timestamp()))
        for metadata in (state.targets, state.snapshot, state.timestamp):
            metadata.signed.version = 0  # commit raises it
        commit(site, state, targets=True)
    return site.metadata / "1.root.json"


def publish(folder: Path, package_files: list[Path], *, expiry: Expiry | None = None) -> list[Target]:
    """Add packages, all or none; those that are there already with the same bytes are left alone.

    Returns the ones that were added. OtaflowError when a version is there with other bytes: devices may have it.
    """
    site = open_site(folder, expiry)
    with _locked(site):
        state = load_state(site)
        current = state.targets.signed.targets
        stored: list[TargetFile] = []
        new: dict[str, TargetFile] = {}
        try:
            for file in package_files:
                target = _store(site, file)
                stored.append(target)
                if _is_new(file, target, {**current, **new}):
                    new[target.path] = target
            current.update(new)
        finally:
            _remove_unsigned(site, stored, current)
        if new:
            commit(site, state, targets=True)
    return [package for target in new.values() if (package := read_target(target)) is not None]


def withdraw(folder: Path, name: str, *, expiry: Expiry | None = None) -> None:
    """Take the package `name` (as `overview` shows it) out of the metadata, then remove its file."""
    site = open_site(folder, expiry)
    with _locked(site):
        state = load_state(site)
        target = state.targets.signed.targets.pop(name, None)
        if target is None:
            known = ", ".join(sorted(state.targets.signed.targets)) or "none"
            raise OtaflowError(f"cannot withdraw {name}: it is not in the repository", hint=f"there is: {known}")
        commit(site, state, targets=True)
        _target_path(site, target).unlink(missing_ok=True)


def refresh(folder: Path, *, expiry: Expiry | None = None) -> list[str]:
    """Sign snapshot and timestamp anew before they expire; targets and root too, when they are due and keys are here.

    Returns the roles that were signed.
    """
    site = open_site(folder, expiry)
    with _locked(site):
        state = load_state(site)
        renewed = ["snapshot", "timestamp"]
        if _is_due(site, state, "root"):
            state.root.signed.version += 1
            write_root(site, state.root, read_signers(site, state.root.signed, "root"))
            renewed.insert(0, "root")
        targets = _is_due(site, state, "targets")
        commit(site, state, targets=targets)
    return [*renewed, "targets"] if targets else renewed


def rotate(folder: Path, role: str, *, expiry: Expiry | None = None) -> str:
    """Give `role` a new key instead of its present ones; returns the file of the new key.

    The role's metadata is signed by old and new keys before the root that names the new one appears, so that a client
    between the two trusts it either way. A new root is signed by the old root's keys and its own (TUF, section 6.1).
    """
    if role not in ROLES:
        raise OtaflowError(f"cannot rotate {role!r}: there is no such role", hint=f"one of {', '.join(ROLES)}")
    site = open_site(folder, expiry)
    with _locked(site):
        state = load_state(site)
        root = state.root
        signers = read_signers(site, root.signed, "root")
        new = make_key(site, role)
        if role == "root":
            signers.append(new)
        else:
            state.also[role] = new
            commit(site, state, targets=role == "targets")
        for keyid in list(root.signed.roles[role].keyids):
            root.signed.revoke_key(keyid, role)
        root.signed.add_key(new.public_key, role)
        root.signed.version += 1
        write_root(site, root, signers)
    return f"{role}-{new.public_key.keyid[:16]}.pem"


def export(folder: Path, output: Path) -> Path:
    """Write the repository's current state as one local repository package (`.nsr`), a plain TAR for a USB stick."""
    site = open_site(folder)
    with _locked(site):
        state = load_state(site)
        names = [f"metadata/{version}.root.json" for version in range(1, state.root.signed.version + 1)]
        names.append(f"metadata/{state.targets.signed.version}.targets.json")
        names.append(f"metadata/{state.snapshot.signed.version}.snapshot.json")
        names.append("metadata/timestamp.json")
        targets = sorted(state.targets.signed.targets.items())
        names.extend(_target_path(site, target).relative_to(site.folder / "public").as_posix() for _, target in targets)
        new = output.with_name(f".{output.name}.new")
        try:
            with tarfile.open(new, "w", format=tarfile.PAX_FORMAT) as archive:
                for name in names:
                    _append(archive, site.folder / "public" / name, name)
            fsync_file(new)
            os.replace(new, output)
        except OSError as error:
            raise OtaflowError(f"cannot export to {output}: {error}") from error
        finally:
            new.unlink(missing_ok=True)
        fsync_folder(output.parent)
    return output


def overview(folder: Path) -> Overview:
    """The versions and expiries of the roles, and the packages in the repository."""
    state = load_state(open_site(folder))
    roles = {role: getattr(state, role).signed for role in ROLES}
    packages = [read_target(target) for _, target in sorted(state.targets.signed.targets.items())]
    return Overview(
        {role: (signed.version, signed.expires) for role, signed in roles.items()},
        [package for package in packages if package is not None],
    )


def _store(site: Site, file: Path) -> TargetFile:
    """Copy a package among the targets under its final name, which nothing refers to yet."""
    from otaflow.package.extract import read_metadata

    read_metadata(file)  # so that what is wrong with it is said of its own name
    new = site.targets / f".{os.getpid()}.new"
    try:
        with file.open("rb") as source, new.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        metadata = read_metadata(new)
        with new.open("rb") as copy:
            digest = hashlib.file_digest(copy, "sha256").hexdigest()
        base = f"_from_{metadata.base}" if metadata.base else ""  # several may bring one version
        path = f"{metadata.name}-{metadata.version}{base}{SUFFIX[metadata.kind]}"
        target = TargetFile(new.stat().st_size, {"sha256": digest}, path, {"custom": {"otaflow": _describe(metadata)}})
        os.replace(new, _target_path(site, target))
        fsync_folder(site.targets)
    except OSError as error:
        raise OtaflowError(f"cannot publish {file}: {error.strerror or error}") from error
    finally:
        new.unlink(missing_ok=True)
    return target


def _is_new(file: Path, target: TargetFile, known: dict[str, TargetFile]) -> bool:
    """False for a package that is there; OtaflowError where other bytes are there under its name."""
    if (there := known.get(target.path)) is None:
        return True
    if there.hashes != target.hashes:
        raise OtaflowError(
            f"cannot publish {file}: {target.path} is there with other content",
            hint="raise the package's version: what devices may have seen is never replaced",
        )
    return False


def _remove_unsigned(site: Site, stored: list[TargetFile], signed: dict[str, TargetFile]) -> None:
    """Remove what was copied for nothing."""
    for target in stored:
        if target.path not in signed or signed[target.path].hashes != target.hashes:
            _target_path(site, target).unlink(missing_ok=True)


def _describe(metadata: Any) -> dict[str, Any]:
    """What a device must know of a package before it fetches it."""
    keys = {"name", "kind", "version", "update_number", "priority", "applies_to", "dependencies", "conflicts"}
    described: dict[str, Any] = metadata.model_dump(mode="json", include={*keys, "description"}, exclude_none=True)
    described["installed_bytes"] = metadata.size.installed_bytes
    if metadata.irreversible:
        lost = [one.database.title(metadata.name) for one in metadata.migrations if one.irreversible]
        described |= {"irreversible": True, "irreversible_data": list(dict.fromkeys(lost))}
    return described


def _target_path(site: Site, target: TargetFile) -> Path:
    return site.targets / f"{target.hashes['sha256']}.{target.path}"


def _is_due(site: Site, state: State, role: str) -> bool:
    left = getattr(state, role).signed.expires - datetime.now(UTC)
    return left < DUE and has_keys(site, state.root.signed, role)


def _append(archive: tarfile.TarFile, path: Path, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = path.stat().st_size, 0o644
    with path.open("rb") as file:
        archive.addfile(member, file)


@contextmanager
def _locked(site: Site) -> Iterator[None]:
    """One writer at a time. Locked when there is another."""
    fd = os.open(site.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Locked(f"cannot change {site.folder}: another otaflow is at work on it") from error
    finally:
        os.close(fd)
