"""Random calls of several clients, one after the other and at once, against a model made of the table.

The model knows what each call answers and where it leads; after calls at once it asks the device where they led, and
holds every transition on the way against the table.
"""

import itertools
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from agent_rig import KINDS_OF_PACKAGE, SECONDS, Signed, in_thread, running
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from update_world import World

from otaflow import errors
from otaflow.errors import UcmError
from otaflow.package.versions import newer
from otaflow.ucm.states import State
from otaflow.ucm.table import CLIENT_EVENTS, TABLE

METHODS = [event.removeprefix("<") for event in CLIENT_EVENTS]
KINDS = ("good", "next", "sick", "needy", "failing", "foreign", "distant")
AT_ONCE = {"OperationNotPermitted", "ServiceBusy"}
REST = ("Idle", "Ready", "Activated", "Rolled-back")
REFUSED = {
    "foreign": "InvalidManifest",
    "distant": "IncompatibleDelta",
    "failing": "ProcessedSoftwarePackageInconsistent",
}
OWN = {
    "ProcessSwPackage": {"InvalidTransferId", "OldVersion", "ProcessSwPackageCancelled", *REFUSED.values()},
    "Activate": {"MissingDependencies"},
    "Cancel": {"InvalidTransferId", "CancelFailed"},
    "Rollback": {"NotAbleToRollback"},
    "RevertProcessedSwPackages": {"NotAbleToRevertPackages"},
    "Finish": set[str](),
}
"""With what a call may be refused beside what the table answers at once."""
LEADING = {
    "Idle": ["ProcessSwPackage"],
    "Ready": ["Activate", "Activate", "ProcessSwPackage", "RevertProcessedSwPackages"],
    "Activated": ["Finish", "Rollback"],
    "Rolled-back": ["Finish"],
}
"""The calls that lead on from where the device rests: as likely as all others together."""
kinds = st.sampled_from(KINDS)
any_call = st.tuples(st.sampled_from(METHODS), st.sampled_from([*KINDS, "unknown"]))


