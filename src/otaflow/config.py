"""The device's one configuration file, in TOML: what it is, where its slots are, whom it trusts.

Relative paths are relative to `device.root`. Nothing here has an effect; a wrong value is refused with its key.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from otaflow.errors import ConfigError
from otaflow.places import DEFAULT_PATH as DEFAULT_PATH
from otaflow.places import VARIABLE as VARIABLE


class Section(BaseModel):
    """A table of the file; a key that we do not know is an error, not a silent nothing."""

    # A table's schema is made as part of the whole file's, not by itself as well.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Device(Section):
    """`[device]`: the name shown in runs, the model that packages are made for, the folder of all state."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    model: str = Field(min_length=1, max_length=64)
    root: Path


class Slots(Section):
    """`[slots]`: where the system's slots are. `path` holds one folder or subvolume for each of `names`.

    With `partitions` each is the mount point of one of `devices`: a block device, or a file that holds a file system.
    """

    kind: Literal["btrfs", "directories", "partitions", "ostree"] = "directories"
    path: Path = Path("slots")
    names: tuple[str, str] = ("a", "b")
    devices: tuple[Path, Path] | None = None

    @model_validator(mode="after")
    def check_devices(self) -> "Slots":
        if (self.devices is not None) != (self.kind == "partitions"):
            what = "needs devices, one for each name" if self.devices is None else "has no devices"
            raise ValueError(f'kind = "{self.kind}" {what}')
        if self.devices and self.devices[0] == self.devices[1]:
            raise ValueError("devices must be two different ones")
        return self


class Boot(Section):
    """`[boot]`: how the slot that starts next is chosen, and how the restart is done.

    `restart` is a command (`["systemctl", "reboot"]`), or `"switch"` on a device whose slot is not its root file
    system: there the applications follow the index file and no machine restarts. `tries` is how often a new system is
    started before the boot loader falls back; one digit, since GRUB cannot calculate.
    """

    kind: Literal["index-file", "grub", "u-boot"] = "index-file"
    tries: int = Field(default=3, ge=1, le=9)
    index: Path = Path("index.json")
    grubenv: Path = Path("/boot/loader/grub/grubenv")
    fw_env_config: Path = Path("/etc/fw_env.config")
    restart: Literal["switch"] | Annotated[list[str], Field(min_length=1)] = "switch"

    @model_validator(mode="after")
    def _a_boot_loader_works_at_restarts(self) -> "Boot":
        if self.kind != "index-file" and self.restart == "switch":
            raise ValueError('a boot loader starts slots at a restart: set restart, as ["systemctl", "reboot"]')
        return self


class Main(Section):
    """`[main]`: the main partition (all that is no slot) and, inside it, the system's configuration `/etc/sys`."""

    path: Path = Path("main")
    configuration: Path = Path("main/etc/sys")


class Backups(Section):
    """`[backups]`: where they are and how long the full ones stay. Incremental backups stay for ever.

    A full backup and a snapshot go when BOTH `retention_days` have passed and `retention_reboots` were made.
    """

    path: Path = Path("backups")
    retention_days: float = Field(default=7, ge=0)
    retention_reboots: int = Field(default=2, ge=0)


class Store(Section):
    """`[cache]`, `[nvm]`, `[dumps]`: packages in transfer; what must outlive them (journal, history, logs, trust).

    Dumps of databases are made before a migration and kept until its update is committed.
    """

    path: Path


class Program(Section):
    """`[program]`: bounds of the up-down program."""

    timeout_seconds: float = Field(default=900, gt=0)


class Health(Section):
    """`[health]`: the device's own checks, beside those of the package. Each command must exit 0.

    With `reach_server` the new system must reach the update server, too. A trial has failed that was begun `trials`
    times and never came to an end, or in which the power was cut `power_cuts` times: the system may make it go.
    What a rollback leaves is cleaned up `clean_ups` times at most; what is still there then is an alarm in the history.
    """

    commands: list[list[str]] = []
    timeout_seconds: float = Field(default=30, gt=0)
    tries: int = Field(default=3, ge=1)
    wait_seconds: float = Field(default=1, ge=0)
    reach_server: bool = False
    trials: int = Field(default=10, ge=1)
    power_cuts: int = Field(default=20, ge=1)
    clean_ups: int = Field(default=10, ge=1)


class Applications(Section):
    """`[applications]`: the applications' files (`path`), their data (`data`), and how they are asked to close.

    `path` holds one tree for each application, `data` one folder. An application that runs has `close_seconds` from the
    request on. It, or its user, may defer that by `defer_seconds`, `defers` times; not for a priority update. What
    still runs then is ended: SIGTERM, and after `end_seconds` SIGKILL.
    """

    path: Path = Path("applications")
    data: Path = Path("data")
    close_seconds: float = Field(default=30, ge=0, le=86400)
    defer_seconds: float = Field(default=300, ge=0, le=86400)
    defers: int = Field(default=3, ge=0, le=100)
    end_seconds: float = Field(default=10, ge=0, le=3600)


