"""The journal: what this device has begun, done and taken back, durable before and after each effect.

At boot the journal is the truth. Its records, in the order in which they may appear:

* `transition`: the UCM went from one state to another (`event`, `from`, `to`, and what else is known). The one into
  Processing carries the `action` that is processed from now on: one record, so that no power cut can part the two.
* `intent`: a step is about to change something; `memory` is what its undo needs.
* `done`, `undone`, `undo_failed`: what became of the intent with this `id`.
* `kept`: the session is committed; nothing of it can be undone any more.
* `note`: a fact that belongs to a session: the present one, or the one it names with `of` (the Prefect run's id, how
  many transitions Prefect was told). `phase_run` and `phase_ended` are the ids of the phases' runs there.

An intent is *open* until it is undone or kept. Only the process that holds the device's lock may append.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from otaflow.action import Action
from otaflow.records import Record, RecordFile
from otaflow.ucm.states import RESTING, State

log = logging.getLogger("otaflow.journal")

COMPACT_BYTES = 256 * 1024
"""A journal larger than this starts anew at the next Idle; the history keeps what is past."""
UNTOLD = 32
"""How many ended sessions, and phases, wait for Prefect to be told of them; of more, the oldest are forgotten."""


def now() -> str:
    """The present time, RFC 3339, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class Intent:
    """A step that began to change something, and what its undo needs."""

    id: str
    step: str
    phase: str
    action: int
    memory: dict[str, Any]
    done: bool = False
    undone: bool = False


@dataclass
class Session:
    """What the journal knows of the session that is going on (or of the last one, when Idle)."""

    id: str = ""
    actions: list[Action] = field(default_factory=list)
    processed: list[int] = field(default_factory=list)
    """The places in `actions` of those that were processed and are not reverted."""
    intents: dict[str, Intent] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    transitions: list[Record] = field(default_factory=list)
    undone_boots: int = -1
    """The boot counter when a step was last taken back."""
    kept: bool = False

    @property
    def current(self) -> int:
        """The place of the action that is, or was last, worked on."""
        return len(self.actions) - 1

    @property
    def shown(self) -> int:
        """How many transitions Prefect was told."""
        return int(self.notes.get("shown", 0))

    @property
    def behind(self) -> bool:
        """Whether there is a transition that Prefect was not told."""
        return self.shown < len(self.transitions)

    def place(self, action: Action) -> int:
        """Where `action` is in `actions`; of equal ones (a package is tried again) this very one, or the last."""
        places = range(len(self.actions))
        same = [place for place in places if self.actions[place] is action]
        return (same or [place for place in places if self.actions[place] == action])[-1]

    @property
    def unattended(self) -> bool:
        """Whether the session goes on by itself from Ready and Activated, as it does for the one-shot commands."""
        return any(transition.get("unattended") for transition in self.transitions)

    def boots_at(self, state: State, origin: State | None = None) -> int:
        """The boot counter when `state` was last entered from another one (from `origin`); -1 when it never was."""
        entries = [
            t["boots"]
            for t in self.transitions
            if t["to"] == state and (t["from"] == origin if origin else t["from"] != state)
        ]
        return entries[-1] if entries else -1


