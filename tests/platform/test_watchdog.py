"""Pings for systemd's watchdog."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from otaflow.platform.watchdog import Watchdog, interval, notify


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The other end of NOTIFY_SOCKET."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@otaflow-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0"))
        sock.settimeout(60)
        yield sock


def test_it_tells_systemd(systemd: socket.socket) -> None:
    assert notify("READY=1")
    assert systemd.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/socket"], ids=str)
def test_nobody_listens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("3000000", "", 1.0), ("3000000", str(os.getpid()), 1.0), ("3000000", "1", 0), ("x", "", 0), ("", "", 0)],
    ids=["set", "ours", "another's", "no number", "empty"],
)
def test_how_often(usec: str, pid: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert interval() == seconds


def test_it_pings_while_it_is_alive_and_not_longer(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    answers = [True, True, False]
    asked: list[bool] = []

    def alive() -> bool:
        asked.append(answers[min(len(asked), 2)])
        return asked[-1]

    watchdog = Watchdog(alive)
    watchdog.start()
    while len(asked) < 20:
        time.sleep(0.001)
    watchdog.stop()
    watchdog._thread.join()
    assert [systemd.recv(100), systemd.recv(100)] == [b"WATCHDOG=1"] * 2
    systemd.settimeout(0)
    with pytest.raises(BlockingIOError):
        systemd.recv(100)


def test_without_systemd_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    watchdog = Watchdog(lambda: True)
    watchdog.start()
    assert not watchdog._thread.is_alive()
    watchdog.stop()
