"""Polls of a device with applications: a row of updates for each, their failures apart, the policy for all of them."""

from pathlib import Path
from typing import Any

import pytest
from poll_rig import BEGIN, FAILS, FOUND, INSTALLS, NO_DATA, WAITS, Site
from prefect.client.orchestration import get_client
from tiny_apps import MORE, SICK, build_app, install_app
from update_world import Packages

from otaflow import answers
from otaflow.actions import find_removal
from otaflow.deployments.check import poll_alone
from otaflow.platform.device import using
from otaflow.tasks.policy import memory

FREE = f"ask = false\n{MORE}"
ASKS = f"ask = true\n{MORE}"
NO, YES = ("priority update", "no"), ("priority update", "yes")


@pytest.fixture
def kind() -> str:
    """Directories: the chart is the same on each storage."""
    return "directories"


@pytest.fixture
def apps(site: Site, tmp_path: Path) -> Path:
    """Two applications at 1.0.0 on a device that asks nobody; the folder that packages are built in."""
    site.world.configure(MORE)
    for name in ("notes", "radio"):
        install_app(site.world, build_app(tmp_path, name, "1.0.0"), name, "1.0.0")
    return tmp_path


@pytest.fixture
def installing(site: Site, apps: Path) -> Any:
    with site.served() as url:
        site.configure(url, policy=FREE)
        yield site


@pytest.fixture
def asking(site: Site, apps: Path) -> Any:
    with site.served() as url:
        site.configure(url, policy=ASKS)
        yield site


def versions(site: Site) -> dict[str, str]:
    return site.world.device().applications.versions()


