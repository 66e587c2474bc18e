"""The demo's stage: a folder with a device, a repository, its TLS server and a Prefect server, and its removal.

Whatever was made is removed again by `Site.remove`, also by another process: `demo.json` says what there is.
"""

import json
import os
import random
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import otaflow
from otaflow.errors import CommandFailed, OtaflowError
from otaflow.files import write_atomic
from otaflow.platform.run import Server, is_running, run, start, stop
from otaflow.prefect_server import PROGRAM, home_environment, server_environment

EXAMPLES = Path(otaflow.__file__).parent / "examples"
SYSTEM, NOTES = "demo-system", "notes"
EXAMPLE = EXAMPLES / SYSTEM
RECORD = "demo.json"
IMAGE_BYTES = 512 * 2**20
START_SECONDS = 180.0
CONFIG = """# The configuration of the demo's device; docs/configuration.md lists every key.
[device]
name = "demo"
model = "demo-board"
root = "device"

[slots]
kind = "{kind}"

[applications]
close_seconds = 0       # the notes need no time to close

[services]
kind = "processes"      # run by otaflow's own supervisor; this machine's systemd is left alone
settle_seconds = 2

[sources.official]
url = "https://127.0.0.1:{port}"
root = "../repository/public/metadata/1.root.json"
ca = "../repository/tls/ca.pem"
"""
OPERATED = """
[poll]
interval_minutes = {minutes:g}
jitter_minutes = 0

[prefect]
port = {port}
"""
PREFECT_PORT = 4200
"""Where Prefect's UI is expected; another one, where that is taken."""


