"""A network between a device and a server on 127.0.0.1: it counts the bytes, cuts, stalls, and takes its time."""

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

PIECE = 16 * 1024
REQUEST = re.compile(rb"((?:GET|POST|PATCH|PUT|DELETE) /\S*) HTTP/1\.1\r\n")


@dataclass(frozen=True)
class Line:
    """What becomes of one connection: after so many bytes from the server it is cut, or nothing comes any more.

    `rate` is bytes a second from the server. Nothing said: it works.
    """

    cut_after: int | None = None
    stall_after: int | None = None
    rate: float | None = None


SOUND = Line()


class Wire:
    """`with Wire(port) as wire:` leads `wire.port` to the server's `port`. `line` says what each connection is like."""

    def __init__(self, port: int, line: Callable[[], Line] = lambda: SOUND) -> None:
        self.server, self.line = port, line
        self.up = self.down = self.connections = self.cuts = 0
        self.asked: list[str] = []
        """Methods and paths of the requests, where it is plain HTTP."""
        self._over = threading.Event()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> "Wire":
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for one in [self._listener, *self._open]:
            _shut(one)
        for thread in self._threads:
            thread.join()
        for one in [self._listener, *self._open]:
            one.close()

    @property
    def bytes(self) -> int:
        """In both directions, TLS included, below it (TCP, IP) not."""
        return self.up + self.down

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                device, _address = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.server))
            except OSError:
                return
            self.connections += 1
            self._open += [device, server]
            self._start(self._carry_up, device, server)
            self._start(self._carry_down, device, server, self.line())

    def _carry_up(self, device: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while piece := device.recv(PIECE):
                self.up += len(piece)
                self.asked += [found.decode() for found in REQUEST.findall(piece)]
                server.sendall(piece)
        _shut(server)

    def _carry_down(self, device: socket.socket, server: socket.socket, line: Line) -> None:
        """The server's bytes to the device. A stalled line stays open until the device gives up."""
        carried, end = 0, line.cut_after if line.stall_after is None else line.stall_after
        piece_bytes = PIECE if line.rate is None else max(1, int(line.rate / 20))
        with suppress(OSError):
            while end is None or carried < end:
                piece = server.recv(piece_bytes if end is None else min(piece_bytes, end - carried))
                if not piece:
                    _shut(device)
                    return
                device.sendall(piece)
                carried += len(piece)
                self.down += len(piece)
                if line.rate is not None and self._over.wait(len(piece) / line.rate):
                    return
            if line.stall_after is None:
                self.cuts += 1
                _shut(device)


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