class Services(Section):
    """`[services]`: who runs the background programs: `systemd`, or our own supervisor (`processes`) without it.

    `units` is where systemd reads unit files from. A service that was started or reloaded must be active, and not have
    been started anew, for `settle_seconds`. Starting, stopping and reloading take at most `timeout_seconds` each.
    """

    kind: Literal["systemd", "processes"] = "systemd"
    units: Path = Path("/etc/systemd/system")
    settle_seconds: float = Field(default=3, ge=0, le=3600)
    timeout_seconds: float = Field(default=90, gt=0, le=86400)


class Database(Section):
    """`[databases.NAME]`: a PostgreSQL database that migrations may name.

    `url` is `postgresql://USER@HOST:PORT/DATABASE`, or with `?host=/run/postgresql` for a socket; the password is in
    `password_file`. The user owns the database and may create another one.
    """

    url: str = Field(pattern=r"^postgresql://")
    password_file: Path | None = None


class Transfer(Section):
    """`[transfer]`: bounds of packages that clients bring over the interface.

    A transfer that is idle for `timeout_seconds` is given up; all of them together reserve at most `quota_bytes`.
    """

    timeout_seconds: float = Field(default=3600, gt=0)
    quota_bytes: int | None = Field(default=None, gt=0)


_HTTPS = re.compile(r"https://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[!-~]*)?")


class Source(Section):
    """`[sources.NAME]`: a repository. `url` is its base: `metadata/` and `targets/` are below it.

    `ca` is a bundle for this server alone (the system's trust otherwise). `token_file` holds a bearer token;
    `certificate` and `key` are the client's own. `root` is the trusted root of TUF metadata that the device was
    made with. The default source is `official`, unless `use` in `[update]` names another. `diagnostics` is where
    diagnostic data goes, with the same credentials and trust; without it none is sent.
    """

    url: str = Field(pattern=r"^https://")
    root: Path
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    connect_tries: int = Field(default=5, ge=1)
    connect_wait_seconds: float = Field(default=5, ge=0)
    timeout_seconds: float = Field(default=30, gt=0)
    refresh_seconds: float = Field(default=600, gt=0)
    diagnostics: str | None = None

    @field_validator("diagnostics")
    @classmethod
    def _is_https(cls, value: str | None) -> str | None:
        if value is not None and not _HTTPS.fullmatch(value):
            raise ValueError("it must be https://HOST/…, without user and password")
        return value

    @model_validator(mode="after")
    def _pairs(self) -> "Source":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("`certificate` and `key` go together")
        return self


class Update(Section):
    """`[update]`: which source is asked (`official` unless the user configured an alternative)."""

    use: str = "official"
    max_package_bytes: int = Field(default=8 * 2**30, gt=0)


