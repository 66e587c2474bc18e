"""`otaflow tuf`: our TUF client behind the command line that the public TUF conformance suite calls.

The suite gives the flags before the word (`--metadata-dir D refresh`), so the word is an argument of one command and
not a command of its own. A failure is an exit code 1; which one it is, nobody asks.
"""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar
from urllib.parse import quote

import cyclopts

from otaflow.errors import ConfigError, RepositoryRefused

if TYPE_CHECKING:
    from otaflow.repo.transport import Transport

Value = TypeVar("Value")

app = cyclopts.App(name="tuf", help="Speak the command-line protocol of the public TUF conformance suite.")

ROOT = "root.json"


@app.default
def tuf(
    action: Literal["init", "refresh", "download"],
    trusted_root: Path | None = None,
    *,
    metadata_dir: Annotated[Path, cyclopts.Parameter(name="--metadata-dir")],
    metadata_url: Annotated[str | None, cyclopts.Parameter(name="--metadata-url")] = None,
    target_name: Annotated[str | None, cyclopts.Parameter(name="--target-name")] = None,
    target_base_url: Annotated[str | None, cyclopts.Parameter(name="--target-base-url")] = None,
    target_dir: Annotated[Path | None, cyclopts.Parameter(name="--target-dir")] = None,
) -> None:
    """Run the client that devices use by hand, or under theupdateframework/tuf-conformance.

    Parameters
    ----------
    action
        `init` takes TRUSTED_ROOT as the beginning of trust, `refresh` brings the metadata up to date, `download`
        refreshes and then brings one target.
    trusted_root
        For `init`: the file with the root metadata that is trusted.
    metadata_dir
        Where trusted metadata is kept.
    metadata_url
        The address of the repository's metadata; plain http only on this machine.
    target_name
        For `download`: the target's path in the repository.
    target_base_url
        For `download`: the address of the repository's targets.
    target_dir
        For `download`: the folder that the target is put into.
    """
    if action == "init":
        _init(metadata_dir, _given(trusted_root, "the file of the trusted root"))
    elif action == "refresh":
        _refresh(metadata_dir, _given(metadata_url, "--metadata-url"))
    else:
        _download(
            metadata_dir,
            _given(metadata_url, "--metadata-url"),
            _given(target_name, "--target-name"),
            _given(target_base_url, "--target-base-url"),
            _given(target_dir, "--target-dir"),
        )


def _init(metadata: Path, root: Path) -> None:
    from otaflow.files import write_atomic

    try:
        metadata.mkdir(parents=True, exist_ok=True)
        write_atomic(metadata / ROOT, root.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot begin with the root {root}: {error}") from error


def _refresh(metadata: Path, url: str) -> None:
    from otaflow.repo.trust import refresh

    with _transport(metadata, url) as transport:
        refresh(metadata, _root(metadata), f"{url.rstrip('/')}/", transport.fetch)


def _download(metadata: Path, url: str, name: str, base: str, folder: Path) -> None:
    from otaflow.repo.trust import published_path, refresh

    root = _root(metadata)
    with _transport(metadata, url) as transport:
        target = refresh(metadata, root, f"{url.rstrip('/')}/", transport.fetch, name)
    if target is None:
        raise RepositoryRefused(f"cannot download {name}: the repository has no such target")
    published = published_path(metadata, root, name, target.hashes)
    with _transport(metadata, base) as transport:
        transport.download(transport.url(published), folder / quote(name, ""), target.length, target.hashes)


def _transport(metadata: Path, url: str) -> "closing[Transport]":
    from otaflow.config import Source
    from otaflow.repo.transport import Transport

    # unchecked: a source's url is https in every configuration, and the suite's is http on this machine
    return closing(Transport(Source.model_construct(url=url, root=metadata / ROOT)))


def _root(metadata: Path) -> bytes:
    try:
        return (metadata / ROOT).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the trusted root in {metadata}: {error.strerror}", hint="begin with `init ROOT`"
        ) from error


def _given(value: Value | None, name: str) -> Value:
    if value is None:
        raise ConfigError(f"cannot run: {name} is missing", hint="`otaflow tuf --help` shows what each action needs")
    return value
