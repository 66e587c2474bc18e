"""Who watches the status."""

import queue
from contextlib import suppress
from typing import Any

Status = dict[str, Any]


class Subscription:
    """The status changes since it was made, at most the newest hundred for a reader that is slow."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Status] = queue.Queue(maxsize=100)

    def put(self, status: Status) -> None:
        """Add a status; the oldest goes where there is no room."""
        while True:
            try:
                self._queue.put_nowait(status)
                return
            except queue.Full:
                with suppress(queue.Empty):
                    self._queue.get_nowait()

    def get(self, timeout: float) -> Status | None:
        """The next status, or None after `timeout` seconds without one."""
        try:
            return self._queue.get(timeout=timeout)
        except queue.Empty:
            return None
