"""The answers that a waiting run takes: those to what it asked about, each form once."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from otaflow import answers
from otaflow.config import parse
from otaflow.deployments import check
from otaflow.errors import OperationNotPermitted
from otaflow.flows import waiting
from otaflow.platform.device import Device, using
from otaflow.policy.offer import Offer
from otaflow.tasks import policy

FIRST = Offer("system", "1.1.0", "c1" * 32)
SECOND = Offer("system", "1.2.0", "c2" * 32)
NOTES = Offer("notes", "1.1.0", "c3" * 32, kind="application")
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


FOUND: dict[str, tuple[dict[str, str], Offer | str]] = {
    # what is asked for, the offer or what is said
    "the next one": ({}, FIRST),
    "by version": ({"version": "1.2.0"}, SECOND),
    "by name": ({"name": "notes"}, NOTES),
    "by name, the next one": ({"name": "system"}, FIRST),
    "by both": ({"name": "notes", "version": "1.1.0"}, NOTES),
    "by content": ({"content": NOTES.content}, NOTES),
    "by version and content": ({"version": "1.1.0", "content": NOTES.content}, NOTES),
    "by all": ({"name": "system", "version": "1.1.0", "content": FIRST.content}, FIRST),
    "a version of several": ({"version": "1.1.0"}, "1.1.0 is on offer of several, system 1.1.0 and notes 1.1.0"),
    "not there": ({"version": "1.3.0"}, "1.3.0 is not on offer"),
    "not there under that name": ({"name": "notes", "version": "1.2.0"}, "notes 1.2.0 is not on offer"),
    "other content": (
        {"name": "notes", "content": "ff" * 32},
        "notes 1.1.0 is another content now (c3c3c3c3c3c3c3c3…), the answer is to ffffffffffffffff…",
    ),
    "content of another version": ({"version": "1.2.0", "content": FIRST.content}, "system 1.2.0 is another content"),
    "content of nothing": ({"content": "ff" * 32}, "what is on offer is another content now"),
}


@pytest.mark.parametrize(("asked", "expected"), FOUND.values(), ids=FOUND)
def test_find_open(device: Device, asked: dict[str, str], expected: Offer | str) -> None:
    with using(device):
        policy.notify_user.do([FIRST, SECOND, NOTES], RUN)
    if isinstance(expected, Offer):
        assert answers.find_open(device, **asked) == expected
        return
    with pytest.raises(OperationNotPermitted, match=re.escape(f"cannot answer: {expected}")):
        answers.find_open(device, **asked)


def test_content_that_changed_between_question_and_answer(device: Device) -> None:
    """The same version, published anew: what the user was shown is not what would be installed."""
    shown = answers.find_open(device, "1.1.0")
    with using(device):
        policy.notify_user.do([replace(FIRST, content="d1" * 32), SECOND], RUN)
    with pytest.raises(OperationNotPermitted, match=r"system 1\.1\.0 is another content now") as refused:
        answers.find_open(device, "1.1.0", content=shown.content)
    assert "ask the user anew" in refused.value.hint
    assert answers.find_open(device, "1.1.0").content == "d1" * 32


def test_an_answer_does_not_go_to_a_run_that_asks_about_another_offer(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that announced both asks about the first one: it would take the answer as one to that."""
    resumed: list[tuple[str, str]] = []
    monkeypatch.setattr(answers, "prepare_prefect", lambda device: None)
    monkeypatch.setattr(waiting, "resume", lambda run, choice: resumed.append((run, choice)))
    answers.wait_in(device, FIRST, RUN)
    answers.resume(device, SECOND, "now")
    assert resumed == []
    answers.resume(device, FIRST, "now")
    assert resumed == [(RUN, "now")]


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "no windows"])
def test_the_form_offers_what_the_device_can_do(windows: bool) -> None:
    form = check.Consent if windows else check.ConsentWithoutWindow
    said = check._describe(replace(NOTES, irreversible=True), windows=windows)
    choices = form.with_initial_data(description=said).model_json_schema()["properties"]["when"]["enum"]
    assert ("in-window" in choices) is windows
    assert ("in-window" in said) is windows
    assert NOTES.content in said
    assert "**It changes data for good" in said
    assert form(when="in-window").when == "in-window", "answered before the device's windows were taken away"
