"""Every path of the S16 chart through the deployed flow `check`: real TLS server, real Prefect API, real device."""

import json
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from poll_rig import BEGIN, DATA, FAILS, FOUND, INSTALLS, NO_DATA, WAITS, Site
from update_world import FAILING, SICK, Packages

from otaflow import answers
from otaflow.platform.lock import DeviceLock
from otaflow.policy.store import Store
from otaflow.repo import admin
from otaflow.repo.certificates import make_authority

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def kind() -> str:
    """Directories: the chart is the same on each storage."""
    return "directories"


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


def test_an_answer_that_changes_while_the_package_is_processed(served: Site, packages: Packages) -> None:
    """The last word counts: a refusal is no permission."""
    served.publish(packages.make())
    served.poll()
    served.answer("now")

    def refuse(event: Any) -> None:
        if event.kind == "done" and event.facts.get("step") == "run_update_program":
            served.answer("not-this-one")

    from otaflow import progress

    with progress.listening(refuse):
        assert served.poll() == "Failed"
    assert served.world.device().running_system().version == "1.1.0"
    [decision] = answers.decisions(served.world.device())
    assert [reason.name for reason in decision.reasons] == ["refused"]


def test_what_a_command_failed_to_install_is_left_alone(served: Site, packages: Packages) -> None:
    """No poll had announced it: the history tells by name and version."""
    served.publish(packages.make(health=SICK, priority=True))
    assert served.poll() == "Rolled back"
    told = served.world.device().nvm / "policy" / "told"
    told.unlink()  # all that polls know is lost
    (told.parent / "failures").unlink()
    assert served.poll() == "Not now"


def test_a_damaged_history_stops_no_update(served: Site, packages: Packages) -> None:
    served.poll()
    history = served.world.device().nvm / "history"
    sound = history.read_bytes()
    damaged = sound[:20] + bytes([sound[20] ^ 1]) + sound[21:] + b"another line\n" + sound
    history.write_bytes(damaged)
    served.publish(packages.make())
    assert served.poll() == "Waiting for the user"
    records = served.world.device().history.read()
    assert (records[-1]["error"], records[-1]["lost"]) == ("JournalCorrupt", 2)
    assert history.with_name("history.damaged").read_bytes() == damaged


def test_what_is_not_offered_any_more_is_not_asked_about(served: Site, packages: Packages) -> None:
    served.publish(packages.make())
    served.poll()
    assert len(answers.decisions(served.world.device())) == 1
    [package] = admin.overview(served.folder / "site").packages
    admin.withdraw(served.folder / "site", package.path)
    assert served.poll() == "Up to date"
    assert answers.decisions(served.world.device()) == []


def test_two_polls_at_once(served: Site, packages: Packages) -> None:
    """The second one ends at once, and tells nobody of a failure."""
    served.publish(packages.make())
    with DeviceLock(served.world.device().nvm / "poll.lock"):
        assert served.poll() == "Another poll is at work"
    assert served.messages == []


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