class Journal:
    """The journal file, and what it says."""

    def __init__(self, path: Path, boots: Callable[[], int] = lambda: 0) -> None:
        """Read `path`. Raises JournalCorrupt. A missing file is a device that never updated: Idle.

        `boots` gives the boot counter, which tells what happened before a restart from what happened after it.
        """
        self.file = RecordFile(path)
        self.boots = boots
        self._writing = threading.RLock()
        """An event of a client is recorded while a step of the worker records its own."""
        self.state = State.IDLE
        self.session = Session()
        self.former: deque[Session] = deque(maxlen=UNTOLD)
        """Sessions that ended before Prefect was told all of them."""
        self.phase_runs: deque[str] = deque(maxlen=UNTOLD)
        """The phases' runs whose end Prefect was not told."""
        self.phase = ""
        """The phase that is working; part of each intent, so that the same step may occur in two phases."""
        for record in self.file.read():
            self._apply(record)

    @property
    def needs_recovery(self) -> bool:
        """Whether a restart or a kill left something to be finished or taken back."""
        if self.state in RESTING:
            return self.state is not State.IDLE and self.session.unattended
        return True

    # --- writing: each returns when it is durable -----------------------------------------------------------------

    def transition(self, event: str, to: State, **facts: Any) -> Record:
        """Record that `event` led from the present state to `to`. Leaving Idle begins a session."""
        record = {
            "kind": "transition",
            "event": event,
            "from": self.state,
            "to": to,
            "time": now(),
            "boots": self.boots(),
        }
        record |= facts
        if self.state is State.IDLE and to is not State.IDLE:
            record["session"] = uuid4().hex[:12]
        self._append(record)
        if to is State.IDLE and not any(self.open_intents()):
            self._compact()
        return record

    def intend(self, step: str, key: str, memory: dict[str, Any]) -> Intent:
        """Record that `step` is about to act. The first memory wins: a retry gets the one that is open already."""
        open_intent = self.find_open(step, key)
        if open_intent:
            return open_intent
        number = len(self.session.intents)
        intent_id = f"{number}.{step}" + (f".{key}" if key else "")
        self._append(
            {
                "kind": "intent",
                "id": intent_id,
                "step": step,
                "phase": self.phase,
                "action": self.session.current,
                "memory": memory,
                "time": now(),
            }
        )
        return self.session.intents[intent_id]

    def finish(self, intent: Intent) -> None:
        """Record that the step did what it intended."""
        if not intent.done:
            self._append({"kind": "done", "id": intent.id})

    def undone(self, intent: Intent, *, counts: bool = True) -> None:
        """Record that the step is taken back; `counts`: the former system has to start after it."""
        self._append({"kind": "undone", "id": intent.id} | ({"boots": self.boots()} if counts else {}))

    def undo_failed(self, intent: Intent, error: str) -> None:
        """Record that the undo failed; the intent stays open."""
        self._append({"kind": "undo_failed", "id": intent.id, "error": error, "time": now()})

    def keep(self) -> None:
        """Record the commit: nothing of this session is undone from now on."""
        if not self.session.kept:
            self._append({"kind": "kept"})

    def note(self, durable: bool = True, **facts: Any) -> None:
        """Record facts of the session (of another one: `of`); a later one of the same name wins."""
        self._append({"kind": "note", **facts}, durable=durable)

    # --- reading --------------------------------------------------------------------------------------------------

    def open_intents(self, action: int | None = None) -> Iterator[Intent]:
        """The intents that an undo would have to take back, the newest first; of one action, or of all."""
        for intent in reversed(self.session.intents.values()):
            if not intent.undone and not self.session.kept and action in (None, intent.action):
                yield intent

    def find_open(self, step: str, key: str = "") -> Intent | None:
        """The open intent of `step` (and `key`) in the present phase and action, if there is one."""
        suffix = f".{step}" + (f".{key}" if key else "")
        for intent in self.open_intents(self.session.current):
            if intent.step == step and intent.phase == self.phase and intent.id.partition(".")[2] == suffix[1:]:
                return intent
        return None

    def is_done(self, step: str, key: str = "") -> bool:
        """Whether an open intent of `step` (and `key`) is recorded as done in this session."""
        suffix = f"{step}.{key}" if key else ""
        return any(
            intent.done
            for intent in self.open_intents()
            if intent.step == step and (not key or intent.id.partition(".")[2] == suffix)
        )

    def untold(self) -> list[Session]:
        """The sessions that Prefect was not told to the end of what happened, the oldest first."""
        return [session for session in [*self.former, self.session] if session.behind]

    # --- inside ---------------------------------------------------------------------------------------------------

    def _append(self, record: Record, *, durable: bool = True) -> None:
        with self._writing:
            self.file.append(record, durable=durable)
            self._apply(record)

    def _apply(self, record: Record) -> None:
        session = self.session
        match record["kind"]:
            case "transition":
                if "session" in record:
                    self._put_aside(session)
                    self.session = session = Session(id=record["session"])
                self.state = State(record["to"])
                session.transitions.append(record)
                if "action" in record:
                    session.actions.append(Action.from_record(record["action"]))
                if record["event"] == "$Success ProcessSwPackage":
                    session.processed.append(session.current)
            case "intent":
                fields = {name: record[name] for name in ("id", "step", "phase", "action", "memory")}
                session.intents[record["id"]] = Intent(**fields)
            case "done":
                session.intents[record["id"]].done = True
            case "undone":
                session.intents[record["id"]].undone = True
                session.undone_boots = record.get("boots", session.undone_boots)
            case "kept":
                session.kept = True
            case "note":
                self._note(record)

    def _note(self, record: Record) -> None:
        facts = {key: value for key, value in record.items() if key not in ("kind", "of")}
        of = record.get("of", self.session.id)
        for session in [*self.former, self.session]:
            if session.id == of:
                session.notes |= facts
        for told in [one for one in self.former if not one.behind]:
            self.former.remove(told)
        if "phase_run" in facts:
            self.phase_runs.append(facts["phase_run"])
        if facts.get("phase_ended") in self.phase_runs:
            self.phase_runs.remove(facts["phase_ended"])

    def _put_aside(self, session: Session) -> None:
        """A new session begins: keep of the former one what Prefect is still to be told."""
        if session.behind:
            session.intents = {}
            self.former.append(session)

    def _compact(self) -> None:
        """At Idle nothing is open: start a grown journal anew with what is still needed of it."""
        with self._writing:
            if self.file.path.stat().st_size > COMPACT_BYTES:
                kept = [record for session in [*self.former, self.session] for record in _essence(session)]
                try:
                    self.file.replace([*kept, *({"kind": "note", "phase_run": run} for run in self.phase_runs)])
                except OSError as error:  # the session has ended, and is on the disk: nobody is told otherwise
                    log.warning("the journal stays as long as it is until the next session's end: %s", error)


def _essence(session: Session) -> Iterator[Record]:
    """What is needed of an ended session: how it went, as Prefect is told it."""
    first, *others = ({name: value for name, value in t.items() if name != "checks"} for t in session.transitions)
    yield first | {"session": session.id}
    yield from others
    notes = {name: value for name, value in session.notes.items() if not name.startswith("phase_")}
    if notes:
        yield {"kind": "note"} | notes
    if session.kept:
        yield {"kind": "kept"}
