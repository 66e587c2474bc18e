"""`otaflow diagnostics`, called as the command line calls it, with the project's own server at the other end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otaflow.cli.diagnostics import app
from otaflow.errors import OtaflowError
from otaflow.repo import certificates, serve

Call = Callable[..., str]


@pytest.fixture
def otaflow_toml(tmp_path: Path) -> Callable[[str], None]:
    """Write the configuration, with the server's URL."""

    def write(url: str) -> None:
        (tmp_path / "otaflow.toml").write_text(
            '[device]\nname = "board"\nmodel = "board"\nroot = "device"\n[sources.official]\n'
            f'url = "{url}"\nroot = "root.json"\nca = "{tmp_path}/tls/ca.pem"\ntoken_file = "{tmp_path}/token"\n'
            f'diagnostics = "{url}/diagnostics"\n'
        )

    return write


@pytest.fixture
def call(tmp_path: Path, otaflow_toml: Callable[[str], None], capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Call:
    from otaflow.config import load
    from otaflow.platform.device import Device
    from otaflow.platform.setup import init_device

    monkeypatch.setenv("OTAFLOW_CONFIG", str(tmp_path / "otaflow.toml"))
    monkeypatch.setenv("SUDO_USER", "ann")
    otaflow_toml("https://127.0.0.1:1")
    certificates.make_authority(tmp_path / "tls")
    (tmp_path / "token").write_text("t0p-s3cret\n")
    (tmp_path / "system").mkdir()
    device = Device(load(tmp_path / "otaflow.toml"))
    init_device(device, system=tmp_path / "system", name="demo", version="1.0.0", configuration=None)

    def otaflow(*arguments: str) -> str:
        app(list(arguments), result_action="return_value", exit_on_error=False)
        out: str = capsys.readouterr().out
        return out

    return otaflow


def test_consent(call: Call) -> None:
    assert call("consent") == "no: nobody was asked\n"
    assert call("consent", "yes").startswith("yes, said ann at ")
    holds = json.loads(call("consent", "--json"))
    assert (holds["given"], holds["by"], holds["removed"]) == (True, "ann", 0)
    assert call("consent", "no").startswith("no, said ann at ")


def test_show_needs_no_consent(call: Call) -> None:
    report = json.loads(call("show", "--json"))
    assert report["device"] == {"name": "board", "model": "board"}
    assert json.loads(call("show"))["versions"] == report["versions"]


def test_send_without_consent_is_refused(call: Call) -> None:
    with pytest.raises(OtaflowError, match="nobody agreed") as refused:
        call("send")
    assert "consent yes" in refused.value.hint


def test_what_is_shown_is_what_arrives(call: Call, tmp_path: Path, otaflow_toml: Callable[[str], None]) -> None:
    call("consent", "yes")
    assert "1 report waiting" in call("send")
    [waiting] = json.loads(call("spool", "--json"))
    shown = call("show", waiting["report"], "--json")
    assert waiting["report"] in call("spool")
    (tmp_path / "public" / "metadata").mkdir(parents=True)
    authority = certificates.make_authority(tmp_path / "tls")
    pair = certificates.make_server_certificate(authority, tmp_path / "tls", ["127.0.0.1"])
    taken = tmp_path / "reports"
    with serve.running(tmp_path / "public", pair.certificate, pair.key, token="t0p-s3cret", diagnostics=taken) as url:
        otaflow_toml(url)
        assert "sent 2 reports" in call("send")
    assert shown in [file.read_text() for file in taken.iterdir()]
    assert call("spool") == "nothing waits\n"
    with pytest.raises(OtaflowError, match="does not wait"):
        call("show", waiting["report"])


def test_no_removes_what_waits(call: Call) -> None:
    call("consent", "yes")
    call("send")
    assert "unsent: 1" in call("consent", "no")
    assert json.loads(call("spool", "--json")) == []
