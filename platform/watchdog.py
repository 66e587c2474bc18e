"""systemd's watchdog for a service of ours: pinged while what it is there for answers, and not one ping longer.

sd_notify(3) without its library: one datagram to the socket that NOTIFY_SOCKET names. Started by hand, there is none.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


def notify(state: str) -> bool:
    """Tell systemd `state` (`WATCHDOG=1`); False where nobody listens. Never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            sock.sendall(state.encode())
    except OSError as error:
        log.warning("cannot tell systemd %s: %s", state, error)
        return False
    return True


def interval() -> float:
    """How often systemd wants a ping, in seconds, with room for two that are late; 0: it does not."""
    try:
        own = int(os.environ.get("WATCHDOG_PID") or os.getpid()) == os.getpid()
        return int(os.environ["WATCHDOG_USEC"]) / 3_000_000 if own else 0
    except (KeyError, ValueError):
        return 0


class Watchdog:
    """Pings from its own thread as long as `alive` (which may take a moment, but not for ever) says so."""

    def __init__(self, alive: Callable[[], bool]) -> None:
        self._alive = alive
        self._ended = threading.Event()
        self._seconds = interval()
        self._thread = threading.Thread(target=self._run, name="otaflow-watchdog", daemon=True)

    def start(self) -> None:
        if self._seconds:
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._alive():
                notify("WATCHDOG=1")
            else:
                log.error("the watchdog is not pinged: what it watches does not answer")
            self._ended.wait(self._seconds)
