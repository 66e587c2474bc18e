"""The boxes of the S16 chart that decide, tell and wait, and what the policy remembers of them (`nvm/policy`).

People are told over apprise, applications through their inbox, Prefect by events. Nobody who cannot be reached keeps an
update from going on.
"""

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from otaflow import history
from otaflow.action import NAMES
from otaflow.errors import OperationNotPermitted
from otaflow.platform.device import Device, device
from otaflow.policy import notices, words
from otaflow.policy.decide import Decision, Verdict
from otaflow.policy.due import Last
from otaflow.policy.failures import WAYS_BACK, nameless
from otaflow.policy.failures import Kind as FailureKind
from otaflow.policy.inbox import Kind
from otaflow.policy.memory import Memory
from otaflow.policy.moments import as_moment, as_text
from otaflow.policy.offer import Offer
from otaflow.policy.store import Store
from otaflow.policy.windows import Window, Windows
from otaflow.records import Record
from otaflow.repo.choice import Target
from otaflow.tasks.question import question
from otaflow.tasks.step import step

log = logging.getLogger("otaflow.policy")

KEPT_OFFERS = 32
Install = Callable[[Target, str, Callable[[], None]], None]
"""Installs a target from its package file, as a client of the UCM; calls the third before it activates."""


# --- what is remembered -----------------------------------------------------------------------------------------------


def memory() -> Memory:
    """What the policy remembers of the device."""
    return Memory(device().nvm, device().config.notices.inbox_size)


def windows() -> Windows:
    """The device's maintenance windows."""
    return Windows(Window(one.cron, one.zone, one.minutes) for one in device().config.policy.windows)


def offer_of(target: Target) -> Offer:
    """What the user is offered: the signed package, by its content."""
    return Offer(
        name=target.name,
        version=target.version,
        content=target.hashes["sha256"],
        update_number=target.update_number,
        bytes=target.length,
        priority=target.priority,
        description=target.description,
        kind=target.kind,
        irreversible=target.irreversible,
        irreversible_data=", ".join(target.irreversible_data),
    )


def decide_now(offer: Offer) -> Decision:
    """Whether `offer` may be installed now, and why not."""
    return memory().decide(
        offer, windows=windows(), now=datetime.now(UTC), boots=device().boots.count(), rules=device().config.policy
    )


def find_avoided() -> set[str]:
    """The contents that failed here and are left alone for now, or that the user refused."""
    offered = [Offer.from_record(record) for record in _told().read().get("offers", {}).values()]
    decisions = [decide_now(offer) for offer in offered]
    return {
        one.offer.content for one in decisions if any(reason.name in ("failed", "refused") for reason in one.reasons)
    }


def take_pointless_runs() -> list[str]:
    """The flow runs that wait for an answer nobody needs any more; each is given out once."""
    if "over" not in _told().read():
        return []
    with _told().changing() as told:
        runs: list[str] = told.pop("over", {"runs": []})["runs"]
    return runs


def offers() -> list[Offer]:
    """What was found at the last poll and is not installed, in the order in which it would be."""
    stored = _told().read()
    found = stored.get("offers", {})
    return [
        Offer.from_record(found[content]) for content in stored.get("open", {}).get("contents", []) if content in found
    ]


def last_poll(which: Device) -> Last | None:
    """When the device was polled last, and at which boot counter; None where it never was."""
    poll = Store(which.nvm / "policy" / "told").read().get("poll", {})
    if not poll.get("time"):
        return None
    return Last(as_moment(poll["time"]), int(poll.get("boots", which.boots.count())))


# --- diamonds ---------------------------------------------------------------------------------------------------------


@question("new packages available")
def are_packages_new(targets: list[Target]) -> bool:
    """Whether there is anything to install."""
    return bool(targets)


@question("priority update")
def is_priority_update(offer: Offer) -> bool:
    """Whether the update waits for nobody."""
    return offer.priority


@question("has user consented for diagnostic data")
def has_consented_to_diagnostics() -> bool:
    """Whether the user agreed that diagnostic data is sent. Nobody who never answered has."""
    return bool(Store(device().nvm / "policy" / "diagnostics").read().get("consent", {}).get("given", False))


# --- boxes ------------------------------------------------------------------------------------------------------------


@step("look at what ended")
def look_at_what_ended() -> list[str]:
    """Tell of every update that ended since the last look, whoever began it, and remember the failures."""
    records = device().history.mend()
    now = datetime.now(UTC)
    texts = []
    with _told().changing() as told:
        first = "told" not in told
        known = told.setdefault("told", {"count": 0})
        told["poll"] = {"time": as_text(now), "boots": device().boots.count()}
        for record in records[history.find_unknown(records, known) :]:
            content = _content_of(told, record)
            # A board without a clock of its own writes 1970: what is seen for the first time counts as of now.
            memory().failures.learn(record, now, content, as_recorded=first)
            if record["resolution"] == history.ACTIVATED or record["action"] in WAYS_BACK:
                _forget(told, content)
            if not first and (record.get("session") or record["action"] == history.BOOT):
                texts.append(_post_end(record))
        known |= history.place_of(records)
    _notify(texts)
    return texts


