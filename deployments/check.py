"""The deployed flow `check`: one poll of the chart. It waits for the user without a process, suspended with a form."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from prefect import flow
from prefect.context import FlowRunContext, SyncClientContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH
from prefect.states import Completed, Failed
from pydantic import Field

from otaflow import answers, installing, work
from otaflow.deployments import runs, turns
from otaflow.deployments.cut_off import close_cut_off_beside
from otaflow.errors import ConfigError, HealthCheckFailed, OtaflowError
from otaflow.flows import waiting
from otaflow.flows.check import Polled, poll
from otaflow.flows.clients import is_api_trouble
from otaflow.platform.device import Device, using
from otaflow.policy import words
from otaflow.policy.consent import Choice
from otaflow.policy.decide import Decision, Verdict
from otaflow.policy.offer import Offer
from otaflow.policy.spread import find_moment
from otaflow.policy.windows import Windows
from otaflow.tasks.policy import tell_of_poll

log = logging.getLogger("otaflow.policy")


class Consent(RunInput):
    """What the user says to an update."""

    when: Annotated[
        Literal["now", "at-next-restart", "in-window", "not-this-one"], Field(description="When it may be installed.")
    ] = "now"
    by: Annotated[str, Field(description="Who says so; it is kept with the answer.", max_length=80)] = ""


def _leave_out_window(schema: dict[str, Any]) -> None:
    schema["enum"] = [choice for choice in schema["enum"] if choice != Choice.IN_WINDOW]


class ConsentWithoutWindow(Consent):
    """The same form on a device without maintenance windows. It takes an answer from when there were some."""

    when: Annotated[
        Literal["now", "at-next-restart", "in-window", "not-this-one"],
        Field(description="When it may be installed.", json_schema_extra=_leave_out_window),
    ] = "now"


# Nothing is stored; but not told where, Prefect asks its server each time.
@flow(name="check", persist_result=False, result_storage=PREFECT_LOCAL_STORAGE_PATH.value())
async def check(
    config: str | None = None, source: str | None = None, jitter_minutes: float = 0, application: str = ""
) -> Any:
    """Look for updates, tell the user, and install what may be installed.

    An update that needs the user's answer suspends the run: Resume shows a form. The run ends as "Up to date",
    "Installed", "Not now" (it says why), or failed. `config` is the device's configuration file, `source` one of its
    sources. A run that a schedule asked for begins up to `jitter_minutes` later. With `application`, only its updates
    are installed, whatever else is found.
    """
    device = work.load_device(Path(config) if config else None, source)
    context = FlowRunContext.get()
    run = str(context.flow_run.id) if context and context.flow_run and context.flow_run.deployment_id else ""
    if run and jitter_minutes and (instead := turns.wait_for_turn(run, timedelta(minutes=jitter_minutes))):
        return instead
    close_cut_off_beside()
    try:
        with SyncClientContext.get_or_create():  # one for all boxes: each would read all CAs for a client of its own
            polled = await _poll(device, run, application)
    except OtaflowError as error:
        return _ended_badly(error)
    return Completed(name=polled.name, message=_say(polled))


def poll_alone(device: Device, application: str = "") -> Any:
    """The same without Prefect, for a device whose API is away: how it ended, as the run's state would be."""
    try:
        with using(device):
            polled = poll(device.config.update.use, partial(installing.install, device), application=application)
    except OtaflowError as error:
        return _ended_badly(error)
    return Completed(name=polled.name, message=_say(polled))


async def _poll(device: Device, run: str, application: str) -> Polled:
    """Poll, and again with each answer that the user gives."""
    with using(device):
        asked = answers.asked_by(device, run)  # this run was resumed: the answer comes first
        while True:
            for offer in asked:
                await _ask_user(device, offer)
            before = runs.describe(device)
            try:
                polled = _look(device, run, application)
            except OtaflowError:
                if runs.describe(device) != before:  # something else was installed
                    with _bookkeeping():
                        runs.report(device, before)
                raise
            with _bookkeeping():
                if polled.installed:
                    runs.report(device, before)
                for decision in polled.left if run else ():
                    if moment := _find_moment(device, decision):
                        runs.poll_again(run, decision.offer.content, moment)
            asked = _find_question(device, polled, run)
            if not asked:
                break
        with _bookkeeping():
            waiting.end_waiting(device)
    return polled