class Site:
    """The demo in `folder`; `outlives` leaves its servers running when this process ends."""

    def __init__(self, folder: Path, *, outlives: bool = False) -> None:
        self.folder = folder.resolve()
        self.outlives = outlives
        self.device = self.folder / "device"
        self.repository = self.folder / "repository"
        self.config = self.folder / "otaflow.toml"
        self.record: dict[str, Any] = {"servers": {}, "mounted": False}

    def save(self) -> None:
        """Write down what there is to be removed."""
        write_atomic(self.folder / RECORD, json.dumps(self.record, indent=2).encode())

    @classmethod
    def find(cls, folder: Path) -> "Site":
        """The demo that was left in `folder`. OtaflowError when there is none."""
        site = cls(folder)
        try:
            site.record = json.loads((site.folder / RECORD).read_text())
        except (OSError, ValueError) as error:
            raise OtaflowError(
                f"cannot remove the demo in {folder}: {error}",
                hint="name the folder that `otaflow demo --keep` printed",
            ) from error
        return site

    def remove(self) -> None:
        """Stop the servers and services, unmount the device, remove the folder. What is gone already is no error."""
        for server in self.record["servers"].values():
            stop(Server(*server))
        self._stop_services()
        if self.device.is_mount():
            run(["umount", self.device], timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():  # a folder without write permission in it, or a server's last words
            run(["rm", "-rf", "--", self.folder], timeout=60)

    def make_storage(self, why_no_btrfs: str = "") -> str:
        """Give the device its storage: a btrfs of its own where that works and may be; returns what it is, in words."""
        self.device.mkdir()
        why = why_no_btrfs or self._why_no_btrfs()
        if not why:
            try:
                self._mount_btrfs()
            except CommandFailed as error:
                why = str(error)
        self.record["kind"] = "directories" if why else "btrfs"
        return f"directories (btrfs: {why})" if why else "btrfs on a loop file"

    def make_repository(self, versions: list[str], later: Sequence[str] = ()) -> None:
        """Build the example's packages and publish them in a new repository; `later` ones are built only."""
        from otaflow.package.build import build
        from otaflow.repo import admin

        admin.init(self.repository)
        packages = {version: self.folder / "packages" / f"demo-system-{version}.nsu" for version in (*versions, *later)}
        for version, package in packages.items():
            build(self._copy_example(SYSTEM, version), package)
        admin.publish(self.repository, [packages[version] for version in versions])

    def publish_notes(self, versions: Sequence[str], later: Sequence[str] = ()) -> None:
        """Build the application's packages for this device and publish them; `later` ones are built only."""
        from otaflow.package.build import build
        from otaflow.repo import admin

        packages = {version: self.folder / "packages" / f"{NOTES}-{version}.nua" for version in (*versions, *later)}
        places = {"@APPLICATION@": self.device / "applications" / NOTES, "@DATA@": self.device / "data" / NOTES}
        for version, package in packages.items():
            source = self._copy_example(NOTES, version)
            for unit in source.glob("files/services/*"):
                text = unit.read_text()
                for word, place in places.items():
                    text = text.replace(word, str(place))
                unit.write_text(text)
            build(source, package)
        admin.publish(self.repository, [packages[version] for version in versions])

    @property
    def notes_url(self) -> str:
        """Where the application answers, once it is installed."""
        return f"http://127.0.0.1:{self.record['notes']}/"

    def make_device(self) -> None:
        """Make the device with the first system of the example, its configuration file, and a port for its notes."""
        from otaflow import config
        from otaflow.platform.device import Device
        from otaflow.platform.setup import init_device

        self.config.write_text(CONFIG.format(kind=self.record["kind"], port=self.record["port"]))
        first = self._copy_example(SYSTEM, "1.0.0")
        device = Device(config.load(self.config))
        init_device(device, system=first / "system", name=SYSTEM, version="1.0.0", configuration=first / "etc")
        self.record["notes"] = lasting_port()
        self.save()
        device.applications.data(NOTES).mkdir(parents=True)
        (device.applications.data(NOTES) / "port").write_text(f"{self.record['notes']}\n")

    def add_schedule(self, minutes: float) -> None:
        """Have `otaflow up` poll so often, with its server on a port that is free."""
        port = PREFECT_PORT if _is_free(PREFECT_PORT) else free_port()
        with self.config.open("a") as file:
            file.write(OPERATED.format(minutes=minutes, port=port))

    def start_repository(self) -> str:
        """Serve the repository over TLS, as a process of its own; returns its URL."""
        from otaflow.repo import certificates

        tls = self.repository / "tls"
        pair = certificates.make_server_certificate(certificates.make_authority(tls), tls, ["127.0.0.1", "localhost"])
        self.record["port"] = port = free_port()
        program = [sys.executable, "-c", "from otaflow.cli import main; main()"]
        serve = [*program, "repo", "serve", str(self.repository), "--port", str(port)]
        self._start("repository", [*serve, "--certificate", str(pair.certificate), "--key", str(pair.key)], {})
        return f"https://127.0.0.1:{port}"

    def start_prefect(self) -> str:
        """Start a Prefect server that keeps its database in the folder; returns its URL, before it answers."""
        port = str(free_port())
        (self.folder / "prefect").mkdir()
        services = [] if self.outlives else ["--no-services"]
        url = f"http://127.0.0.1:{port}"
        self.record["ui"] = url
        self._start("prefect", [*PROGRAM, port, *services], server_environment(self.folder / "prefect", url))
        return url

    def wait_for(self, name: str, url: str) -> None:
        """Return when the server `name` answers. OtaflowError with its last words when it ends or never answers."""
        server = Server(*self.record["servers"][name])
        end = time.monotonic() + START_SECONDS
        while is_running(server) and time.monotonic() < end:
            if _answers(url):
                return
            time.sleep(0.05)
        said = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        raise OtaflowError(f"cannot start the {name} server: {said[-1] if said else 'it does not answer'}")

    # --- inside -------------------------------------------------------------------------------------------------------

    def _start(self, name: str, args: Sequence[str], env: Mapping[str, str]) -> None:
        environment = {"HOME": str(self.folder), **env}
        server = start(args, env=environment, log=self.folder / f"{name}.log", outlives=self.outlives)
        self.record["servers"][name] = list(server)
        self.save()

    def _stop_services(self) -> None:
        """End what the device's supervisors run: they outlive who started them."""
        from otaflow import config
        from otaflow.platform.device import Device
        from otaflow.platform.supervised import SupervisedServices

        if self.config.exists():
            services = Device(config.load(self.config)).services
            for name in services.linked() if isinstance(services, SupervisedServices) else []:
                services.stop(name)

    def _why_no_btrfs(self) -> str:
        if os.geteuid() != 0:
            return "a loop file needs root"
        if shutil.which("mkfs.btrfs", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
            return "btrfs-progs is not installed"
        return "" if Path("/dev/loop-control").exists() else "there are no loop devices"

    def _mount_btrfs(self) -> None:
        image = self.folder / "device.img"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        run(["mkfs.btrfs", "-q", image], timeout=60)
        self.record["mounted"] = True
        self.save()
        # `-o loop` detaches the loop device itself when it is unmounted
        run(["mount", "-o", "loop,noatime", image, self.device], timeout=60)

    def _copy_example(self, name: str, version: str) -> Path:
        """A copy of the example with the modes that are meant, whatever the umask or an archive made of them."""
        target = self.folder / "packages" / name / version
        shutil.copytree(EXAMPLES / name / version, target)
        for path in target.rglob("*"):
            program = path.is_dir() or path.parent.name == "bin" or path == target / "update"
            path.chmod(0o755 if program else 0o644)
        return target


def prefect_environment(folder: Path) -> dict[str, str]:
    """Prefect's settings for programs that keep to the demo's folder and tell nobody."""
    return home_environment(folder / "prefect")


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lasting_port() -> int:
    """A free port that no connection is given by chance while a service that listens there is being updated."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = range(min(10_000, first), first)
    for port in random.sample(ports, min(len(ports), 100)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    return free_port()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _answers(url: str) -> bool:
    """Whether a server answers at `url`; of an HTTPS one, that it takes connections."""
    if url.startswith("https"):
        host, _, port = url.removeprefix("https://").partition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
