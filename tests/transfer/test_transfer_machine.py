"""Random calls against a model that holds what the store has to hold."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from otaflow.errors import (
    AuthenticationFailed,
    IncorrectBlock,
    IncorrectSize,
    InsufficientData,
    InsufficientMemory,
    InvalidTransferId,
    Offline,
    OldVersion,
    OperationNotPermitted,
    OtaflowError,
)
from otaflow.transfer.cached import PackageState
from otaflow.transfer.store import Accepted, Transfers

BLOCK, QUOTA, TIMEOUT = 8, 100, 50.0
S = PackageState


class Model:
    """One package as it has to be."""

    def __init__(self, size: int, now: float) -> None:
        self.size, self.active = size, now
        self.content, self.blocks = b"", 0
        self.state, self.accepted = S.TRANSFERRING, ("", "")


class Machine(RuleBasedStateMachine):
    """Ids that were deleted stay in the bundle, so that they are asked for again."""

    ids = Bundle("ids")
    base: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.base))
        self.now = 1000.0
        self.models: dict[str, Model] = {}
        self.open()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def open(self) -> None:
        self.store = Transfers(
            self.folder,
            block_size=BLOCK,
            quota=QUOTA,
            timeout_seconds=TIMEOUT,
            keep_free=0,
            max_transfers=5,
            clock=lambda: self.now,
        )

    def check(self, call: Callable[[], Any], error: type[OtaflowError] | None) -> Any:
        """The call answers, or raises exactly `error`."""
        if error is None:
            return call()
        with pytest.raises(OtaflowError) as caught:
            call()
        assert type(caught.value) is error
        return None

    def touch(self, id: str) -> Model | None:
        if model := self.models.get(id):
            model.active = self.now
        return model

    @rule(target=ids, size=st.integers(-1, 60))
    def start(self, size: int) -> Any:
        taken = sum(model.size for model in self.models.values())
        error: type[OtaflowError] | None = None
        if size < 1:
            error = IncorrectSize
        elif taken + size > QUOTA or len(self.models) >= 5:
            error = InsufficientMemory
        started = self.check(lambda: self.store.start(size), error)
        if started is None:
            return multiple()
        self.models[started.id] = Model(size, self.now)
        return started.id

    @rule(id=ids, offset=st.sampled_from([0, 0, 0, 0, 0, 0, 1, -1, 5]), block=st.binary(max_size=BLOCK + 1))
    def data(self, id: str, offset: int, block: bytes) -> None:
        model = self.touch(id)
        counter = (model.blocks if model else 0) + 1 + offset
        error = self.refusal_of_block(model, offset, len(block))
        received = self.check(lambda: self.store.data(id, counter, block), error)
        if model and error is None:
            model.content, model.blocks = model.content + block, counter
            assert received == len(model.content)

    def refusal_of_block(self, model: Model | None, offset: int, length: int) -> type[OtaflowError] | None:
        if model is None:
            return InvalidTransferId
        if model.state is not S.TRANSFERRING:
            return OperationNotPermitted
        if offset:
            return IncorrectBlock
        return None if 1 <= length <= min(BLOCK, model.size - len(model.content)) else IncorrectSize

    @rule(id=ids)
    def rest(self, id: str) -> None:
        """All the blocks that are missing, so that whole packages are not rare."""
        model = self.touch(id)
        while model and model.state is S.TRANSFERRING and len(model.content) < model.size:
            block = bytes([model.blocks + 1]) * min(BLOCK, model.size - len(model.content))
            self.store.data(id, model.blocks + 1, block)
            model.content, model.blocks = model.content + block, model.blocks + 1

    @rule(id=ids, refusal=st.sampled_from([None, None, None, AuthenticationFailed, OldVersion, Offline]))
    def exit(self, id: str, refusal: type[OtaflowError] | None) -> None:
        model = self.touch(id)
        error = refusal
        if model is None:
            error = InvalidTransferId
        elif model.state is not S.TRANSFERRING:
            error = OperationNotPermitted
        elif len(model.content) < model.size:
            error = InsufficientData

        def accept(path: Path) -> Accepted:
            assert model
            assert path.read_bytes() == model.content
            if refusal:
                raise refusal("refused")
            return Accepted("name", "1.0.0")

        self.check(lambda: self.store.exit(id, accept), error)
        if model and error is None:
            model.state, model.accepted = S.TRANSFERRED, ("name", "1.0.0")
        elif error in (AuthenticationFailed, OldVersion):
            del self.models[id]

    @rule(id=ids, state=st.sampled_from(PackageState))
    def mark(self, id: str, state: PackageState) -> None:
        model = self.touch(id)
        error: type[OtaflowError] | None = None
        if model is None:
            error = InvalidTransferId
        elif S.TRANSFERRING in (model.state, state):
            error = OperationNotPermitted
        self.check(lambda: self.store.mark(id, state), error)
        if model and error is None:
            model.state = state

    @rule(id=ids)
    def delete(self, id: str) -> None:
        self.delete_or_not(id)

    @rule(id=consumes(ids))
    def delete_for_good(self, id: str) -> None:
        self.delete_or_not(id)

    def delete_or_not(self, id: str) -> None:
        model = self.touch(id)
        error: type[OtaflowError] | None = None
        if model is None:
            error = InvalidTransferId
        elif model.state in (S.PROCESSING, S.PROCESSED):
            error = OperationNotPermitted
        self.check(lambda: self.store.delete(id), error)
        if error is None:
            del self.models[id]

    @rule(seconds=st.sampled_from([1.0, 20.0, 49.0, 51.0]))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        late = {
            id
            for id, model in self.models.items()
            if model.state is S.TRANSFERRING and self.now - model.active > TIMEOUT
        }
        assert set(self.store.expire()) == late
        for id in late:
            del self.models[id]

    @rule()
    def reopen(self) -> None:
        self.open()
        for model in self.models.values():
            model.active = self.now

    @invariant()
    def as_the_model(self) -> None:
        infos = self.store.packages()
        assert [info.id for info in infos] == list(self.models)
        for info, model in zip(infos, self.models.values(), strict=True):
            assert (info.size, info.state, (info.name, info.version)) == (model.size, model.state, model.accepted)
            assert info.consecutive_bytes_received == len(model.content)
            assert info.consecutive_blocks_received == model.blocks
            content = (self.folder / info.id / "package").read_bytes()
            assert content[: len(model.content)] == model.content
            assert len(content) == model.size
        assert {path.name for path in self.folder.iterdir()} == set(self.models)


def test_random_calls(tmp_path: Path) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    machine = type("TransferMachine", (Machine,), {"base": tmp_path})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