@step("notify the user that updates are available")
def notify_user(found: list[Offer], run: str) -> list[str]:
    """Announce what was not announced before; returns the texts. `run` is the flow run that does it."""
    now = datetime.now(UTC)
    texts = []
    with _told().changing() as told:
        known = told.setdefault("offers", {})
        _open(told, found)
        for offer in found:
            known.pop(offer.content, None)  # the newest last
            known[offer.content] = offer.record()
            if memory().consents.announce(offer.content, run, now):
                text = words.available(offer, decide_now(offer).verdict)
                _post(Kind.AVAILABLE, offer.name, offer.version, text, content=offer.content, priority=offer.priority)
                _emit("available", offer.name, offer.version, text)
                texts.append(text)
        for content in list(known)[:-KEPT_OFFERS]:
            del known[content]
    _notify(texts)
    return texts


@step("wait for user to initiate update")
def wait_for_user(lines: list[str]) -> str:
    """Say what is waited for. The wait itself needs no process: the run is suspended, or the next poll looks again."""
    for line in lines:
        log.info("%s", line)
    return "\n".join(lines)


@step("update packages")
def update_packages(install: Install, target: Target, package: str, decision: Decision) -> None:
    """Have the UCM install it: transfer, process, activate, verify, finish. Raises what it failed with."""
    offer = decision.offer
    for override in decision.overrides:
        log.warning("%s goes ahead: %s", offer.title(), override)
    text = words.installing(offer)
    _post(Kind.INSTALLING, offer.name, offer.version, text)
    _emit("installing", offer.name, offer.version, text)
    install(target, package, lambda: _decide_again(decision))


@step("log success / message to app")
def log_success(offer: Offer) -> str:
    """It is in place."""
    look_at_what_ended.do()
    text = words.done(offer.name, offer.version)
    log.info("%s", text)
    return text


@step("error log / message to app")
def log_error(name: str, version: str, error: str, why: str) -> str:
    """What failed and why. The same trouble is told once, until something else happens."""
    ended = look_at_what_ended.do()
    text = words.failed(name, version, why) if version else f"The search for updates failed: {why}"
    log.error("%s", text)
    with _told().changing() as told:
        trouble = {"error": error, "name": name}
        known = told.get("trouble") == trouble
        told["trouble"] = trouble
    if not known and not ended:
        _post(Kind.FAILED, name, version, text, error=error)
        _emit("failed", name, version, text)
        _notify([text])
    return text


@step("send diagnostic data")
def send_diagnostic_data(source: str) -> str:
    """Collect, strip, spool, and send what is spooled; says what became of it. To be offline loses nothing."""
    from otaflow.diagnostics import send

    return send(device(), source)


def request_close(name: str, version: str, seconds: float, defer_seconds: float) -> int:
    """Ask an application to close: in its inbox, to people, as an event. The message's id; 0 where none was possible.

    `seconds` is how long it has; `defer_seconds` by how much that can be put off at a time, 0 where it cannot.
    """
    text = words.close_requested(name, version)
    message = _post(Kind.CLOSE_REQUESTED, name, version, text, seconds=seconds, defer_seconds=defer_seconds)
    _emit("close-requested", name, version, text)
    _notify([text])
    return message


def tell_of_poll(ended: str) -> None:
    """A poll is over, well or not: an automation listens whether there are any."""
    _emit_event("poll.ended", {"ended": ended})


def note_wait(run: str, content: str) -> None:
    """Remember which of the offers the flow run `run` asks about now."""
    with _told().changing() as told:
        waits = {one: what for one, what in told.get("waits", {}).get("runs", {}).items() if one != run}
        told["waits"] = {"runs": dict([*waits.items()][-KEPT_OFFERS:]) | {run: content}}


def waits_for(run: str) -> str:
    """The content of the offer that the run asked about last; empty where it asked about none."""
    return str(_told().read().get("waits", {}).get("runs", {}).get(run, ""))


def is_taken(key: str) -> bool:
    """Whether the answer in that form was taken."""
    return key in _told().read().get("taken", {}).get("keys", [])


def take(key: str) -> None:
    """Remember that it was."""
    with _told().changing() as told:
        keys = told.get("taken", {}).get("keys", [])
        told["taken"] = {"keys": [*keys[-KEPT_OFFERS:], key]}


def close_offers() -> None:
    """Nothing is offered any more: nobody is asked about what was."""
    if _told().read().get("open", {}).get("contents"):
        with _told().changing() as told:
            _open(told, [])


def forget_trouble() -> None:
    """A poll went well: the next trouble is news again."""
    if "trouble" in _told().read():
        with _told().changing() as told:
            told.pop("trouble", None)