class Api(Section):
    """`[api]`: where the agent answers. Always on the Unix `socket` (mode 0660); with `listen` also on TCP, over TLS.

    `listen` is `HOST:PORT` (`[::1]:8444`; port 0: any). It needs `certificate` and `key`, and `token_file` (a bearer
    token) or `client_ca` (the authority of client certificates); with both, either of them lets a client in.
    """

    socket: Path = Path("run/ucm.sock")
    listen: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    token_file: Path | None = None

    @field_validator("listen")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not (_ADDRESS.fullmatch(value) and int(value.rpartition(":")[2]) <= 65535):
            raise ValueError(f"{value!r} is not HOST:PORT, as in 127.0.0.1:8444 or [::1]:8444")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> "Api":
        if self.listen is None:
            for name in ("certificate", "key", "client_ca", "token_file"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` has no meaning without `listen`: the Unix socket has no TLS")
            return self
        for name in ("certificate", "key"):
            if getattr(self, name) is None:
                raise ValueError(f"`listen` needs `{name}`: TCP is answered over TLS only")
        if self.client_ca is None and self.token_file is None:
            raise ValueError("`listen` needs `token_file` or `client_ca`: TCP is answered with credentials only")
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `listen`, which must be configured."""
        host, _, port = (self.listen or "").rpartition(":")
        return host.strip("[]"), int(port)


_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")


class Window(Section):
    """One of `[[policy.windows]]`: it opens at each `cron` (five fields) in the time zone `zone`, for `minutes`."""

    cron: str
    zone: str = "UTC"
    minutes: int

    @field_validator("cron", "zone", "minutes")
    @classmethod
    def _is_right(cls, value: Any, info: ValidationInfo) -> Any:
        from otaflow.policy import windows  # only a device that has windows needs their calendar

        match info.field_name:
            case "cron":
                return windows.check_cron(value)
            case "zone":
                return windows.check_zone(value)
        return windows.check_minutes(value)


class Policy(Section):
    """`[policy]`: when a poll may install what it found. A command that installs is an answer in itself.

    `ask`: an update waits for the user's answer, which counts for `consent_days`; without it, what is new is
    installed at once, or in the next of `windows`. An update that failed is left alone for `backoff_hours`, doubled
    with each failure, at most for `backoff_max_days`. A priority update does not wait for answers and windows.
    """

    ask: bool = True
    consent_days: float = Field(default=7, gt=0, le=3650)
    windows: Annotated[list[Window], Field(max_length=64)] = []
    backoff_hours: float = Field(default=8, ge=0, le=8760)
    backoff_max_days: float = Field(default=14, ge=0, le=3650)


class Notices(Section):
    """`[notices]`: whom to tell. `urls` are apprise's; all of them together have `timeout_seconds`.

    `inbox_size` is how many messages to applications are kept.
    """

    urls: list[str] = []
    timeout_seconds: float = Field(default=30, gt=0)
    inbox_size: int = Field(default=200, ge=10, le=100_000)

    @field_validator("urls")
    @classmethod
    def _are_urls(cls, urls: list[str]) -> list[str]:
        for number, url in enumerate(urls):
            if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://.", url):  # not quoted: it may hold a password
                raise ValueError(f"entry {number} is no apprise URL: write SERVICE://…, as in mailto://…")
        return urls


class Poll(Section):
    """`[poll]`: how often `otaflow up` looks for updates.

    Every `interval_minutes`, at a moment of the device's own, and each time up to `jitter_minutes` later.
    """

    interval_minutes: float = Field(default=480, ge=0.05, le=60 * 24 * 90)
    jitter_minutes: float = Field(default=30, ge=0, le=60 * 24)


class Prefect(Section):
    """`[prefect]`: the server that `otaflow up` starts where PREFECT_API_URL names none: on loopback, at `port`."""

    port: int = Field(default=4200, ge=1, le=65535)


class Config(Section):
    """The whole file. Paths are made absolute when it is loaded."""

    device: Device
    slots: Slots = Slots()
    boot: Boot = Boot()
    main: Main = Main()
    backups: Backups = Backups()
    cache: Store = Store(path=Path("cache"))
    nvm: Store = Store(path=Path("nvm"))
    dumps: Store = Store(path=Path("dumps"))
    applications: Applications = Applications()
    services: Services = Services()
    databases: Annotated[dict[str, Database], Field(max_length=64)] = {}
    program: Program = Program()
    health: Health = Health()
    update: Update = Update()
    transfer: Transfer = Transfer()
    api: Api = Api()
    policy: Policy = Policy()
    poll: Poll = Poll()
    prefect: Prefect = Prefect()
    notices: Notices = Notices()
    sources: Annotated[dict[str, Source], Field(max_length=16)] = {}

    @model_validator(mode="after")
    def _state_is_outside_main(self) -> "Config":
        """What is in the main partition goes back with its snapshot: never the journal, the slots or the backups."""
        for name, path in (
            ("slots.path", self.slots.path),
            ("boot.index", self.boot.index),
            ("backups.path", self.backups.path),
            ("cache.path", self.cache.path),
            ("nvm.path", self.nvm.path),
            ("dumps.path", self.dumps.path),
            ("applications.path", self.applications.path),
            ("applications.data", self.applications.data),
        ):
            if self.main.path in (path, *path.parents):
                raise ValueError(f"{name} is inside main.path, whose snapshots would take it along")
        return self

    def path(self, relative: Path) -> Path:
        """`relative`, seen from the device's root."""
        return self.device.root / relative

    def source(self, name: str | None = None) -> Source:
        """The source called `name`, or the one the device uses. ConfigError when there is none."""
        name = name or self.update.use
        if name not in self.sources:
            known = ", ".join(sorted(self.sources)) or "none"
            raise ConfigError(
                f"cannot use the source {name!r}: the configuration has {known}",
                hint=f"add [sources.{name}] with url and root, or name another with --source",
            )
        return self.sources[name]


def load(path: Path | None = None) -> Config:
    """Read `path`, else $OTAFLOW_CONFIG, else /etc/otaflow.toml. ConfigError says which key is wrong."""
    path = path or Path(os.environ.get(VARIABLE) or DEFAULT_PATH)
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: there is no such file",
            hint=f"`otaflow device init` makes one; or name it with --config or ${VARIABLE}",
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    return parse(values, path)


def parse(values: dict[str, Any], path: Path) -> Config:
    """Check `values` as read from `path`; a relative `device.root` is relative to that file's folder."""
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"cannot use the configuration {path}: {key}: {first['msg']}",
            hint="docs/configuration.md lists every key",
        ) from error
    root = (path.parent / config.device.root).resolve()
    return config.model_copy(update={"device": config.device.model_copy(update={"root": root})})
