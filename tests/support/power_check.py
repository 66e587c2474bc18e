"""The invariants of docs/reliability.md, as one function: what must hold on whatever a power cut leaves.

First the disk is looked at as the boot loader finds it; then the device starts as the unit files have it start, and is
looked at again.
"""

import contextlib
import shutil
import sqlite3
import tempfile
import zlib
from pathlib import Path
from typing import Any

from power_stories import (
    Beside,
    Facts,
    Story,
    client_calls,
    outcome,
    plain,
    prefect_home,
    quicken,
    resolutions,
    survey,
    telling_prefect,
)
from power_stories import start as start_machine
from power_transfer import look_at_transfers
from without_journal import Seen, unlike

from otaflow import history
from otaflow.action import Action
from otaflow.errors import OtaflowError
from otaflow.platform.describe import tree_digest
from otaflow.platform.device import Device
from otaflow.platform.labels import read_label
from otaflow.records import read

NEW, OLD = "new", "old"


def check(story: Story, world: Any, facts: Facts, moment: int, seen: Seen, *, tells: bool = False) -> list[str]:
    """What is wrong with the device after a power cut when the log was `moment` long; empty where nothing is.

    `seen`: the slots as a boot loader finds them, where that sees less than Linux.

    `tells`: also whether a server of Prefect's that starts on what is left of its database can be told all of it.
    """
    if "transfer" in story.calls:
        return look_at_transfers(world.device(), facts["marks"], moment)
    wrong = look_before(world, facts, moment, seen)
    if story.in_prefect:
        wrong += look_at_database(prefect_home(world) / "prefect.db")
    if any(one.startswith(("boot target", "journal")) for one in wrong):
        return wrong  # nothing can start from this
    allowed = [end for end in (NEW, OLD) if end in allowed_ends(story, facts, moment)]
    try:
        start(story, world, facts)
    except Exception as error:
        return [*wrong, f"start: {type(error).__name__}: {error}"]
    wrong += look_after(story, world, facts, allowed)
    return wrong + (look_at_prefect(world) if story.in_prefect and tells else [])


# --- as the boot loader finds it --------------------------------------------------------------------------------------


def look_before(world: Any, facts: Facts, moment: int, seen: Seen) -> list[str]:
    """The boot target, the slot that ran, the journal and the history, before anything has started."""
    wrong = []
    device = world.device()
    try:
        target, promise = device.boot.target(), device.boot.promise()
        generation = read_label(device.slots.path(target)).generation
        if generation != promise:
            wrong.append(f"boot target: slot {target} holds another generation than the promised one")
        elif facts["contents"].get(generation) != tree_digest(device.slots.path(target), times=True):
            wrong.append(f"boot target: the content of slot {target} is not the one of its generation")
        elif target in seen and (places := unlike(seen[target], device.slots.path(target))):
            wrong.append(f"boot target: in slot {target} the boot loader does not find {places}")
    except (OtaflowError, OSError) as error:
        wrong.append(f"boot target: {error}")
    running = device.slots.path(facts["running"])
    if tree_digest(running, times=True) != facts["running content"]:
        wrong.append(f"running slot: the content of {running.name} is touched")
    return wrong + look_at_records(world, facts, moment)


def look_at_records(world: Any, facts: Facts, moment: int) -> list[str]:
    """What the journal said at a passed mark, it says."""
    wrong = []
    try:
        read(world.root / "nvm/journal")
        world.device().history.read()
    except (OtaflowError, OSError) as error:
        return [f"journal or history: {error}"]
    passed = [mark for mark in facts["marks"] if mark["at"] <= moment]
    journals = [mark for mark in passed if "journal" in mark]
    if journals:
        length, checksum = journals[-1]["journal"]
        content = (world.root / "nvm/journal").read_bytes()
        if zlib.crc32(content[:length]) != checksum:
            wrong.append(f"acknowledged: the journal lost what it said at {journals[-1]['name']}")
    rows = [mark["rows"] for mark in passed if "rows" in mark]
    if rows:
        wrong += Beside(world.folder).look(rows[-1])
    if passed and passed[-1]["name"] == "?answered" and resolutions(world, facts) != passed[-1]["resolutions"]:
        wrong.append("acknowledged: the history lost the end that was answered")
    return wrong


def look_at_database(path: Path) -> list[str]:
    """Whether Prefect's database is whole; with `synchronous = NORMAL` it may have lost its last commits.

    A copy is looked at: the server is to find what the power cut left.
    """
    with tempfile.TemporaryDirectory(prefix="otaflow-test-") as folder:
        for part in path.parent.glob(f"{path.name}*"):
            shutil.copy(part, folder)
        try:
            with contextlib.closing(sqlite3.connect(f"file:{folder}/{path.name}?mode=rw", uri=True)) as database:
                said = database.execute("PRAGMA integrity_check").fetchone()[0]
                database.execute("SELECT count(*) FROM flow_run").fetchone()
        except sqlite3.Error as error:
            said = f"{type(error).__name__}: {error}"
    return [f"{path.name} is damaged: {said}"] if said != "ok" else []


def look_at_prefect(world: Any) -> list[str]:
    """Whether Prefect learns what it does not know: its server starts, and nothing is seen as running for ever.

    A command gives a slow server some seconds, and leaves the rest to the next one: there are three.
    """
    wrong: list[str] = []
    for _ in range(3):
        try:
            with telling_prefect(world):
                pass
        except Exception as error:
            return [f"Prefect: {type(error).__name__}: {error}"]
        if not (wrong := find_untold(world)):
            break
    return wrong


