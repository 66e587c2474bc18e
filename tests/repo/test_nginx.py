"""The configuration of docs/repository.md, in the nginx that Debian ships."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otaflow.config import Source
from otaflow.errors import CertificateRefused, LoginRefused
from otaflow.repo.client import Repository

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
DOCS = Path(__file__).parents[2] / "docs" / "repository.md"
TOKEN = "4f1c" * 16

FRAME = """
pid {prefix}/nginx.pid;
error_log {prefix}/error.log info;
{user}
worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    client_body_temp_path {prefix}/tmp1; proxy_temp_path {prefix}/tmp2; fastcgi_temp_path {prefix}/tmp3;
    uwsgi_temp_path {prefix}/tmp4; scgi_temp_path {prefix}/tmp5;
    include {prefix}/otaflow.conf;
}}
"""


def _write_configuration(prefix: Path, public: Path, pki: Any, port: int) -> Path:
    found = re.search(r"```nginx\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found
    text = found[1]
    places = {
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/otaflow-repository/tokens.map": str(prefix / "tokens.map"),
        "/etc/otaflow-repository/server.pem": str(pki.server[0]),
        "/etc/otaflow-repository/server.key": str(pki.server[1]),
        "/etc/otaflow-repository/devices-ca.pem": str(pki.ca_file),
        "/srv/otaflow/public": str(public),
    }
    for here, there in places.items():
        assert text.count(here) == 1
        text = text.replace(here, there)
    (prefix / "otaflow.conf").write_text(text)
    (prefix / "tokens.map").write_text(f'"Bearer {TOKEN}" device-17;\n')
    user = "user root;" if os.geteuid() == 0 else ""  # its workers must read the test's folder
    (prefix / "nginx.conf").write_text(FRAME.format(prefix=prefix, user=user))
    return prefix / "nginx.conf"


@pytest.fixture
def nginx(repository: Path, first_root: Path, pki: Any, tmp_path: Path) -> Iterator[Source]:
    prefix = tmp_path / "nginx"
    prefix.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    configuration = _write_configuration(prefix, repository / "public", pki, port)
    process = subprocess.Popen([str(NGINX), "-p", prefix, "-c", configuration, "-g", "daemon off;"])
    try:
        _wait(process, port, prefix)
        (prefix / "token").write_text(TOKEN)
        certificate, key = pki.device
        yield Source(
            url=f"https://127.0.0.1:{port}",
            root=first_root,
            ca=pki.ca_file,
            certificate=certificate,
            key=key,
            token_file=prefix / "token",
            timeout_seconds=60,
        )
    finally:
        process.terminate()
        process.wait(60)


def _wait(process: "subprocess.Popen[bytes]", port: int, prefix: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None, (prefix / "error.log").read_text()
            time.sleep(0.02)
    pytest.fail("nginx did not start")


def test_a_device_updates_from_nginx(nginx: Source, tmp_path: Path) -> None:
    with Repository(nginx, tmp_path / "trust", tmp_path / "cache") as repository:
        repository.connect()
        assert repository.check_certificate()
        repository.authenticate()
        repository.refresh()
        for target in repository.new_packages("1.0.0", "any"):
            assert repository.trusted(repository.download(target)) == target


def test_nginx_resumes(nginx: Source, tmp_path: Path) -> None:
    with Repository(nginx, tmp_path / "trust", tmp_path / "cache") as repository:
        repository.refresh()
        target = repository.targets()[0]

        class Cut(Exception):
            pass

        def cut(done: int) -> None:
            if done:
                raise Cut

        with pytest.raises(Cut):
            repository.download(target, cut)
        part = tmp_path / "cache" / f"{target.path}.part"
        os.truncate(part, 100)
        seen: list[int] = []
        repository.download(target, seen.append)
        assert seen[0] == 100, "it went on from there"


REFUSED: dict[str, tuple[Callable[..., dict[str, Any]], type[Exception]]] = {
    "no certificate": (lambda other, folder: {"certificate": None, "key": None}, CertificateRefused),
    "certificate of another authority": (
        lambda other, folder: {"certificate": other.device[0], "key": other.device[1]},
        CertificateRefused,
    ),
    "no token": (lambda other, folder: {"token_file": None}, LoginRefused),
    "wrong token": (lambda other, folder: {"token_file": folder / "wrong"}, LoginRefused),
}


@pytest.mark.parametrize(("change", "error"), REFUSED.values(), ids=REFUSED)
def test_nginx_lets_nobody_else_in(change: Any, error: Any, nginx: Source, other_pki: Any, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("wrong")
    source = nginx.model_copy(update=change(other_pki, tmp_path))
    with Repository(source, tmp_path / "trust", tmp_path / "cache") as repository:
        repository.connect()
        for ask in (repository.authenticate, repository.refresh):
            with pytest.raises(error):
                ask()
