"""Every path of the S16 chart through the deployed flow `check`: real TLS server, real Prefect API, real device."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from update_world import FAILING, SICK, Packages, World

from otaflow import answers
from otaflow.deployments.check import check
from otaflow.platform.device import using
from otaflow.policy.store import Store
from otaflow.repo import admin, serve
from otaflow.repo.certificates import make_authority, make_server_certificate
from otaflow.tasks.policy import memory

TOKEN = "a-token-of-the-tests"
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


@pytest.fixture
def kind() -> str:
    """Directories: the chart is the same on each storage."""
    return "directories"


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
    def served(self, *, token: str | None = None) -> Iterator[str]:
        pair = make_server_certificate(self.authority, self.folder / "tls", ["127.0.0.1"])
        with serve.running(self.folder / "site" / "public", pair.certificate, pair.key, token=token) as url:
            yield url

    def poll(self) -> str:
        """Run the flow; the name of its end."""
        state: Any = asyncio.run(check(config=str(self.world.config), return_state=True))
        self.run = state.state_details.flow_run_id
        return str(state.name)

    def shows(self, end: str, *tasks: tuple[str, str]) -> None:
        """Poll; it ends so, and its tasks are these with these states, in order (Prefect records them a bit later)."""
        assert self.poll() == end
        deadline = time.monotonic() + 60
        while (seen := self.tasks()) != list(tasks):
            assert time.monotonic() < deadline, seen
            time.sleep(0.1)

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


@pytest.fixture
def site(world: World, packages: Packages, tmp_path: Path, quick: None, prefect_api: str) -> Site:
    folder = tmp_path / "repository"
    admin.init(folder / "site")
    return Site(world, folder, make_authority(folder / "tls"))


@pytest.fixture
def served(site: Site) -> Iterator[Site]:
    """The repository is there, and the device asks the user."""
    with site.served() as url:
        site.configure(url)
        yield site


def test_max_number_of_tries_is_reached(site: Site) -> None:
    site.configure("https://127.0.0.1:9")
    site.shows("Failed", BEGIN[0], (BEGIN[1][0], "Failed"), *FAILS, *NO_DATA)
    assert site.messages == ["failed"]
    site.poll()
    assert site.messages == ["failed"]  # the same trouble is told once


def test_a_second_try_connects(site: Site) -> None:
    with site.served() as url:
        site.configure("https://127.0.0.1:9")
        site.poll()
        site.configure(url)
        site.shows("Up to date", *BEGIN, ("new packages available", "no"))


def test_certificate_is_not_valid(site: Site) -> None:
    with site.served() as url:
        site.authority = make_authority(site.folder / "another")
        site.configure(url)
        site.shows("Failed", *BEGIN[:2], (BEGIN[2][0], "Failed"), *FAILS, *NO_DATA)


def test_login_is_refused(site: Site) -> None:
    with site.served(token=TOKEN) as url:
        wrong = site.folder / "token"
        wrong.write_text("another")
        site.configure(url, f'token_file = "{wrong}"\n')
        site.shows("Failed", *BEGIN[:3], (BEGIN[3][0], "Failed"), *FAILS, *NO_DATA)


def test_repository_is_refused(served: Site) -> None:
    timestamp = served.folder / "site/public/metadata/timestamp.json"
    content = json.loads(timestamp.read_text())
    content["signed"]["version"] += 1
    timestamp.write_text(json.dumps(content))
    served.shows("Failed", *BEGIN[:4], (BEGIN[4][0], "Failed"), *FAILS, *NO_DATA)


def test_diagnostic_data_with_consent(served: Site) -> None:
    store = Store(served.world.device().nvm / "policy" / "diagnostics")
    with store.changing() as content:
        content["consent"] = {"given": True}
    served.configure("https://127.0.0.1:9")
    served.shows("Failed", BEGIN[0], (BEGIN[1][0], "Failed"), *FAILS, *DATA)


def test_no_new_packages(served: Site) -> None:
    served.shows("Up to date", *BEGIN, ("new packages available", "no"))
    assert served.messages == []


def test_without_priority_it_waits_for_the_user(served: Site, packages: Packages) -> None:
    served.publish(packages.make())
    served.shows("Waiting for the user", *FOUND, *WAITS)
    assert served.messages == ["available"]
    served.shows("Waiting for the user", *FOUND, *WAITS)
    assert served.messages == ["available"]  # it is not announced twice
    assert served.world.device().running_system().version == "1.1.0"


def test_the_user_initiates_the_update(served: Site, packages: Packages) -> None:
    served.publish(packages.make())
    served.poll()
    served.answer("now")
    served.shows("Installed", *FOUND, ("priority update", "no"), *INSTALLS)
    assert served.messages == ["available", "installing", "done"]
    assert served.world.device().running_system().version == "1.2.0"
    assert served.poll() == "Up to date"


def test_a_priority_update_waits_for_nobody(served: Site, packages: Packages) -> None:
    served.publish(packages.make(priority=True))
    served.shows("Installed", *FOUND, ("priority update", "yes"), *INSTALLS)
    assert served.messages == ["available", "installing", "done"]


@pytest.mark.parametrize(
    ("health", "program", "end", "told"),
    [(SICK, None, "Rolled back", "rolled-back"), ("", FAILING, "Failed", "failed")],
    ids=["not healthy", "program fails"],
)
def test_the_update_fails(
    served: Site, packages: Packages, health: str, program: str | None, end: str, told: str
) -> None:
    more = {"program": program} if program else {}
    served.publish(packages.make(health=health, priority=True, **more))
    begin = [*FOUND, ("priority update", "yes"), INSTALLS[0], ("update packages", "Failed")]
    served.shows(end, *begin, *FAILS, *NO_DATA)
    assert served.messages == ["available", "installing", told]
    assert served.world.device().running_system().version == "1.1.0"
    # the memory of it: not at every poll
    served.shows("Not now", *FOUND, ("priority update", "yes"), WAITS[1])
    [decision] = answers.decisions(served.world.device())
    assert [reason.name for reason in decision.reasons] == ["failed"]
    # another content is another update
    served.publish(packages.make("1.2.1", number=3, priority=True))
    assert served.poll() == "Installed"


def test_a_refusal_and_its_withdrawal(served: Site, packages: Packages) -> None:
    served.publish(packages.make())
    served.poll()
    served.answer("not-this-one")
    assert served.poll() == "Not now"
    device = served.world.device()
    answers.withdraw(device, answers.find_open(device))
    assert served.poll() == "Waiting for the user"
    assert served.messages == ["available", "available"]


def test_at_the_next_restart(served: Site, packages: Packages) -> None:
    served.publish(packages.make())
    served.poll()
    served.answer("at-next-restart")
    assert served.poll() == "Not now"
    served.world.device().boots.note_restart()
    assert served.poll() == "Installed"


def test_consent_that_is_taken_back_before_the_activation(served: Site, packages: Packages) -> None:
    """Withdrawn while the package is processed: nothing is activated, and what was processed is given up."""
    script = '#!/bin/sh\necho "$@" > /dev/null\nexit 0\n'
    served.publish(packages.make(program=script))
    served.poll()
    served.answer("now")
    device = served.world.device()

    def withdraw(event: Any) -> None:
        if event.kind == "done" and event.facts.get("step") == "run_update_program":
            answers.withdraw(device, answers.find_open(device))

    from otaflow import progress

    with progress.listening(withdraw):
        assert served.poll() == "Failed"
    assert (str(device.journal.state), device.running_system().version) == ("Idle", "1.1.0")
    assert served.poll() == "Waiting for the user"


def test_people_are_told(served: Site, packages: Packages) -> None:
    """Notices go out over apprise, as JSON here; one that nobody takes keeps nothing from going on."""
    heard: list[dict[str, Any]] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ExitStack() as stack:
        server = stack.enter_context(HTTPServer(("127.0.0.1", 0), Listener))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        served.world.config.write_text(
            served.world.config.read_text()
            + f'[notices]\nurls = ["json://127.0.0.1:{server.server_port}", "json://127.0.0.1:9"]\n'
        )
        served.publish(packages.make(priority=True))
        assert served.poll() == "Installed"
    texts = [notice["message"] for notice in heard]
    assert len(texts) == 2
    assert "is available" in texts[0]
    assert "is installed and works" in texts[1]