class Device(RuleBasedStateMachine):
    """One device with an agent; the model: state, installed version, what is transferred, what is processed.

    No rule has a precondition: after calls at once the state is chance, and what is drawn must not depend on chance.
    """

    worlds: Any
    signed: Signed

    @initialize()
    def begin(self) -> None:
        self.opened = ExitStack()
        self.rig = self.opened.enter_context(running(next(self.worlds), self.signed))
        self.state, self.installed = "Idle", "1.1.0"
        self.ids = {kind: self.rig.upload(kind) for kind in KINDS}
        self.processed: list[str] = []
        self.taken: list[tuple[str, str, str]] = []
        journal = self.rig.agent.ucm.journal
        transition = journal.transition

        def watched(event: str, to: State, **facts: Any) -> Any:
            self.taken.append((str(journal.state), event, str(to)))
            return transition(event, to, **facts)

        journal.transition = watched  # type: ignore[method-assign]

    def teardown(self) -> None:
        """The device is still one that can be brought to Idle."""
        with self.opened:
            if self.state == "Ready":
                self.rig.client.revert_processed_sw_packages()
            elif self.state == "Activated":
                self.rig.client.rollback()
            if self.rig.state == "Rolled-back":
                self.rig.client.finish()
            assert self.rig.state == "Idle"

    # --- rules ----------------------------------------------------------------------------------------------------

    @rule(choice=st.integers(0, 3), kind=kinds)
    def lead_on(self, choice: int, kind: str) -> None:
        self.call_alone(self.leading(choice), kind)

    @rule(call=any_call)
    def call_any(self, call: tuple[str, str]) -> None:
        self.call_alone(*call)

    @rule(choice=st.integers(0, 3), kind=kinds, others=st.lists(any_call, min_size=1, max_size=3))
    def call_at_once(self, choice: int, kind: str, others: list[tuple[str, str]]) -> None:
        """Each by a client of its own; none is answered with what it cannot be answered with, none gets lost."""
        self.call_together([(self.leading(choice), kind), *others])

    @rule(kind=kinds)
    def cancel_at_once(self, kind: str) -> None:
        """Cancel what is being processed; who comes first is chance."""
        self.call_together([("ProcessSwPackage", kind), ("Cancel", kind), ("ProcessSwPackage", "unknown")])

    @rule(kind=kinds)
    def transfer(self, kind: str) -> None:
        """What was installed once cannot come again."""
        if kind in self.ids:
            return
        with pytest.raises(errors.OldVersion):
            self.rig.upload(kind)

    # --- the calls ------------------------------------------------------------------------------------------------

    def leading(self, choice: int) -> str:
        methods = LEADING[self.state]
        return methods[choice % len(methods)]

    def call_alone(self, method: str, kind: str) -> None:
        """Its answer and what follows are known beforehand."""
        begun = len(self.taken)
        answer, following = self.foresee(method, kind)
        assert self.ask(method, kind) == answer, (method, kind)
        self.state = self.rig.wait_for(*REST)
        assert self.state == following, (method, kind)
        assert (len(self.taken) > begun) == (answer not in AT_ONCE)
        self.note(method, kind, answer)

    def call_together(self, drawn: list[tuple[str, str]]) -> None:
        begun = len(self.taken)
        start = threading.Barrier(len(drawn))

        def ask(method: str, kind: str) -> str:
            start.wait(SECONDS)
            return self.ask(method, kind)

        pending = [(method, in_thread(ask, method, kind)) for method, kind in drawn]
        answers = [(method, answer.result(2 * SECONDS)) for method, answer in pending]
        self.look()
        for method, answer in answers:
            assert answer in {"", *AT_ONCE, *OWN[method]}, (method, answer)
        for method in set(METHODS) - {"Cancel"}:
            accepted = sum(1 for called, answer in answers if called == method and answer not in AT_ONCE)
            assert accepted == sum(1 for _, event, _ in self.taken[begun:] if event == f"<{method}"), method

    # --- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def in_the_table(self) -> None:
        """Every transition is a line of the table, and begins where the one before ended."""
        for before, after in itertools.pairwise([("", "", "Idle"), *self.taken]):
            assert before[2] == after[0]
        for origin, event, to in self.taken:
            row = TABLE[State(origin), event]
            assert State(to) in row.next, (origin, event, to)
            assert not (event.startswith("<") and row.error), (origin, event, to)

    @invariant()
    def as_the_model(self) -> None:
        assert self.rig.state == self.state
        packages = {package["id"]: package["state"] for package in self.rig.client.get_sw_packages()}
        expected = {id: "kProcessed" if kind in self.processed else "kTransferred" for kind, id in self.ids.items()}
        assert packages == expected
        installed = self.processed[-1:] if self.state == "Activated" else []
        [cluster] = [c for c in self.rig.client.get_sw_cluster_info() if c["name"] == "demo-system"]
        assert cluster["version"] == (version(installed[0]) if installed else self.installed)

    # --- the model --------------------------------------------------------------------------------------------------

    def ask(self, method: str, kind: str) -> str:
        """Call; the name of the error, or nothing."""
        fields = {"id": self.ids.get(kind, "unknown")} if method in ("ProcessSwPackage", "Cancel") else {}
        with self.rig.another_client() as client:
            try:
                client.call(method, **fields)
            except UcmError as error:
                return error.name
        return ""

    def foresee(self, method: str, kind: str) -> tuple[str, str]:
        """What a single call at rest answers, and the state of rest that follows."""
        row = TABLE[State(self.state), f"<{method}"]
        if row.error:
            return row.error, self.state
        match method:
            case "ProcessSwPackage":
                error = self.refusal(kind)
                return error, "Ready" if self.processed or not error else "Idle"
            case "Activate" if "needy" in self.processed:
                return "MissingDependencies", "Ready"
            case "Activate":
                return "", "Rolled-back" if "sick" in self.processed else "Activated"
            case "Rollback":
                return "", "Rolled-back"
        return "", "Idle"

    def refusal(self, kind: str) -> str:
        """With what Processing refuses the package; nothing where it is processed."""
        if kind not in self.ids or kind in self.processed:
            return "InvalidTransferId"
        base = version(self.processed[-1]) if self.processed else self.installed
        if kind != "foreign" and not newer(version(kind), base):
            return "OldVersion"
        return REFUSED.get(kind, "")

    def note(self, method: str, kind: str, answer: str) -> None:
        """What the call changed."""
        if answer:
            return
        if method == "ProcessSwPackage":
            self.processed.append(kind)
        elif method == "Finish" and self.taken[-2][0] == "Activated":
            self.keep(self.processed)
        elif method in ("Finish", "RevertProcessedSwPackages"):
            self.processed = []

    def keep(self, kinds: list[str]) -> None:
        """The session ended well: its packages have served."""
        self.installed = version(kinds[-1])
        for kind in kinds:
            del self.ids[kind]
        self.processed = []

    def look(self) -> None:
        """Learn from the device where calls at once led."""
        self.state = self.rig.wait_for(*REST)
        packages = {package["id"]: package["state"] for package in self.rig.client.get_sw_packages()}
        gone = [kind for kind, id in self.ids.items() if id not in packages]
        if gone:
            self.keep(sorted(gone, key=KINDS.index))
        self.processed = [kind for kind in KINDS if packages.get(self.ids.get(kind, "")) == "kProcessed"]


def version(kind: str) -> str:
    return str(KINDS_OF_PACKAGE[kind]["version"])


def test_random_calls(trusting: World, signed: Signed, quick: None, tmp_path: Path) -> None:
    Device.signed = signed
    Device.worlds = (trusting.copy(tmp_path / f"{number}") for number in itertools.count())
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Device,
        settings=settings(
            max_examples=15,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
