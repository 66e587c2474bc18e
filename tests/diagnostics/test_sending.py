"""Sending to real servers over TLS: with consent only, nothing lost while the server is away, nothing after a no."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import Any

import pytest

from otaflow.config import parse
from otaflow.diagnostics import Spool, collect, encode, give_consent, read_consent, send, withdraw_consent
from otaflow.diagnostics.spool import store_of
from otaflow.errors import ConfigError
from otaflow.platform.device import Device

MakeDevice = Callable[..., Device]
NOWHERE = "https://127.0.0.1:1/diagnostics"


def test_without_consent_nothing_is_collected(device: Device, maker: Any) -> None:
    assert "consent yes" in send(device, "official")
    assert not maker.reports
    assert not Spool(device.nvm).folder.exists()


def test_consent_is_remembered_with_time_and_who(device: Device) -> None:
    assert not read_consent(device.nvm).given
    give_consent(device.nvm, "ann")
    holds = read_consent(device.nvm)
    assert (holds.given, holds.by) == (True, "ann")
    assert datetime.fromisoformat(holds.time).tzinfo
    withdraw_consent(device.nvm, "bob")
    assert (read_consent(device.nvm).given, read_consent(device.nvm).by) == (False, "bob")


DAMAGED = {"damaged": b"x", "empty": b"", "no dict": b'00000000 {"consent": 1}\n'}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_consent_that_cannot_be_read_is_none(content: bytes, device: Device) -> None:
    give_consent(device.nvm, "ann")
    store_of(device.nvm).path.write_bytes(content)
    assert not read_consent(device.nvm).given


def test_a_report_is_sent_as_it_is_shown(device: Device, maker: Any, fail: Callable[[str], None]) -> None:
    fail("sick, token=hunter2")
    give_consent(device.nvm, "ann")
    assert send(device, "official") == "a report was made; sent 1 report to 127.0.0.1"
    [report] = maker.reports
    assert report["history"][-1]["why"] == "sick, token=(removed)"
    assert set(report) == set(collect(device))
    assert maker.headers[0]["Authorization"] == "Bearer s3cr3t-t0ken", "authenticated as the source is"
    assert Spool(device.nvm).waiting() == []


def test_a_source_without_diagnostics_gets_none(make_device: MakeDevice) -> None:
    device = make_device(None)
    give_consent(device.nvm, "ann")
    assert "no `diagnostics`" in send(device)
    assert Spool(device.nvm).waiting() == []


def test_the_server_is_away_and_comes_back(make_device: MakeDevice, maker: Any) -> None:
    device = make_device(NOWHERE)
    give_consent(device.nvm, "ann")
    for number in (1, 2):
        device.history.add(name="demo", version=f"1.{number}", action="Update", resolution="kFailed")
        text = send(device, "official")
    assert "sent no reports to 127.0.0.1, 2 reports waiting: cannot send to https://127.0.0.1:1" in text
    device = make_device(f"{maker.url}/diagnostics")
    device.history.add(name="demo", version="1.3", action="Update", resolution="kFailed")
    assert "sent 3 reports" in send(device, "official")
    assert [report["history"][-1]["version"] for report in maker.reports] == ["1.1", "1.2", "1.3"], "the oldest first"
    assert Spool(device.nvm).waiting() == []


def test_the_same_failure_is_reported_once_in_an_hour(device: Device, maker: Any, fail: Callable[[str], None]) -> None:
    give_consent(device.nvm, "ann")
    fail("it was sick")
    send(device)
    fail("it was sick")
    assert "the same failure was reported at" in send(device)
    assert len(maker.reports) == 1
    fail("it was sick in another way")
    send(device)
    assert len(maker.reports) == 2
    assert "a report was made" in send(device, always=True)
    assert len(maker.reports) == 3


MOMENTS = {"an hour ago": timedelta(minutes=-61), "in the future": timedelta(minutes=5)}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_the_same_failure_later_is_reported_again(moment: timedelta, device: Device, maker: Any) -> None:
    give_consent(device.nvm, "ann")
    send(device)
    with store_of(device.nvm).changing() as stored:
        stored["seen"] = {mark: (datetime.now(UTC) + moment).isoformat() for mark in stored["seen"]} | {"x": "no time"}
    send(device)
    assert len(maker.reports) == 2
    assert len(store_of(device.nvm).read()["seen"]) == 1


def test_withdrawn_consent_removes_what_waits(make_device: MakeDevice, maker: Any) -> None:
    device = make_device(NOWHERE)
    give_consent(device.nvm, "ann")
    send(device)
    (Spool(device.nvm).folder / ".000009-1.report.new").write_text("a power cut left it")
    assert withdraw_consent(device.nvm, "ann") == 1
    assert [path.name for path in Spool(device.nvm).folder.iterdir()] == [".sending"]
    device = make_device(f"{maker.url}/diagnostics")
    send(device)
    assert maker.reports == []
    give_consent(device.nvm, "ann")
    send(device)
    assert len(maker.reports) == 1


def test_consent_withdrawn_while_sending(device: Device, maker: Any) -> None:
    give_consent(device.nvm, "ann")
    spool = Spool(device.nvm)
    for number in range(3):
        spool.add({"time": str(number)}, lambda: True)

    def withdraw(handler: Any) -> None:
        withdraw_consent(device.nvm, "bob")
        handler.send_response(200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    maker.answer = withdraw
    send(device)
    assert len(maker.headers) == 1, "no other one was sent"
    assert spool.waiting() == []
    assert spool.add({}, lambda: read_consent(device.nvm).given) is None


def _hang(handler: Any) -> None:
    handler.connection.recv(1)  # until the device gives up


def _cut(handler: Any) -> None:
    handler.close_connection = True
    socket.shutdown(handler.connection, SHUT_RDWR)


def _rubbish(handler: Any) -> None:
    handler.wfile.write(b"220 ftp.example ready\r\n")
    handler.close_connection = True


ANSWERS: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "503": {"status": 503},
    "413": {"status": 413},
    "404": {"status": 404},
    "405": {"status": 405},
    "401": {"status": 401},
    "403": {"status": 403},
    "302": {"status": 302},
    "308": {"status": 308},
    "a proxy's page": {"status": 200, "type": "text/html; charset=utf-8"},
    "hangs": {"answer": _hang},
    "cut": {"answer": _cut},
    "another protocol": {"answer": _rubbish},
}


@pytest.mark.parametrize("what", ANSWERS.values(), ids=ANSWERS)
def test_nothing_is_lost_whatever_the_server_answers(what: dict[str, Any], make_device: MakeDevice, maker: Any) -> None:
    device = make_device(f"{maker.url}/diagnostics", seconds=1 if what.get("answer") is _hang else 30)
    give_consent(device.nvm, "ann")
    for name, value in what.items():
        setattr(maker, name, value)
    text = send(device, "official")
    assert "sent no reports to 127.0.0.1, 1 report waiting: cannot " in text
    maker.status, maker.type, maker.answer, maker.reports = 200, "application/json", None, []
    device = make_device(f"{maker.url}/diagnostics")
    assert "sent 1 report" in send(device, "official")
    assert len(maker.reports) == 1


def test_one_that_the_server_refuses_holds_nothing_back(device: Device, maker: Any) -> None:
    give_consent(device.nvm, "ann")
    spool = Spool(device.nvm)
    first = spool.add({"number": 1}, lambda: True)

    def refuse_first(handler: Any) -> None:
        handler.send_response(413 if len(maker.headers) == 1 else 200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    maker.answer = refuse_first
    assert "sent 1 report to" in send(device)
    assert spool.waiting() == [first]


def test_a_server_that_is_not_trusted_gets_nothing(make_device: MakeDevice, maker: Any, tmp_path: Path) -> None:
    import trustme

    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    device = make_device(f"{maker.url}/diagnostics", ca=str(tmp_path / "other.pem"))
    give_consent(device.nvm, "ann")
    assert "certificate is not valid" in send(device)
    assert maker.headers == []
    assert len(Spool(device.nvm).waiting()) == 1


def test_what_is_wrong_in_the_configuration_is_said(make_device: MakeDevice, maker: Any, tmp_path: Path) -> None:
    device = make_device(f"{maker.url}/diagnostics")
    give_consent(device.nvm, "ann")
    with pytest.raises(ConfigError, match="cannot use the source 'other'"):
        send(device, "other")
    (tmp_path / "token").unlink()
    with pytest.raises(ConfigError, match="cannot read the token"):
        send(device)


WRONG = [
    "http://host/x",
    "https://",
    "https://bob:pw@host/",
    "host",
    "https://host:x/",
    "https://host/\n",
    "https://h o/",
]


@pytest.mark.parametrize("url", WRONG)
def test_where_diagnostic_data_may_go(url: str) -> None:
    source = {"url": "https://h", "root": "r", "diagnostics": url}
    with pytest.raises(ConfigError, match="diagnostics"):
        parse({"device": {"name": "a", "model": "b", "root": "."}, "sources": {"official": source}}, Path("x"))


def test_the_spool_is_bounded_and_private(device: Device) -> None:
    spool = Spool(device.nvm, max_reports=3, max_bytes=3000)
    for number in range(5):
        spool.add({"number": number}, lambda: True)
    assert [json.loads(spool.read(path) or b"")["number"] for path in spool.waiting()] == [2, 3, 4]
    spool.add({"number": 5, "more": "x" * 2950}, lambda: True)
    assert [json.loads(spool.read(path) or b"")["number"] for path in spool.waiting()] == [5]
    spool.add({"number": 6, "more": "x" * 9000}, lambda: True)
    [newest] = spool.waiting()
    assert stat.S_IMODE(newest.stat().st_mode) == 0o600
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700


CORRUPT = {"empty": b"", "torn": None, "rubbish": b"\xff" * 50 + b"\n", "another report": b'00000000 {"a":1}\n'}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_report_is_put_aside(content: bytes | None, device: Device, maker: Any) -> None:
    give_consent(device.nvm, "ann")
    spool = Spool(device.nvm, max_reports=2)
    corrupt = spool.add({"number": 1}, lambda: True)
    assert corrupt is not None
    corrupt.write_bytes(corrupt.read_bytes()[:-4] if content is None else content)
    (spool.folder / "notes.txt").write_text("somebody else's")
    assert "sent 1 report to 127.0.0.1" in send(device)
    aside = corrupt.with_name(f"{corrupt.name}.damaged")
    assert aside.exists()
    for number in range(3):
        spool.add({"number": number}, lambda: True)
    assert not aside.exists(), "it goes in its turn"
    assert (spool.folder / "notes.txt").exists()


def test_a_full_disk_keeps_nothing_from_being_sent(device: Device, maker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from otaflow.diagnostics import spool as module

    give_consent(device.nvm, "ann")
    Spool(device.nvm).add({"number": 1}, lambda: True)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    assert "No space left on device; sent 1 report" in send(device)
    assert maker.reports == [{"number": 1}]


def test_only_one_process_sends(device: Device, maker: Any) -> None:
    give_consent(device.nvm, "ann")
    with Spool(device.nvm).sending() as mine:
        assert mine
        assert "another otaflow is sending, 1 report waiting" in send(device)
    assert maker.reports == []


def test_killed_between_answer_and_removal(device: Device, maker: Any, tmp_path: Path) -> None:
    give_consent(device.nvm, "ann")
    code = (
        "from pathlib import Path; from otaflow.config import load; from otaflow.platform.device import Device; "
        f"from otaflow.diagnostics import send; send(Device(load(Path({str(tmp_path / 'otaflow.toml')!r}))))"
    )
    environment = {**os.environ, "OTAFLOW_FAULT": "diagnostics.sent:kill"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert len(maker.reports) == 1
    send(device)
    first, second, *others = maker.reports
    assert encode(first) == encode(second), "sent twice, and the server can tell"
    assert len(others) <= 1
    assert Spool(device.nvm).waiting() == []


def test_the_boxes_of_the_chart(device: Device, maker: Any) -> None:
    """The diamond and the box below it, as a poll's red side calls them."""
    from otaflow.platform.device import using
    from otaflow.tasks.policy import has_consented_to_diagnostics, send_diagnostic_data

    with using(device):
        assert has_consented_to_diagnostics.do() is False
        give_consent(device.nvm, "ann")
        assert has_consented_to_diagnostics.do() is True
        assert "sent 1 report" in send_diagnostic_data.do("official")
        withdraw_consent(device.nvm, "ann")
        assert has_consented_to_diagnostics.do() is False
    assert len(maker.reports) == 1
