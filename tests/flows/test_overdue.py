"""While Prefect is away the device goes on looking for updates: the agent polls by itself when a poll is overdue."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from poll_rig import Site
from prefect.settings import PREFECT_API_URL, temporary_settings
from update_world import Packages

from otaflow.agent.overdue import Overdue
from otaflow.platform.device import using
from otaflow.tasks.policy import last_poll, look_at_what_ended


@pytest.fixture
def away(served: Site) -> Iterator[None]:
    """Nobody answers where Prefect's API should be."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


def poll_once(site: Site) -> datetime:
    """The device was polled before; when."""
    device = site.world.device()
    with using(device):
        look_at_what_ended.do()
    polled = last_poll(device)
    assert polled is not None
    return polled.time


def test_an_overdue_poll_installs(served: Site, away: None, packages: Packages) -> None:
    served.publish(packages.make(priority=True))
    polled = poll_once(served)
    overdue = Overdue(served.world.device())
    assert not overdue.look(polled + timedelta(hours=8))  # the interval is not over by half of it
    assert overdue.look(polled + timedelta(hours=13))
    assert served.world.device().running_system().version == "1.2.0"
    assert served.messages == ["available", "installing", "done"]
    last = last_poll(served.world.device())
    assert last is not None
    assert last.time != polled


def test_a_clock_that_was_set_back(served: Site, away: None) -> None:
    polled = poll_once(served)
    assert Overdue(served.world.device()).look(polled - timedelta(days=365))


def test_a_poll_that_fails_is_reported(served: Site, away: None) -> None:
    polled = poll_once(served)
    served.configure("https://127.0.0.1:9")
    assert Overdue(served.world.device()).look(polled + timedelta(days=1))
    assert served.messages == ["failed"]


def test_a_device_that_was_never_polled_is_left_alone(served: Site, away: None, packages: Packages) -> None:
    served.publish(packages.make(priority=True))
    assert not Overdue(served.world.device()).look(datetime.now(UTC))
    assert served.messages == []


def test_where_prefect_answers_its_schedule_counts(served: Site) -> None:
    """A deployment that somebody paused stays paused."""
    polled = poll_once(served)
    assert not Overdue(served.world.device()).look(polled + timedelta(days=30))
