"""The user's answers to what was offered, whoever brings them: Prefect's form, `otaflow consent`, the interface."""

from datetime import UTC, datetime
from typing import Any, Literal

from otaflow.errors import OperationNotPermitted
from otaflow.platform.device import Device, using
from otaflow.policy.consent import Answer, Choice
from otaflow.policy.decide import Decision
from otaflow.policy.offer import Offer
from otaflow.tasks import policy
from otaflow.work import prepare_prefect

Through = Literal["prefect", "command", "interface"]


def find_open(device: Device, version: str = "", *, name: str = "", content: str = "") -> Offer:
    """The offer that an answer is about: the next one of those that are of `name` and `version`, where given.

    `content` is the SHA-256 of what the user was shown. Raises OperationNotPermitted where nothing of the kind is on
    offer, where it is another content by now, and where a version alone means several.
    """
    with using(device):
        found = [one for one in policy.offers() if name in ("", one.name) and version in ("", one.version)]
    if not found:
        what = f"{name} {version}".strip() or "an update"
        raise OperationNotPermitted(
            f"cannot answer: {what} is not on offer",
            hint="`otaflow check --explain` looks what there is, and why not now",
        )
    if content:
        return _find_same(found, content)
    titles = [offer.title() for offer in found]
    if version and not name and len(titles) > 1:
        raise OperationNotPermitted(
            f"cannot answer: {version} is on offer of several, {' and '.join(titles)}",
            hint=f"name the one that is meant: {' or '.join(f'`--name {offer.name}`' for offer in found)}",
        )
    return found[0]


def _find_same(found: list[Offer], content: str) -> Offer:
    """The one of them that has that content. Raises OperationNotPermitted."""
    for offer in found:
        if offer.content == content:
            return offer
    what = f"{found[0].title()} is" if len(found) == 1 else "what is on offer is"
    raise OperationNotPermitted(
        f"cannot answer: {what} another content now ({found[0].content[:16]}…), the answer is to {content[:16]}…",
        hint="ask the user anew: `otaflow consent` shows what is on offer now",
    )


def give(device: Device, offer: Offer, choice: str, *, by: str, through: Through) -> Answer:
    """Record the answer. Raises ConfigError for a window on a device that has none."""
    with using(device):
        return policy.memory().consents.answer(
            offer,
            Choice(choice),
            by=by,
            through=through,
            now=datetime.now(UTC),
            boots=device.boots.count(),
            days=device.config.policy.consent_days,
            windows=policy.windows(),
        )


def resume(device: Device, offer: Offer, choice: str) -> None:
    """Let the run that waits for the answer go on, where Prefect can be reached; else the next poll acts on it.

    A run announces several offers, and asks about one of them: only the answer to that one is for it.
    """
    run = waiting_run(device, offer)
    with using(device):
        if not run or policy.waits_for(run) != offer.content:
            return
    prepare_prefect(device)
    from otaflow.flows.waiting import resume

    resume(run, choice)


def withdraw(device: Device, offer: Offer) -> Answer | None:
    """Take the answer back; possible until the activation begins. Raises OperationNotPermitted after it."""
    with using(device):
        return policy.memory().consents.withdraw(offer.content)


def decisions(device: Device) -> list[Decision]:
    """What is on offer, and why not now, as of the last poll."""
    with using(device):
        return [policy.decide_now(offer) for offer in policy.offers()]


def waiting_run(device: Device, offer: Offer) -> str:
    """The flow run that waits for the answer; empty where none does."""
    with using(device):
        asked = policy.memory().consents.asked(offer.content, datetime.now(UTC))
    return asked.run if asked else ""


def asked_by(device: Device, run: str) -> list[Offer]:
    """What the flow run `run` waits for: the offer that it asked about, if it has not taken its form yet."""
    if not run:
        return []
    with using(device):
        content = policy.waits_for(run)
        return [
            offer
            for offer in policy.offers()
            if offer.content == content
            and waiting_run(device, offer) == run
            and not policy.is_taken(form_of(device, offer))
        ]


def asked_at(device: Device, offer: Offer) -> datetime:
    """When the offer was announced; now, where it was not."""
    now = datetime.now(UTC)
    with using(device):
        asked = policy.memory().consents.asked(offer.content, now)
    return asked.time if asked else now


def choice_of(device: Device, offer: Offer) -> str:
    """The answer to the offer that counts now; empty where none does."""
    now = datetime.now(UTC)
    with using(device):
        answer = policy.memory().consents.find(offer.content, now)
    return str(answer.choice) if answer and answer.holds(now) else ""


def form_of(device: Device, offer: Offer) -> str:
    """The key of the form that asks about this offer; another one each time that it is announced anew."""
    return f"consent-{offer.content[:16]}-{asked_at(device, offer):%Y%m%d%H%M%S}"


def take_form(device: Device, key: str) -> None:
    """The form's answer was taken: a run that is executed again must not take it twice."""
    with using(device):
        policy.take(key)


def wait_in(device: Device, offer: Offer, run: str) -> None:
    """Another run waits for the answer now."""
    with using(device):
        policy.memory().consents.hand_over(offer.content, run, datetime.now(UTC))
        policy.note_wait(run, offer.content)


def records(decisions: list[Decision]) -> list[dict[str, Any]]:
    """Decisions as plain data: for `--json` and for the interface."""
    return [
        {
            **decision.offer.record(),
            "verdict": str(decision.verdict),
            "reasons": [
                {"name": r.name, "text": r.text, "until": r.until.isoformat() if r.until else None}
                for r in decision.reasons
            ],
            "overrides": list(decision.overrides),
            "choices": [str(choice) for choice in decision.choices],
        }
        for decision in decisions
    ]
