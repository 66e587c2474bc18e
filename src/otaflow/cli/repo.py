"""`otaflow repo`: make a repository, publish packages in it, keep it fresh, serve it."""

import json as json_module
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts

from otaflow.errors import ConfigError

if TYPE_CHECKING:
    from otaflow.repo.choice import Target
    from otaflow.repo.signing import Expiry

app = cyclopts.App(name="repo", help="Make, publish and serve a repository of signed update packages.")

Json = Annotated[bool, cyclopts.Parameter(negative=(), help="Print the result as JSON.")]
Days = Annotated[float | None, cyclopts.Parameter(show_default=False)]


@app.command
def init(
    folder: Path,
    *,
    keys: Path | None = None,
    root_days: Days = None,
    targets_days: Days = None,
    snapshot_days: Days = None,
    timestamp_days: Days = None,
    json: Json = False,
) -> None:
    """Make an empty repository in FOLDER: `public/` to be served, `keys/` to be kept secret.

    Parameters
    ----------
    folder
        The folder of the repository.
    keys
        Another folder for the keys, such as one on a removable disk.
    root_days
        Days until the root expires (365); it is renewed in time by `refresh`, where its key is.
    targets_days
        Days until the list of packages expires (365); renewed in the same way.
    snapshot_days
        Days until the snapshot expires (90); `refresh` renews it.
    timestamp_days
        Days until the timestamp expires (14): so long can nobody hold new updates back unnoticed. `refresh` renews it.
    """
    from otaflow.repo import admin

    root = admin.init(folder, keys=keys, expiry=_expiry(root_days, targets_days, snapshot_days, timestamp_days))
    _tell(json, {"root": str(root)}, f"{folder}: an empty repository. Devices begin with {root}")


@app.command
def publish(
    folder: Path, *packages: Path, targets_days: Days = None, timestamp_days: Days = None, json: Json = False
) -> None:
    """Add PACKAGES to the repository in FOLDER, all or none.

    A version that is there already is left alone when it has the same bytes, and refused when it has others.

    Parameters
    ----------
    folder
        The folder of the repository.
    packages
        The packages, as `otaflow package build` makes them.
    targets_days
        Days until the list of packages expires; as at `init` when not given.
    timestamp_days
        Days until the timestamp expires; as at `init` when not given.
    """
    from otaflow.repo import admin

    if not packages:
        raise ConfigError("cannot publish: no package was named", hint="otaflow repo publish FOLDER FILE.nsu…")
    added = admin.publish(
        folder, list(packages), expiry=_expiry(targets_days=targets_days, timestamp_days=timestamp_days)
    )
    named = ", ".join(target.path for target in added) or "nothing, all was there"
    _tell(json, {"published": [_describe(target) for target in added]}, f"{folder}: published {named}")


@app.command
def withdraw(folder: Path, name: str, *, json: Json = False) -> None:
    """Take the package NAME (as `list` shows it) out of the repository in FOLDER."""
    from otaflow.repo import admin

    admin.withdraw(folder, name)
    _tell(json, {"withdrawn": name}, f"{folder}: withdrew {name}")


@app.command
def refresh(folder: Path, *, snapshot_days: Days = None, timestamp_days: Days = None, json: Json = False) -> None:
    """Sign snapshot and timestamp of the repository in FOLDER anew; run it daily, or devices will refuse it.

    Root and targets are signed anew, too, when they expire within 30 days and their keys are here.

    Parameters
    ----------
    folder
        The folder of the repository.
    snapshot_days
        Days until the snapshot expires; as at `init` when not given.
    timestamp_days
        Days until the timestamp expires; as at `init` when not given.
    """
    from otaflow.repo import admin

    signed = admin.refresh(folder, expiry=_expiry(snapshot_days=snapshot_days, timestamp_days=timestamp_days))
    _tell(json, {"signed": signed}, f"{folder}: signed {', '.join(signed)}")


@app.command
def rotate(folder: Path, role: Literal["root", "targets", "snapshot", "timestamp"], *, json: Json = False) -> None:
    """Give ROLE of the repository in FOLDER a new key; devices follow by themselves, as the root vouches for it."""
    from otaflow.repo import admin

    key = admin.rotate(folder, role)
    _tell(json, {"role": role, "key": key}, f"{folder}: {role} has the new key {key}; destroy the former one")