def find_untold(world: Any) -> list[str]:
    """What Prefect does not know, or shows as running although the device is Idle."""
    if untold := len(world.device().journal.untold()):
        return [f"Prefect: {untold} sessions are not told to their ends"]
    with contextlib.closing(sqlite3.connect(prefect_home(world) / "prefect.db")) as database:
        ended = "('COMPLETED', 'CANCELLED', 'FAILED', 'CRASHED')"
        runs = f"SELECT name, state_name FROM flow_run WHERE state_type NOT IN {ended}"
        return [f"Prefect: {name} is {state} for ever" for name, state in database.execute(runs)]


# --- as it goes on ----------------------------------------------------------------------------------------------------


def allowed_ends(story: Story, facts: Facts, moment: int) -> set[str]:
    """The old device, the new one, or either where the decision was being made."""
    if "allowed" in facts:  # the second cut of two: the first one has said it
        return set(facts["allowed"])
    if not story.turn:
        return {NEW} if "retention" in story.calls else {OLD}
    places = {mark["name"]: mark["at"] for mark in reversed(facts["marks"])}
    transition = story.turn.startswith("$")
    before = f"{story.turn} Processing.before" if transition else f"{story.turn}.before"
    done = f"{story.turn} Processing.after" if transition else f"{story.turn}.done"
    ends = set()
    if moment <= places.get(done, float("inf")) and moment != places.get(done):
        ends.add(OLD)
    if moment > places.get(before, float("inf")):
        ends.add(NEW)
    return ends


def start(story: Story, world: Any, facts: Facts) -> None:
    """otaflow-recover.service, then otaflow-resume.service; a client goes on with its calls."""
    quicken()
    start_machine(world)
    if story.calls:
        _go_on_as_client(story, world, facts)


def _go_on_as_client(story: Story, world: Any, facts: Facts) -> None:
    actions = [Action(**action) for action in facts["actions"]]
    with world.ucm() as ucm:
        if "retention" in story.calls:
            client_calls(ucm, "retention", actions)
            return
        if ucm.state == "Verifying":
            with contextlib.suppress(OtaflowError):
                ucm.verify()
        for state, calls in AFTER:
            if ucm.state == state:
                call = next((call for call in calls if call in story.calls), "")
                if call:
                    client_calls(ucm, call, actions)


AFTER = (
    ("Ready", ("revert", "activate")),
    ("Verifying", ("verify",)),
    ("Activated", ("rollback", "finish")),
    ("Rolled-back", ("finish",)),
)
"""What a client calls in each state, the first of these that its story has."""


def look_after(story: Story, world: Any, facts: Facts, allowed: list[str]) -> list[str]:
    """The device is the old one or the new one, wholly; its state, journal and history agree; nothing is left over."""
    device = world.device()
    if device.journal.state != "Idle":
        return [f"state: {device.journal.state}, not Idle"]
    wrong = [f"state: {intent.id} is still open" for intent in device.journal.open_intents()]
    old = differences(facts["before"], plain(survey(world)))
    new = differences(facts["after"], plain(outcome(story, world))) if facts["after"] is not None else {"?": ("", "")}
    unlike = {OLD: old, NEW: new}
    found = [end for end in (OLD, NEW) if not unlike[end]]
    if not set(found) & set(allowed):
        nearer = min((unlike[end] for end in allowed), key=len)
        is_other = f", but the {found[0]} one" if found else ""
        wrong.append(f"it is not the {' or '.join(allowed)} device{is_other}: {str(nearer)[:600]}")
    if found and device.boot.target() != device.boot.running():
        wrong.append("boot target: another slot runs than starts next")
    wrong += look_at_history(story, world, facts, found)
    return wrong + (look_at_next_copy(device) if world.kind == "ostree" else [])


def look_at_next_copy(device: Device) -> list[str]:
    """Whether the next update's copy is right, whatever is left of the repository that it goes by."""
    running, spare = device.boot.running(), device.spare()
    try:
        device.slots.copy(running, spare, "next")
    except (OtaflowError, OSError) as error:
        return [f"the next copy: {error}"]
    contents = [tree_digest(device.slots.path(slot), times=True) for slot in (running, spare)]
    return [] if contents[0] == contents[1] else ["the next copy: it is not like the running slot"]


def look_at_history(story: Story, world: Any, facts: Facts, found: list[str]) -> list[str]:
    """One end for each action of a session that began, and the right one."""
    device = world.device()
    ends = resolutions(world, facts)
    began = device.journal.session.id != facts["session"]
    actions = facts["actions"] if began else []
    if "retention" in story.calls or "revert" in story.calls or "rollback" in story.calls:
        return []
    known = [len(device.journal.session.actions)] if began else [0]
    if len(ends) not in known:
        return [f"history: {ends} for {len(actions)} actions"]
    good = [end == history.ACTIVATED for end in ends]
    if ends and found == [NEW] and not all(good):
        return [f"history: {ends}, and the device is the new one"]
    if ends and found == [OLD] and any(good):
        return [f"history: {ends}, and the device is the old one"]
    return []


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What is not the same; of lists, what only one of them has."""
    names = one.keys() | other.keys()
    pairs = {name: (one.get(name), other.get(name)) for name in sorted(names)}
    return {name: _rest(*pair) for name, pair in pairs.items() if pair[0] != pair[1]}


def _rest(one: Any, other: Any) -> tuple[Any, Any]:
    if name_lists := isinstance(one, list) and isinstance(other, list):
        rest = [item for item in one if item not in other], [item for item in other if item not in one]
    return rest if name_lists and any(rest) else (one, other)
