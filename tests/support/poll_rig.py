"""A poll of the S16 chart: a device, the repository that it trusts behind TLS, and what the chart's run shows."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from update_world import World

from otaflow import answers
from otaflow.deployments.check import check
from otaflow.platform.device import using
from otaflow.repo import admin, serve
from otaflow.repo.certificates import make_server_certificate
from otaflow.tasks.policy import memory

BEGIN = [
    ("look at what ended", "Completed"),
    ("connect to the package management server", "Completed"),
    ("check ssl certificate of connection", "Completed"),
    ("authenticate", "Completed"),
    ("update package repository", "Completed"),
    ("find new packages", "Completed"),
]
FOUND = [
    *BEGIN,
    ("new packages available", "yes"),
    ("notify the user that updates are available", "Completed"),
]
WAITS = [("priority update", "no"), ("wait for user to initiate update", "Completed")]
INSTALLS = [
    ("download package", "Completed"),
    ("update packages", "Completed"),
    ("log success / message to app", "Completed"),
]
FAILS = [("error log / message to app", "Completed")]
NO_DATA = [("has user consented for diagnostic data", "no")]
DATA = [("has user consented for diagnostic data", "yes"), ("send diagnostic data", "Completed")]


@dataclass
class Site:
    """A device, and a repository that it trusts, behind TLS."""

    world: World
    folder: Path
    authority: Any
    run: Any = None

    def publish(self, *packages: Path) -> None:
        admin.publish(self.folder / "site", list(packages))

    def configure(self, url: str, more: str = "", policy: str = "") -> None:
        root = self.folder / "site/public/metadata/1.root.json"
        self.world.configure(
            f'[update]\nuse = "test"\n[sources.test]\nurl = "{url}"\nroot = "{root}"\n'
            f'ca = "{self.authority.certificate}"\nconnect_tries = 2\nconnect_wait_seconds = 0\n{more}'
            f"[health]\ntries = 1\n[policy]\n{policy}"
        )

    @contextmanager
    def served(self, *, token: str | None = None, days: int = 825) -> Iterator[str]:
        """Its URL; the certificate is new, for so many days."""
        pair = make_server_certificate(self.authority, self.folder / "tls", ["127.0.0.1"], days)
        with serve.running(self.folder / "site" / "public", pair.certificate, pair.key, token=token) as url:
            yield url

    def poll(self) -> str:
        """Run the flow; the name of its end."""
        state: Any = asyncio.run(check(config=str(self.world.config), return_state=True))
        self.run = state.state_details.flow_run_id
        return str(state.name)

    def shows(self, end: str, *tasks: tuple[str, str]) -> None:
        """Poll; it ends so, and its tasks are these with these states, in order."""
        self.shows_one_of((end, list(tasks)))

    def shows_one_of(self, *ways: tuple[str, list[tuple[str, str]]]) -> str:
        """Poll; end and tasks are those of one of the ways (Prefect records tasks a bit later); the name of its end."""
        end = self.poll()
        deadline = time.monotonic() + 180
        while (end, seen := self.tasks()) not in ways:
            assert time.monotonic() < deadline, (end, seen)
            time.sleep(0.1)
        return end

    def tasks(self) -> list[tuple[str, str]]:
        with get_client(sync_client=True) as client:
            run = FlowRunFilter(id=FlowRunFilterId(any_=[self.run]))
            found = client.read_task_runs(flow_run_filter=run)
        found.sort(key=lambda one: one.start_time or one.created)
        return [(one.name, one.state.name if one.state else "") for one in found]

    @property
    def messages(self) -> list[str]:
        with using(self.world.device()):
            return [message.kind for message in memory().inbox.read()]

    def answer(self, choice: str) -> None:
        device = self.world.device()
        answers.give(device, answers.find_open(device), choice, by="a test", through="command")
