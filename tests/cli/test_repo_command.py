"""`otaflow repo`, called as the command line calls it; `serve` as a process of its own."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from otaflow.cli.repo import app
from otaflow.config import Source
from otaflow.errors import ConfigError, LoginRefused, OtaflowError
from otaflow.package.build import build
from otaflow.repo.client import Repository


def call(*arguments: Any) -> None:
    app([str(argument) for argument in arguments], result_action="return_value", exit_on_error=False)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "assets").mkdir(parents=True)
    (folder / "metadata").write_text("format: 1\nname: demo\nkind: system\nversion: 1.1.0\nupdate_number: 2\n")
    (folder / "update").write_text("#!/bin/sh\n")
    (folder / "update").chmod(0o755)
    build(folder, tmp_path / "a.nsu")
    return tmp_path / "a.nsu"


@pytest.fixture
def site(tmp_path: Path, package: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    call("init", tmp_path / "site", "--timestamp-days", "3")
    call("publish", tmp_path / "site", package)
    capsys.readouterr()
    return tmp_path / "site"


def test_init_says_where_the_root_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("init", tmp_path / "new", "--json")
    assert Path(json.loads(capsys.readouterr().out)["root"]).name == "1.root.json"


def test_list(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("list", site)
    assert "demo-1.1.0.nsu" in capsys.readouterr().out
    call("list", site, "--json")
    values = json.loads(capsys.readouterr().out)
    assert [package["version"] for package in values["packages"]] == ["1.1.0"]
    assert set(values["roles"]) == {"root", "targets", "snapshot", "timestamp"}


def test_publish_again_says_so(site: Path, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("publish", site, package, "--json")
    assert json.loads(capsys.readouterr().out) == {"published": []}


def test_refresh_rotate_withdraw_export(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("refresh", site, "--json")
    assert json.loads(capsys.readouterr().out) == {"signed": ["snapshot", "timestamp"]}
    call("rotate", site, "timestamp", "--json")
    assert json.loads(capsys.readouterr().out)["key"].startswith("timestamp-")
    call("export", site, tmp_path / "stick.nsr", "--json")
    assert json.loads(capsys.readouterr().out)["bytes"] == (tmp_path / "stick.nsr").stat().st_size
    call("withdraw", site, "demo-1.1.0.nsu", "--json")
    capsys.readouterr()
    call("list", site, "--json")
    assert json.loads(capsys.readouterr().out)["packages"] == []


REFUSED: dict[str, tuple[list[str], type[OtaflowError]]] = {
    "nothing to publish": (["publish", "{site}"], ConfigError),
    "no days at all": (["refresh", "{site}", "--timestamp-days", "0"], ConfigError),
    "no certificate": (["serve", "{site}"], ConfigError),
    "no repository": (["list", "/nowhere"], OtaflowError),
    "no token": (["serve", "{site}", "--self-signed", "--token-file", "/nowhere"], ConfigError),
}


@pytest.mark.parametrize(("arguments", "error"), REFUSED.values(), ids=REFUSED)
def test_refused(arguments: list[str], error: type[OtaflowError], site: Path) -> None:
    with pytest.raises(error):
        call(*[argument.format(site=site) for argument in arguments])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_serve_until_it_is_told_to_end(number: signal.Signals, site: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t0p-secret\n")
    program = "import sys; from otaflow.cli.repo import app; app(sys.argv[1:])"
    command = [sys.executable, "-c", program, "serve", site, "--port", "0", "--self-signed", "--token-file"]
    process = subprocess.Popen([*command, tmp_path / "token"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert "devices trust" in process.stdout.readline()
        url = process.stdout.readline().split()[-1]
        root = site / "public" / "metadata" / "1.root.json"
        source = Source(url=url, root=root, ca=site / "tls" / "ca.pem", token_file=tmp_path / "token")
        with Repository(source, tmp_path / "trust", tmp_path / "cache") as repository:
            repository.check_certificate()
            repository.refresh()
            repository.download(repository.targets()[0])
        nobody = Repository(source.model_copy(update={"token_file": None}), tmp_path / "trust", tmp_path / "cache")
        with nobody, pytest.raises(LoginRefused):
            nobody.authenticate()
        process.send_signal(number)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
