"""What a report holds, that it is bounded, and that a sick device has one, too."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otaflow.diagnostics import collect, encode
from otaflow.diagnostics.report import MAX_BYTES, bound
from otaflow.platform.device import Device
from otaflow.ucm.states import State

TOKEN = "s3cr3t-t0ken"


def test_what_a_report_says(device: Device, fail: Callable[[str], None]) -> None:
    fail("it was sick")
    (device.logs / "s1.log").write_text("one\ntwo\n")
    device.journal.transition(
        "<ProcessSwPackage", State.PROCESSING, action={"kind": "up", "name": "demo", "version": "1"}
    )
    report = collect(device)
    assert report["device"] == {"name": "board-17", "model": "board"}
    assert report["versions"]["system"]["version"] == "1.0.0"
    assert set(report["versions"]["slots"]) == {"a", "b"}
    assert report["ucm"]["state"] == "Processing"
    assert report["machine"]["memory"]["total"] > 0
    assert report["machine"]["disks"]["nvm"]["total"] > 0
    assert report["history"][-1]["why"] == "it was sick"
    assert report["journal"][-1]["to"] == "Processing"
    assert report["logs"] == {"s1.log": ["one", "two"]}
    assert report["boot_log"] == [], "no machine restarts"
    assert report["cut"] == []
    assert "error" not in {key for part in report.values() if isinstance(part, dict) for key in part}


def test_secrets_of_this_device_are_not_in_it(make_device: Callable[..., Device], pki: Any) -> None:
    certificate, key = map(str, pki.device)
    notices = '[notices]\nurls = ["tgram://987654321:abcdefgh/4711", "mailto://bob:pw3@example.com"]'
    device = make_device("https://127.0.0.1:1/", more=notices, certificate=certificate, key=key)
    lines = Path(key).read_text().splitlines()
    said = ["took s3cr3t-t0ken along", "bot 987654321 said abcdefgh", "pw3 was wrong", *lines[2:4], "and that is all"]
    (device.logs / "s1.log").write_text("\n".join(said))
    device.history.add(name="demo", why=f"{lines[3]} and s3cr3t-t0ken", resolution="kFailed")
    report = collect(device)
    shown = encode(report).decode()
    assert not [one for one in (TOKEN, "987654321", "abcdefgh", "pw3", *lines[1:-1]) if one in shown]
    assert report["logs"]["s1.log"][-1] == "and that is all"


def test_a_report_is_bounded_and_the_newest_stays(device: Device) -> None:
    for number in range(9):
        lines = [f"{line} \x01\x02 ümläut {'x' * 50}" for line in range(20_000)]
        (device.logs / f"s{number}.log").write_text("\n".join([*lines, f"the end of {number}"]))
        os.utime(device.logs / f"s{number}.log", (number, number))
        device.journal.note(what="y" * 9000, number=number)
    for number in range(300):
        device.history.file.append({"number": number, "why": "z" * 500}, durable=False)
    report = collect(device)
    assert len(encode(report)) <= MAX_BYTES
    assert report["logs"]["s8.log"][-1] == "the end of 8"
    assert report["history"][-1]["number"] == 299
    assert report["journal"][-1]["number"] == 8
    assert len(report["journal"][-1]["what"]) < 3000
    assert {line.partition(":")[0] for line in report["cut"]} >= {"history", "logs/s8.log"}


def test_whatever_it_is_given_is_bounded() -> None:
    wild = {"device": {"name": "x" * 10**6}, "machine": {str(n): "y" * 999 for n in range(999)}, "journal": "no list"}
    assert len(encode(bound(wild))) <= MAX_BYTES


SICK: dict[str, Callable[[Device], Any]] = {
    "journal": lambda device: (device.nvm / "journal").write_bytes(b"damaged\n00000000 {}\n\xff\n"),
    "history": lambda device: (device.nvm / "history").write_bytes(b"damaged\n"),
    "label": lambda device: (device.slots.path("a") / ".otaflow.json").unlink(),
    "boot target": lambda device: (device.root / "index.json").write_bytes(b"\x00"),
    "logs": lambda device: device.logs.rmdir(),
    "a log that is a folder": lambda device: (device.logs / "x.log").mkdir(),
    "counter": lambda device: (device.nvm / "boots.json").write_text("["),
    "token": lambda device: (device.root.parent / "token").write_bytes(b"\xff"),
    "policy": lambda device: (device.nvm / "policy" / "told").mkdir(parents=True),
}


@pytest.mark.parametrize("break_it", SICK.values(), ids=SICK)
def test_a_sick_device_has_a_report(device: Device, break_it: Callable[[Device], Any]) -> None:
    break_it(device)
    report = collect(device)
    assert report["device"]["name"] == "board-17"
    assert report["machine"]["cpus"]
    assert encode(report)


def test_what_cannot_be_stripped_is_not_sent(device: Device) -> None:
    deep: Any = "password=hunter2"
    for _ in range(400):
        deep = {"a": deep}
    device.journal.note(deep=deep)
    report = collect(device)
    assert "hunter2" not in encode(report).decode()
    assert report["journal"]


def test_a_damaged_journal_is_told_line_by_line(device: Device) -> None:
    device.journal.note(number=1)
    with (device.nvm / "journal").open("ab") as file:
        file.write(b"damaged, password=hunter2\n")
    assert collect(device)["journal"][-1] == {"damaged": "damaged, password=(removed)"}


@pytest.mark.parametrize("there", [True, False], ids=["journalctl", "none"])
def test_the_log_of_the_boot_that_failed(
    there: bool, make_device: Callable[..., Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = make_device(None, more='[boot]\nrestart = ["true"]')
    (device.nvm / "boots.json").write_text('{"count": 5, "boot_id": "x"}')
    for event, state in (("a", State.PROCESSING), ("b", State.VERIFYING), ("c", State.ROLLING_BACK)):
        device.journal.transition(event, state)
    (device.nvm / "boots.json").write_text('{"count": 7, "boot_id": "x"}')
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "journalctl"
    program.write_text('#!/bin/sh\necho "asked $1"\necho "password=hunter2"\n' if there else "#!/nowhere\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    boot_log = collect(device)["boot_log"]
    if there:
        assert boot_log == ["asked --boot=-2", "password=(removed)"]
    else:
        assert "journalctl" in boot_log["error"]


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, otaflow.diagnostics; print(*{'httpx', 'tuf', 'prefect', 'psutil', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
