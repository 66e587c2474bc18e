"""Updates that applications ask for: the agent looks for them now, one search at a time, beside its work.

Where Prefect is there and somebody executes the device's deployment `check`, the search is a run of it; else it is a
poll of the agent's own. What is found is offered, asked about and installed as by every poll.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from otaflow import answers
from otaflow.errors import OperationNotPermitted
from otaflow.platform.device import Device

log = logging.getLogger("otaflow.agent")

REST_SECONDS = 60.0
"""An application that asks again within this time after its search gets the answer of that one."""

Search = Callable[[Device, str, threading.Event], None]
"""Looks for updates of an application; ends early where the event is set."""


class Requests:
    """Takes the applications' requests. Any thread may ask."""

    def __init__(self, device: Device, search: Search | None = None, rest_seconds: float = REST_SECONDS) -> None:
        self.device = device
        self._search = search or look_for_updates
        self._rest_seconds = rest_seconds
        self._changing = threading.Lock()
        self._due: list[str] = []
        """The applications to be searched for; the first is being searched for."""
        self._searched: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def ask(self, name: str) -> dict[str, Any]:
        """Have the updates of the application `name` looked for; `{"searching", "offers"}` as of now.

        Raises OperationNotPermitted where it is not installed.
        """
        if name not in self.device.applications.names():
            raise OperationNotPermitted(
                f"cannot look for an update of {name}: it is not installed",
                hint="`otaflow app list` shows what is installed",
            )
        searching = self._begin(name)
        found = [one for one in answers.records(answers.decisions(self.device)) if one["name"] == name]
        return {"searching": searching, "offers": found}

    def stop(self, seconds: float = 10.0) -> None:
        """End; a search in hand has `seconds`. What it began is the agent's to carry on."""
        self._ended.set()
        if self._thread:
            self._thread.join(seconds)

    def _begin(self, name: str) -> bool:
        """Whether a search for it is under way now, or begins."""
        with self._changing:
            if name in self._due:
                return True
            last = self._searched.get(name)
            if self._ended.is_set() or (last is not None and time.monotonic() - last < self._rest_seconds):
                return False
            self._due.append(name)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="otaflow-requests", daemon=True)
                self._thread.start()
        return True

    def _work(self) -> None:
        """Search until nobody asks any more."""
        while name := self._next():
            try:
                self._search(Device(self.device.config), name, self._ended)  # beside the agent's own device
            except Exception:
                log.exception("cannot look for updates of %s", name)
            with self._changing:
                self._due.remove(name)
                self._searched[name] = time.monotonic()

    def _next(self) -> str:
        with self._changing:
            if self._due and not self._ended.is_set():
                return self._due[0]
            self._thread = None
            return ""


def look_for_updates(device: Device, name: str, ended: threading.Event) -> None:
    """One search: a run of the deployment where that is possible, else a poll without one."""
    from otaflow.deployments.check import poll_alone
    from otaflow.flows.searching import begin_search, wait_for_search

    if run := begin_search(device, name):
        log.info("%s asks for an update: the flow run %s looks for it", name, run)
        wait_for_search(run, ended)
        return
    state = poll_alone(device, name)
    log.info("%s asked for an update: %s: %s", name, state.name, state.message)
