"""The boxes of the fetch as tasks: what is refused is tried once, what is away is tried again, a download is shown."""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from otaflow import progress
from otaflow.config import parse
from otaflow.errors import CertificateRefused, LoginRefused, Offline
from otaflow.flows.check import check, fetch
from otaflow.flows.session import PrefectRuns
from otaflow.package.build import build
from otaflow.platform.device import Device, using
from otaflow.platform.setup import init_device
from otaflow.repo import admin, serve
from otaflow.repo.certificates import make_authority, make_server_certificate
from otaflow.service import Ucm

TRIES = 3
TOKEN = "a-token-of-the-tests"


class Site:
    """A repository with one package, its certificates, and the device that asks it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = folder / "package"
        (source / "assets").mkdir(parents=True)
        (source / "assets" / "file").write_bytes(b"content" * 100_000)
        (source / "metadata").write_text("format: 1\nname: system\nkind: system\nversion: 1.1.0\nupdate_number: 1\n")
        (source / "update").write_text("#!/bin/sh\n")
        (source / "update").chmod(0o755)
        package = folder / "system-1.1.0.nsu"
        build(source, package)
        self.root = admin.init(folder / "site")
        admin.publish(folder / "site", [package])
        self.authority = make_authority(folder / "tls")
        self.server = make_server_certificate(self.authority, folder / "tls", ["127.0.0.1"])

    @contextmanager
    def served(self, *, token: str | None = None) -> Iterator[str]:
        pair = self.server
        with serve.running(self.folder / "site" / "public", pair.certificate, pair.key, token=token) as url:
            yield url

    def device(self, url: str, **source: Any) -> Device:
        values = {"url": url, "root": str(self.root), "ca": str(self.authority.certificate), "connect_tries": TRIES}
        values |= {"connect_wait_seconds": 0} | source
        name = f"device-{len(list(self.folder.glob('device-*')))}"
        config = {"device": {"name": "d", "model": "m", "root": name}, "sources": {"official": values}}
        device = Device(parse(config, self.folder / "otaflow.toml"))
        init_device(device, system=None, name="system", version="1.0.0", configuration=None)
        return device


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@contextmanager
def shown(device: Device) -> Iterator[Ucm]:
    with using(device), device.lock:
        runs = PrefectRuns(device)
        try:
            yield Ucm(device, runs)
        finally:
            runs.close()


@contextmanager
def counting() -> Iterator[list[str]]:
    """The titles of the steps that fail, each time."""
    failures: list[str] = []

    def hear(event: progress.Event) -> None:
        if event.kind == "failed":
            failures.append(event.name)

    with progress.listening(hear):
        yield failures


def tasks_of_last_run(device: Device, expected: int) -> dict[str, tuple[str, int]]:
    """Each task's state and how often it was tried, by name."""
    import time

    run = device.journal.session.notes["phase_run"]
    only = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
    deadline = time.monotonic() + 180
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_task_runs(flow_run_filter=only)
            tasks = {
                task.name: (task.state_name, task.run_count) for task in found if task.state and task.state.is_final()
            }
            if len(tasks) >= expected or time.monotonic() > deadline:
                return tasks
            time.sleep(0.1)


def test_every_box_is_a_task_and_the_download_an_artifact(site: Site, prefect_api: str) -> None:
    with site.served() as url:
        device = site.device(url)
        with shown(device) as ucm:
            targets = ucm.run(check, {"source": "official"})
            boxes = tasks_of_last_run(device, 5)
            package = Path(ucm.run(fetch, {"source": "official", "target": targets[0]}))
    assert [target.version for target in targets] == ["1.1.0"]
    assert boxes == {
        "connect to the package management server": ("Completed", 1),
        "check ssl certificate of connection": ("Completed", 1),
        "authenticate": ("Completed", 1),
        "update package repository": ("Completed", 1),
        "find new packages": ("Completed", 1),
    }
    assert package.read_bytes() == (site.folder / "system-1.1.0.nsu").read_bytes()
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts()
    (shown_artifact,) = [one for one in artifacts if one.key == "download" and str(one.flow_run_id) == _last(device)]
    assert shown_artifact.type == "progress"
    assert float(str(shown_artifact.data)) == 100.0


def _last(device: Device) -> str:
    return str(device.journal.session.notes["phase_run"])


def wrong_authority(site: Site, url: str) -> Device:
    other = make_authority(site.folder / "other")
    return site.device(url, ca=str(other.certificate))


def wrong_token(site: Site, url: str) -> Device:
    (site.folder / "token").write_text("not-the-token-of-the-tests")
    return site.device(url, token_file=str(site.folder / "token"))


@pytest.mark.parametrize(
    ("make", "error", "box"),
    [
        (wrong_authority, CertificateRefused, "check ssl certificate of connection"),
        (wrong_token, LoginRefused, "authenticate"),
    ],
    ids=["certificate", "login"],
)
def test_a_refusal_is_never_tried_again(
    site: Site, prefect_api: str, make: Callable[[Site, str], Device], error: type[Exception], box: str
) -> None:
    with site.served(token=TOKEN) as url:
        device = make(site, url)
        with shown(device) as ucm, counting() as failures, pytest.raises(error):
            ucm.run(check, {"source": "official"})
        assert failures == [box]


def test_a_server_that_is_away_is_tried_as_often_as_configured(site: Site, prefect_api: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    device = site.device(f"https://127.0.0.1:{port}")
    with shown(device) as ucm, counting() as failures, pytest.raises(Offline):
        ucm.run(check, {"source": "official"})
    assert failures == ["connect to the package management server"] * TRIES


def test_tls_is_real(site: Site) -> None:
    """A client that trusts nobody is refused: the server of these tests speaks TLS."""
    with site.served() as url:
        port = int(url.rpartition(":")[2].strip("/"))
        context = ssl.create_default_context()
        with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(plain, server_hostname="127.0.0.1")