def message(site: Site) -> str:
    """What the last run ended with, in words."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(site.run).state
        assert state is not None
        return str(state.message)


def test_each_application_is_brought_up_to_date(installing: Site, apps: Path, packages: Packages) -> None:
    """The system first, then each application in the order of its versions, each in a session of its own."""
    chain = [build_app(apps, "notes", "1.1.0", "1.0.0"), build_app(apps, "notes", "1.2.0", "1.1.0")]
    installing.publish(packages.make(), *chain, build_app(apps, "radio", "1.1.0", "1.0.0"))
    before = len(installing.world.device().history.read())
    installing.shows("Installed", *FOUND, *[one for _ in range(4) for one in (NO, *INSTALLS)])
    assert message(installing) == "installed 1.2.0, notes 1.1.0, notes 1.2.0, radio 1.1.0"
    assert versions(installing) == {"notes": "1.2.0", "radio": "1.1.0"}
    records = installing.world.device().history.read()[before:]
    assert len({record["session"] for record in records}) == 4
    installing.shows("Up to date", *BEGIN, ("new packages available", "no"))


def test_what_is_not_installed_is_not_offered(installing: Site, apps: Path) -> None:
    installing.publish(build_app(apps, "camera", "1.0.0"), build_app(apps, "camera", "1.1.0", "1.0.0"))
    assert installing.poll() == "Up to date"
    assert versions(installing) == {"notes": "1.0.0", "radio": "1.0.0"}


def test_one_that_fails_does_not_keep_the_others(installing: Site, apps: Path) -> None:
    """Its own further updates build on it, and are not tried; the run has failed, and says which."""
    sick = build_app(apps, "notes", "1.1.0", "1.0.0", health=SICK)
    good = build_app(apps, "radio", "1.1.0", "1.0.0")
    installing.publish(sick, build_app(apps, "notes", "1.2.0", "1.1.0"), good)
    failing = [NO, INSTALLS[0], ("update packages", "Failed"), *FAILS]
    installing.shows("Rolled back", *FOUND, *failing, NO, *INSTALLS, *NO_DATA)
    assert message(installing).startswith("notes 1.1.0: ")
    assert "radio 1.1.0 is installed" in message(installing)
    assert versions(installing) == {"notes": "1.0.0", "radio": "1.1.0"}
    with get_client(sync_client=True) as client:
        kept = [one for one in client.read_artifacts() if one.flow_run_id == installing.run and one.type == "table"]
    assert "application radio" in str(kept[0].data)
    # its content is left alone for a while, and the run does not fail of it again
    assert installing.poll() == "Not now"
    assert "notes 1.1.0: it failed" in message(installing)


def test_two_that_fail_are_both_named(installing: Site, apps: Path) -> None:
    for name in ("notes", "radio"):
        installing.publish(build_app(apps, name, "1.1.0", "1.0.0", health=SICK))
    assert installing.poll() == "Rolled back"
    assert "notes 1.1.0: " in message(installing)
    assert "radio 1.1.0: " in message(installing)


def test_a_poll_of_one_application(installing: Site, apps: Path) -> None:
    """Everything that is new is told; only that one is installed."""
    installing.publish(build_app(apps, "notes", "1.1.0", "1.0.0"), build_app(apps, "radio", "1.1.0", "1.0.0"))
    state = poll_alone(installing.world.device(), "radio")
    assert (state.name, state.message) == ("Installed", "installed radio 1.1.0")
    assert versions(installing) == {"notes": "1.0.0", "radio": "1.1.0"}
    assert [offer.name for offer in answers_of(installing)] == ["notes"]
    assert installing.messages.count("available") == 2
    assert poll_alone(installing.world.device(), "camera").name == "Up to date"


def test_the_user_is_asked_about_each(asking: Site, apps: Path) -> None:
    asking.publish(build_app(apps, "notes", "1.1.0", "1.0.0"), build_app(apps, "radio", "1.1.0", "1.0.0"))
    asking.shows("Waiting for the user", *FOUND, *WAITS, *WAITS)
    answer(asking, "radio", "now")
    asking.shows("Waiting for the user", *FOUND, *WAITS, NO, *INSTALLS)
    assert versions(asking) == {"notes": "1.0.0", "radio": "1.1.0"}
    answer(asking, "notes", "not-this-one")
    assert asking.poll() == "Not now"


def test_priority_does_not_wait_for_another_ones_answer(asking: Site, apps: Path) -> None:
    urgent = build_app(apps, "radio", "1.1.0", "1.0.0", priority=True)
    asking.publish(build_app(apps, "notes", "1.1.0", "1.0.0"), urgent)
    asking.shows("Waiting for the user", *FOUND, *WAITS, YES, *INSTALLS)
    assert versions(asking) == {"notes": "1.0.0", "radio": "1.1.0"}


def test_what_changes_data_for_good_needs_an_answer(installing: Site, apps: Path) -> None:
    """Also on a device that asks about nothing else; with it, the update manager is told of the agreement."""
    installing.publish(build_app(apps, "notes", "1.1.0", "1.0.0", irreversible=True))
    assert installing.poll() == "Waiting for the user"
    answer(installing, "notes", "now")
    assert installing.poll() == "Installed"
    assert versions(installing)["notes"] == "1.1.0"
    data = installing.world.device().applications.data("notes")
    assert (data / "words/log").read_text() == "migrated\n"


def answers_of(site: Site) -> list[Any]:
    """What is on offer."""
    return [decision.offer for decision in answers.decisions(site.world.device())]


def answer(site: Site, name: str, choice: str) -> None:
    device = site.world.device()
    [offer] = [one for one in answers_of(site) if one.name == name]
    answers.give(device, offer, choice, by="a test", through="command")


def test_what_is_told_of_an_application(installing: Site, apps: Path) -> None:
    """In its own words: what runs after it was taken back is the application's version, not the system's."""
    installing.publish(build_app(apps, "notes", "1.1.0", "1.0.0", health=SICK))
    poll_alone(installing.world.device())
    device = installing.world.device()
    with installing.world.ucm() as ucm:
        ucm.install(find_removal(device, "radio"))
    poll_alone(installing.world.device())
    with using(device):
        texts = [message.text for message in memory().inbox.read()]
    assert [text for text in texts if text.startswith("notes 1.1.0 was taken back: ") and "Version 1.0.0 runs" in text]
    assert texts[-1] == "radio 1.0.0 was removed; its data stays."
