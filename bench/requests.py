"""Writes down every request that this process sends to Prefect's API: when, how long, from which thread.

from bench.requests import note_requests; note_requests(path)
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient


def note_requests(path: Path) -> None:
    """From now on, a line of JSON for each request in `path`: at, ms, thread, method, path, status."""
    file = path.open("a", buffering=1)

    def tell(started: float, request: Any, response: Any) -> None:
        line = {
            "at": started,
            "ms": round(1000 * (time.monotonic() - started), 1),
            "thread": threading.current_thread().name,
            "what": f"{request.method} {request.url.path}",
            "status": response.status_code,
        }
        file.write(json.dumps(line) + "\n")

    send, asend = PrefectHttpxSyncClient.send, PrefectHttpxAsyncClient.send

    def noted(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        response = send(self, request, *args, **kwargs)
        tell(started, request, response)
        return response

    async def anoted(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        response = await asend(self, request, *args, **kwargs)
        tell(started, request, response)
        return response

    PrefectHttpxSyncClient.send = noted  # type: ignore[method-assign]
    PrefectHttpxAsyncClient.send = anoted  # type: ignore[method-assign]
