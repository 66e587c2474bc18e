"""The answers that a waiting run takes: those to what it asked about, each form once."""

from pathlib import Path

import pytest

from otaflow import answers
from otaflow.config import parse
from otaflow.platform.device import Device, using
from otaflow.policy.offer import Offer
from otaflow.tasks import policy

FIRST = Offer("system", "1.1.0", "c1" * 32)
SECOND = Offer("system", "1.2.0", "c2" * 32)
RUN = "a run"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    device = Device(parse({"device": {"name": "d", "model": "m", "root": "device"}}, tmp_path / "otaflow.toml"))
    device.nvm.mkdir(parents=True)
    with using(device):
        policy.notify_user.do([FIRST, SECOND], RUN)
    return device


def test_a_run_takes_the_answer_to_what_it_waits_for(device: Device) -> None:
    """It announced both, and asks about the first one; only when that is installed about the second one."""
    assert answers.asked_by(device, RUN) == []
    answers.wait_in(device, FIRST, RUN)
    assert answers.asked_by(device, RUN) == [FIRST]
    assert answers.asked_by(device, "another run") == []
    answers.wait_in(device, SECOND, RUN)
    assert answers.asked_by(device, RUN) == [SECOND]


def test_a_form_is_taken_once(device: Device) -> None:
    """A run that is executed again after a restart does not answer once more, for what failed meanwhile."""
    answers.wait_in(device, FIRST, RUN)
    form = answers.form_of(device, FIRST)
    answers.give(device, FIRST, "now", by="somebody", through="prefect")
    answers.take_form(device, form)
    assert answers.asked_by(device, RUN) == []


def test_a_form_is_taken_although_another_answer_holds(device: Device) -> None:
    answers.wait_in(device, FIRST, RUN)
    answers.give(device, FIRST, "at-next-restart", by="somebody", through="command")
    assert answers.asked_by(device, RUN) == [FIRST]
