"""What is going on, told to whoever listens: the terminal's live view, the demo, the processing log.

A listener is called in the worker's thread with an `Event`, must be quick and must not raise.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("otaflow")


@dataclass(frozen=True)
class Event:
    """`kind`: state, event, step, done, failed, undo, undone, bytes, output, note. `name`: of the state, step or file.

    An `event` is one of the transition table that leaves the state as it is.
    """

    kind: str
    name: str
    facts: dict[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]
_listeners: list[Listener] = []


def tell(kind: str, name: str, **facts: Any) -> None:
    """Tell every listener; one that fails is logged and does not disturb the work."""
    event = Event(kind, name, facts)
    for listener in list(_listeners):
        try:
            listener(event)
        except Exception:
            log.exception("a progress listener failed")


def subscribe(listener: Listener) -> None:
    """Call `listener` from now on."""
    _listeners.append(listener)


def unsubscribe(listener: Listener) -> None:
    """Call `listener` no more."""
    _listeners.remove(listener)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` for what happens inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
