"""The blocks of TransferData on their way through memory: from the socket straight into one of a few buffers.

However many clients send at once, and however large their blocks are, no more than `count` buffers are there; who finds
none waits, and meanwhile nothing is read from its connection. A client that falls silent does not keep a buffer.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any, Final, Protocol, cast

from starlette.requests import Request

RECEIVE: Final = "otaflow.receive"
"""Where in a request's `state` the connection says how the rest of a body is received (`Receive`)."""
SILENCE = 60.0  # seconds without a byte of a block after which it is given up
SLOWEST = 64 * 1024  # bytes a second; a block that is slower, SILENCE aside, is given up too
REST = 5.0  # seconds after which the memory of buffers that nobody needs is given back

Receive = Callable[[memoryview, Callable[[], None]], Awaitable[int]]
"""Fills a buffer of exactly the size of what is missing, telling each progress; how many bytes there are in it now."""


class TooLong(Exception):
    """The body is longer than a block may be; no more of it was read."""


class Buffers:
    """At most `count` buffers of `size` bytes. Used in one event loop."""

    def __init__(self, size: int, count: int) -> None:
        self.size = size
        self._room = asyncio.Semaphore(count)
        self._free: list[mmap] = []
        self._used = 0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[memoryview]:
        """A buffer, as soon as there is one; what is in it is what the one before left there."""
        async with self._room:
            # Of its own pages: malloc would keep them, in pieces, when the transfer is long over.
            buffer = self._free.pop() if self._free else mmap(-1, self.size, flags=MAP_PRIVATE | MAP_ANONYMOUS)
            self._used += 1
            try:
                yield memoryview(buffer)
            except asyncio.CancelledError:
                raise  # a thread may still read it: it goes when that is done, and nobody gets it
            except BaseException:
                self._free.append(buffer)
                raise
            else:
                self._free.append(buffer)
            finally:
                asyncio.get_running_loop().call_later(REST, self._rest, self._used)

    def _rest(self, used: int) -> None:
        if used == self._used:  # nobody came since
            self._free.clear()


async def read_block(request: Request, view: memoryview) -> int:
    """Read a request's body into `view`, in bounded time; its bytes. Raises TooLong, TimeoutError, ClientDisconnect."""
    header = request.headers.get("content-length", "")
    length = int(header) if header.isdecimal() else None
    if length is not None and length > len(view):
        raise TooLong(f"the body has {length} bytes, and {len(view)} is the most")
    receive: Receive | None = request.scope.get("state", {}).get(RECEIVE)
    size = 0
    async with asyncio.timeout(SILENCE) as silence:
        now = asyncio.get_running_loop().time
        end = now() + SILENCE + (len(view) if length is None else length) / SLOWEST

        def go_on() -> None:
            silence.reschedule(min(now() + SILENCE, end))

        async for chunk in request.stream():
            if size + len(chunk) > len(view):
                raise TooLong(f"the body has more than {len(view)} bytes")
            view[size : size + len(chunk)] = chunk
            size += len(chunk)
            go_on()
            if receive is not None and length is not None and size < length:
                size += await receive(view[size:length], go_on)
    return size


class Connection(Protocol):
    """The protocol of a connection whose place a `Filling` takes."""

    def filled(self, filling: "Filling") -> None:
        """All of the view is full, or will not be: take the place back."""

    def connection_lost(self, exc: Exception | None) -> None: ...

    def eof_received(self) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Filling(asyncio.BufferedProtocol):
    """Takes the connection's place while `view` is filled: asyncio reads into it, and not one byte more than it holds.

    As chunks, each would be allocated, zeroed, copied and freed: that took several times the time of the reading.
    """

    def __init__(self, connection: Connection, view: memoryview, go_on: Callable[[], None]) -> None:
        self.connection = connection
        self.view = view
        self.go_on = go_on
        self.count = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> Any:
        return cast(Any, self.view[self.count :])

    def buffer_updated(self, nbytes: int) -> None:
        self.count += nbytes
        self.go_on()
        if self.count == len(self.view):
            self.end()

    def end(self) -> None:
        """Give the place back, once."""
        if not self.ended.done():
            self.ended.set_result(None)
        self.connection.filled(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end()
        self.connection.connection_lost(exc)

    def eof_received(self) -> None:
        self.connection.eof_received()

    def pause_writing(self) -> None:
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        self.connection.resume_writing()
