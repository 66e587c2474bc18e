"""Applications that are asked to close: until when, and how often that was put off.

An update of an application asks it to close, and waits. The application, or its user, may put that off within bounds;
one that has acknowledged the message is ready, and is not waited for.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from otaflow.errors import OperationNotPermitted
from otaflow.policy.store import Store


@dataclass(frozen=True)
class Request:
    """`message` is its id in the inbox; `seconds` are waited from the asking on; it was put off `defers` times.

    It counts in its `session` only: what a power cut left is nobody's request.
    """

    name: str
    version: str
    session: str
    message: int
    seconds: float
    defers: int = 0
    most: int = 0


class Closing:
    """The requests that are open, in `policy/closing` of `nvm`."""

    def __init__(self, nvm: Path) -> None:
        self._store = Store(nvm / "policy" / "closing")

    def ask(self, request: Request) -> None:
        """Note the request; one of another session goes."""
        with self._store.changing() as content:
            content[request.name] = asdict(request)

    def find(self, name: str, session: str) -> Request | None:
        """The open request of the session to the application `name`."""
        found: dict[str, Any] | None = self._store.read().get(name)
        return Request(**found) if found and found.get("session") == session else None

    def end(self, name: str) -> None:
        """It is closed, or was ended."""
        if name in self._store.read():
            with self._store.changing() as content:
                content.pop(name, None)

    def defer(self, name: str, session: str, seconds: float) -> Request:
        """Put the closing off by `seconds`; returns what holds now. `session` is the one that is activating, if any.

        Raises OperationNotPermitted: nobody asked, the update has priority, or it was put off often enough.
        """
        with self._store.changing() as content:
            if not session or content.get(name, {}).get("session") != session:
                raise OperationNotPermitted(f"cannot put off the closing of {name}: it was not asked to close")
            request = Request(**content[name])
            if request.defers >= request.most:
                why = f"it was put off {request.defers} times" if request.most else "the update has priority"
                raise OperationNotPermitted(
                    f"cannot put off the closing of {name}: {why}", hint="save your work: the application is ended"
                )
            content[name] |= {"seconds": request.seconds + seconds, "defers": request.defers + 1}
            return Request(**content[name])