def note_refusal(offer: Offer, why: str, since: datetime) -> None:
    """What was refused before its session began is in no history: it is left alone for a while, too."""
    known = memory().failures.find(offer.content, since)
    if known is None or known.time < since:
        memory().failures.add(offer.content, offer.name, offer.version, FailureKind.FETCHING, why, datetime.now(UTC))


# --- inside -----------------------------------------------------------------------------------------------------------


def _told() -> Store:
    """What was found and told: `offers` by content, the `open` ones, `told` records of the history, the last `trouble`,
    and the runs whose question is `over`."""
    return Store(device().nvm / "policy" / "told")


def _forget(told: Record, content: str) -> None:
    """What is in place, or not offered any more, needs no answer: the run that waits for one has no sense."""
    asked = memory().consents.asked(content, datetime.now(UTC))
    if asked and asked.run:
        told.setdefault("over", {"runs": []})["runs"].append(asked.run)
    memory().consents.forget(content)
    told["open"] = {"contents": [one for one in told.get("open", {}).get("contents", []) if one != content]}


def _open(told: Record, found: list[Offer]) -> None:
    """These are on offer now, and nothing else."""
    for asked in memory().consents.announcements():
        if asked.content not in {offer.content for offer in found}:
            _forget(told, asked.content)
    told["open"] = {"contents": [offer.content for offer in found]}


def _content_of(told: Record, record: Record) -> str:
    """The content that a record of the history is about: that of the newest offer of this name and version.

    What no poll has announced has none: name and version stand for it.
    """
    version = record.get("from_version") if record["action"] in WAYS_BACK else record["version"]
    for content, offer in reversed(told.get("offers", {}).items()):
        if (offer["name"], offer["version"]) == (record["name"], version):
            return str(content)
    return nameless(record["name"], str(version))


def _post_end(record: Record) -> str:
    """Tell the applications how an action ended; the text for people."""
    name, version, why = record["name"], record["version"], record.get("why", "")
    resolution = record["resolution"]
    if record["action"] == history.BOOT:
        kind, text = Kind.ROLLED_BACK, words.fell_back(why)
    elif resolution == history.ACTIVATED and record["action"] == NAMES["remove"]:
        kind, text = Kind.DONE, words.removed(name, version)
    elif resolution == history.ACTIVATED:
        kind, text = Kind.DONE, words.done(name, version)
    elif resolution == history.FAILED:
        kind, text = Kind.FAILED, words.failed(name, version, why)
    else:
        kind = Kind.ROLLED_BACK
        system = device().running_system()
        runs = device().applications.versions().get(name) or (system.version if name == system.name else "")
        text = words.rolled_back(name, version, why, runs=runs if runs != version else "")
    _post(kind, name, version, text, session=record.get("session", ""))
    _emit(str(kind), name, version, text)
    return text


def _decide_again(decision: Decision) -> None:
    """The activation begins: is it still allowed? From here the answer cannot be taken back.

    Raises OperationNotPermitted where the answer was taken back or changed, or a failure is known by now. A window is
    when an update may begin: that it has closed meanwhile is no reason.
    """
    again = decide_now(decision.offer)
    reasons = {reason.name for reason in again.reasons}
    began_in_window = decision.reasons[0].name == "window" and reasons == {"window"}
    if again.verdict is not Verdict.INSTALL and not began_in_window:
        raise OperationNotPermitted(
            f"cannot activate {decision.offer.title()}: {'; '.join(reason.text for reason in again.reasons)}",
            hint="`otaflow consent` shows what is on offer, and answers",
        )
    memory().consents.use(decision.offer.content, datetime.now(UTC))


def _post(kind: Kind, name: str, version: str, text: str, **facts: Any) -> int:
    """A message to the applications, and its id; a disk that is full keeps no update from going on (0)."""
    try:
        return memory().inbox.post(kind, name, version, text, now=datetime.now(UTC), **facts).id
    except OSError as error:
        log.error("cannot tell the applications: %s: %s", text, error)  # noqa: TRY400
        return 0


def _notify(texts: list[str]) -> None:
    settings = device().config.notices
    if texts and settings.urls:
        notices.send(texts, settings.urls, timeout=settings.timeout_seconds)


def _emit(what: str, name: str, version: str, text: str) -> None:
    """What an update came to."""
    _emit_event(f"update.{what}", {"package": name, "version": version, "text": text})


def _emit_event(what: str, payload: dict[str, Any]) -> None:
    """An event of Prefect's about the device, where this runs in Prefect: automations listen to it."""
    if "prefect.context" not in sys.modules:
        return
    from prefect.context import FlowRunContext, TaskRunContext
    from prefect.events import emit_event

    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    device_name = device().config.device.name
    emit_event(
        f"otaflow.{what}",
        resource={"prefect.resource.id": f"otaflow.device.{device_name}", "prefect.resource.name": device_name},
        payload=payload,
    )
