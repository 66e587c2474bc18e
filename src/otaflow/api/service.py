"""What the interface needs of the agent: the methods of the UCM, in Python's words.

Every method raises `otaflow.errors.UcmError` (its class's name and code are the answer). Arguments come from clients:
an id is any string up to 255 characters, a block counter any integer; the service decides whether they mean anything.
"""

from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Protocol

from otaflow.actions import Way

Fields = dict[str, Any]
"""A JSON object, as docs/spec/ucm-api.md describes it."""


class Subscription(Protocol):
    """A place in the row of those who are told each change of the status."""

    def get(self, timeout: float) -> Fields | None:
        """The next change, `{"status", "session"}`; None when there was none in `timeout` seconds."""


class PolicyService(Protocol):
    """What the user and the applications say and are told. Any thread may call any method."""

    def offers(self) -> list[Fields]: ...

    def consent(self, choice: str, version: str, by: str, *, name: str = "", content: str = "") -> None: ...

    def messages(self, reader: str, after: int) -> list[Fields]:
        """Later than `after`, and not acknowledged by `reader`; oldest first."""

    def mark(self) -> object:
        """Another one whenever there may be a new message; answers at once."""

    def acknowledge(self, reader: str, id: int) -> None: ...

    def diagnostics(self) -> Fields:
        """`{"consent": {"given", "time", "by"}, "waiting": int, "report": {…}}`. Blocks while it collects."""

    def consent_to_diagnostics(self, *, given: bool, by: str) -> Fields:
        """`{"given", "time", "by", "removed": int}`."""


class UcmService(Protocol):
    """The agent, as the interface sees it. Any thread may call any method.

    The methods that give a Future raise at once what the state forbids; the Future is done when the call is to be
    answered, and giving up waiting for it changes nothing.
    """

    @property
    def policy(self) -> PolicyService: ...

    def status(self) -> Fields:
        """`{"status": "Idle", "session": None | str}`."""

    def subscribe(self) -> AbstractContextManager[Subscription]:
        """Be told each change of the status from now on."""

    def transfer_start(self, size: int) -> tuple[str, int]:
        """Reserve `size` bytes; the transfer's id, and the largest block that it takes."""

    def transfer_data(self, id: str, block_counter: int, block: bytes | memoryview) -> int:
        """Take a block; returns how many bytes are there without a gap. Blocks until they are on the disk.

        The block is the caller's: its memory is used again when this has returned.
        """

    def transfer_exit(self, id: str) -> None:
        """All was sent: the package is checked. Blocks."""

    def delete_transfer(self, id: str) -> None: ...

    def process(self, id: str, *, unattended: bool = False, accept_irreversible: bool = False) -> Future[None]: ...

    def go_back(self, to: Way, backup: str | None, *, unattended: bool = False) -> Future[None]: ...

    def uninstall(self, id: str, *, unattended: bool = False) -> Future[None]:
        """The package is checked first, as by `transfer_exit`. Blocks for so long."""

    def remove(self, name: str, *, unattended: bool = False) -> Future[None]: ...

    def request_update(self, name: str) -> Fields:
        """`{"searching": bool, "offers": […]}`, at once."""

    def defer(self, name: str) -> Fields:
        """`{"secondsLeft", "defersLeft"}`."""

    def clean_up(self) -> Future[Fields]:
        """`{"removed": [ids of backups]}`."""

    def cancel(self, id: str) -> Future[None]: ...

    def activate(self) -> Future[None]: ...

    def rollback(self) -> Future[None]: ...

    def revert(self) -> Future[None]: ...

    def finish(self) -> Future[None]: ...

    def progress(self, id: str) -> int:
        """0 to 100."""

    def clusters(self) -> list[Fields]: ...

    def cluster_changes(self) -> list[Fields]: ...

    def packages(self) -> list[Fields]: ...

    def history(self, since: str | None, until: str | None) -> list[Fields]:
        """The actions in [since, until], oldest first. Both are RFC 3339 in UTC: `2026-01-31T12:00:00.000Z`."""

    def set_log_level(self, id: str, level: int) -> None: ...

    def log(self, id: str) -> list[Fields]: ...