@app.command
def export(folder: Path, output: Path, *, json: Json = False) -> None:
    """Write the repository in FOLDER as one local repository package, OUTPUT (.nsr), for a USB stick."""
    from otaflow.repo import admin

    admin.export(folder, output)
    size = output.stat().st_size
    _tell(json, {"output": str(output), "bytes": size}, f"{output}: {size} bytes")


@app.command(name="list")
def list_(folder: Path, *, json: Json = False) -> None:
    """Show the packages of the repository in FOLDER, and until when its metadata is good."""
    from otaflow.repo import admin

    overview = admin.overview(folder)
    if json:
        roles = {
            role: {"version": version, "expires": expires.isoformat()}
            for role, (version, expires) in overview.roles.items()
        }
        print(json_module.dumps({"roles": roles, "packages": [_describe(one) for one in overview.packages]}, indent=2))
        return
    _print_table(
        ("package", "update", "applies to", "bytes"),
        ((one.path, str(one.update_number), _applies(one), str(one.length)) for one in overview.packages),
    )
    _print_table(
        ("role", "version", "good until"),
        ((role, str(version), f"{expires:%Y-%m-%d %H:%M} UTC") for role, (version, expires) in overview.roles.items()),
    )


@app.command
def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8443,
    certificate: Path | None = None,
    key: Path | None = None,
    self_signed: Annotated[bool, cyclopts.Parameter(negative=())] = False,
    client_ca: Path | None = None,
    token_file: Path | None = None,
    diagnostics: Path | None = None,
) -> None:
    """Serve the repository in FOLDER over HTTPS until Ctrl-C. A small server; docs/repository.md shows nginx.

    Parameters
    ----------
    folder
        The folder of the repository; its `public/` is served.
    host
        The address to listen on.
    port
        The port; 0 for any free one.
    certificate
        The server's certificate with its chain, PEM.
    key
        Its key, PEM, without a password.
    self_signed
        Make an authority and a certificate in FOLDER/tls, instead of --certificate and --key.
    client_ca
        Serve only clients with a certificate of this authority.
    token_file
        Serve only clients that send this file's token.
    diagnostics
        Take the diagnostic reports that devices send to /diagnostics into this folder; needs --client-ca or
        --token-file.
    """
    from otaflow.repo.serve import serve as serve_folder

    if self_signed:
        certificate, key = _make_certificate(folder, host)
    if certificate is None or key is None:
        raise ConfigError(
            "cannot serve: a certificate and its key are needed", hint="--certificate and --key, or --self-signed"
        )
    public = folder / "public" if (folder / "public").is_dir() else folder
    serve_folder(
        public,
        host,
        port,
        certificate,
        key,
        client_ca,
        _read_token(token_file),
        ready=lambda url: print(f"serving {public} at {url}", flush=True),
        diagnostics=diagnostics,
    )


def _make_certificate(folder: Path, host: str) -> tuple[Path, Path]:
    from otaflow.repo import certificates

    authority = certificates.make_authority(folder / "tls")
    hosts = dict.fromkeys([host, "localhost", "127.0.0.1"])
    pair = certificates.make_server_certificate(authority, folder / "tls", list(hosts))
    print(f"devices trust this server by `ca = {str(authority.certificate)!r}`", flush=True)
    return pair.certificate, pair.key


def _read_token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token {file}: {error}") from error
    if not token:
        raise ConfigError(f"cannot use the token {file}: it is empty")
    return token


def _expiry(
    root_days: float | None = None,
    targets_days: float | None = None,
    snapshot_days: float | None = None,
    timestamp_days: float | None = None,
) -> "Expiry":
    from otaflow.repo.signing import Expiry

    days = (root_days, targets_days, snapshot_days, timestamp_days)
    if any(one is not None and not 0 < one <= 36500 for one in days):
        raise ConfigError("cannot sign: a number of days must be above 0 and at most 36500")
    return Expiry(*days)


def _describe(target: "Target") -> dict[str, Any]:
    return {"file": target.path, "bytes": target.length, **target.hashes, **target.custom}


def _applies(target: "Target") -> str:
    models = ", ".join(target.applies_to.models) or "every model"
    return f"{models}; {target.applies_to.versions or 'every version'}"


def _tell(json: bool, values: dict[str, Any], text: str) -> None:
    print(json_module.dumps(values, indent=2) if json else text)


def _print_table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*heads)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