@contextmanager
def _bookkeeping() -> Iterator[None]:
    """What Prefect is told beside the run; an API that goes away just then makes no update a failed one."""
    try:
        yield
    except Exception as error:
        if not is_api_trouble(error):
            raise
        log.warning("cannot tell Prefect: %s", error)


def _find_moment(device: Device, decision: Decision) -> datetime | None:
    """When a poll may do more for what was left now; at a window's opening not all devices come at once."""
    jitter = timedelta(minutes=device.config.poll.jitter_minutes)
    return find_moment(decision, Windows.of(device.config.policy.windows), device.config.device.name, jitter)


def _look(device: Device, run: str, application: str) -> Polled:
    """The chart, and the event that it is over."""
    try:
        polled = poll(device.config.update.use, partial(installing.install, device), run, application)
    except OtaflowError as error:
        tell_of_poll(_name_of(error))
        raise
    tell_of_poll(polled.name)
    return polled


def _name_of(error: OtaflowError) -> str:
    """What failed, in a word or two, as the run's state."""
    return "Rolled back" if isinstance(error, HealthCheckFailed) else "Failed"


def _ended_badly(error: OtaflowError) -> Any:
    """The run's end after a failure: what failed as its name, why as its message."""
    return Failed(name=_name_of(error), message=f"{error}. {error.hint}" if error.hint else str(error))


async def _ask_user(device: Device, offer: Offer) -> None:
    """Suspend the run until the user answers, or take the answer with which it was resumed."""
    windows = bool(device.config.policy.windows)
    kind: Any = Consent if windows else ConsentWithoutWindow
    form = kind.with_initial_data(description=_describe(offer, windows=windows))
    days = timedelta(days=device.config.policy.consent_days)
    key = answers.form_of(device, offer)
    answer: Any = await suspend_flow_run(wait_for_input=form, timeout=int(days.total_seconds()), key=key)
    try:
        if answers.choice_of(device, offer) != answer.when:  # else `otaflow consent` has recorded it, and resumed us
            answers.give(device, offer, answer.when, by=answer.by or "somebody", through="prefect")
    except ConfigError as error:  # in a window that the device does not have: it is asked again
        log.warning("%s", error)
        answers.withdraw(device, offer)
    answers.take_form(device, key)


def _find_question(device: Device, polled: Polled, run: str) -> list[Offer]:
    """The one offer that this run asks about now: the first that needs an answer, and that no other run asks about."""
    for decision in polled.left if run else ():
        if decision.verdict is Verdict.ASK and _waits_here(device, decision.offer, run):
            return [decision.offer]
    return []


def _waits_here(device: Device, offer: Offer, run: str) -> bool:
    """Whether it is this run that waits for the answer: no other one does, or that one is gone."""
    there = answers.waiting_run(device, offer)
    if there and there != run and waiting.is_waiting(UUID(there)):
        return False
    answers.wait_in(device, offer, run)
    return True


def _describe(offer: Offer, *, windows: bool) -> str:
    """What the form says above its fields; it names the content that the answer is to."""
    what = "The application " if offer.kind == "application" else ""
    in_window = " *in-window*: in its maintenance window." if windows else ""
    parts = [
        f"{what}**{offer.title()}** can be installed ({words.in_bytes(offer.bytes)} to download).",
        offer.description,
        f"**{offer.loss()}** It is installed only if you say so." if offer.irreversible else "",
        f"*now*: at once. *at-next-restart*: after the device was restarted.{in_window} "
        "*not-this-one*: not before something newer is offered.",
        f"The answer is to the package with the SHA-256 `{offer.content}`.",
    ]
    return "\n\n".join(part for part in parts if part)


def _say(polled: Polled) -> str:
    parts = [f"installed {', '.join(polled.installed)}"] if polled.installed else []
    for decision in polled.left:
        parts.append(f"{decision.offer.title()}: {'; '.join(reason.text for reason in decision.reasons)}")
    return "; ".join(parts) or polled.name
