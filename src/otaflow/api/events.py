"""The stream of status changes: one thread listens to the service, and every watcher gets what it hears."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, suppress
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from otaflow.api.service import Fields, Subscription, UcmService

log = logging.getLogger("otaflow.api")

QUEUE = 256  # changes that a watcher may be behind; who is further behind is dropped, and asks again
HEARTBEAT = 15.0  # seconds
POLL = 0.5  # seconds until the thread looks whether it is still wanted


class Watchers:
    """Those who watch the status. Belongs to one event loop; listens only while somebody watches."""

    def __init__(self, service: UcmService, heartbeat: float = HEARTBEAT) -> None:
        self.service = service
        self.heartbeat = heartbeat
        self.latest: Fields = {}
        self._queues: set[asyncio.Queue[Fields | None]] = set()
        self._starting = asyncio.Lock()
        self._wanted: threading.Event | None = None

    async def watch(self, *, current: bool) -> AsyncGenerator[bytes]:
        """Take a place, and give the stream of it: each change as a server-sent event, a comment when it is quiet.

        All changes after this call's return are in it. With `current` the present status comes first.
        """
        queue: asyncio.Queue[Fields | None] = asyncio.Queue(QUEUE)
        async with self._starting:
            if self._wanted is None:
                await self._listen()
            if current:
                queue.put_nowait(self.latest)
            self._queues.add(queue)
        return self._stream(queue)

    def close(self) -> None:
        """End every stream, and the listening."""
        for queue in list(self._queues):
            self._drop(queue)
        if self._wanted is not None:
            self._wanted.clear()
            self._wanted = None

    @property
    def count(self) -> int:
        """How many watch."""
        return len(self._queues)

    async def _stream(self, queue: asyncio.Queue[Fields | None]) -> AsyncGenerator[bytes]:
        try:
            yield b": watching\n\n"
            while True:
                try:
                    change = await asyncio.wait_for(queue.get(), self.heartbeat)
                except TimeoutError:
                    yield b": still there\n\n"
                    continue
                if change is None:
                    return
                yield f"data: {json.dumps(change)}\n\n".encode()
        finally:
            self._queues.discard(queue)
            if not self._queues and self._wanted is not None:
                self._wanted.clear()
                self._wanted = None

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        wanted = threading.Event()
        wanted.set()

        def begin() -> tuple[Subscription, Fields]:
            # the order matters: a change between both is heard, at worst twice
            return stack.enter_context(self.service.subscribe()), self.service.status()

        stack = ExitStack()
        subscription, self.latest = await asyncio.to_thread(begin)
        self._wanted = wanted
        hear = partial(self._hear, loop, stack, subscription, wanted)
        threading.Thread(target=hear, name="ucm-watch", daemon=True).start()

    def _hear(
        self, loop: asyncio.AbstractEventLoop, stack: ExitStack, subscription: Subscription, wanted: threading.Event
    ) -> None:
        try:
            with stack:
                while wanted.is_set():
                    change = subscription.get(POLL)
                    if change is not None and wanted.is_set():
                        loop.call_soon_threadsafe(self._tell, wanted, change)
        except RuntimeError:  # the loop is closed: nobody watches any more
            pass
        except Exception:
            log.exception("cannot watch the status")
            loop.call_soon_threadsafe(self.close)

    def _tell(self, heard_for: threading.Event, change: Fields) -> None:
        if heard_for is not self._wanted:
            return
        self.latest = change
        for queue in list(self._queues):
            try:
                queue.put_nowait(change)
            except asyncio.QueueFull:
                log.warning("a watcher does not read its status events and is dropped")
                self._drop(queue)

    def _drop(self, queue: asyncio.Queue[Fields | None]) -> None:
        self._queues.discard(queue)
        while queue.full():
            queue.get_nowait()
        queue.put_nowait(None)


class EventStream(Response):
    """A response of server-sent events, which ends when its client goes away."""

    def __init__(self, stream: AsyncGenerator[bytes]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self.stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_wait_for_leave(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.wait({sending, leaving})

    async def _send(self, send: Send) -> None:
        async with aclosing(self.stream) as pieces:
            with suppress(OSError):
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})


async def _wait_for_leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
