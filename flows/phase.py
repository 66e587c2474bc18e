"""A phase: one working state of the UCM as a flow of steps.

    @phase("process")
    def process(...): ...

Called, it is the plain story, for `otaflow recover` and for a device whose Prefect API is away. `flow` is the same
story as a Prefect flow, made on first use; its failure hooks take back what the phase began. The UCM decides which is
run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from otaflow.tasks.step import compensate

if TYPE_CHECKING:
    from prefect import Flow

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Outcome:
    """How a story ended, whatever Prefect made of it."""

    value: Any = None
    error: BaseException | None = None


class Phase(Generic[P, R]):
    """A story of steps. `reverts`: a failure takes back what this action began (as in Processing and Activating)."""

    def __init__(self, story: Callable[P, R], name: str, reverts: bool) -> None:
        self.story, self.name, self.reverts = story, name, reverts
        self.outcome: Outcome | None = None
        self.__doc__ = story.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Tell the story; where it fails, take back what it began and raise."""
        try:
            try:
                value = self.story(*args, **kwargs)
            except BaseException:
                self.take_back()
                raise
        except BaseException as error:
            self.outcome = Outcome(error=error)
            raise
        self.outcome = Outcome(value)
        return value

    def take_back(self) -> None:
        """Undo the open intents of this phase and action. The hooks, the plain story and the recovery call this."""
        from otaflow.platform.device import device

        journal = device().journal
        if self.reverts:
            compensate(lambda intent: intent.phase == self.name and intent.action == journal.session.current)

    @cached_property
    def flow(self) -> "Flow[P, Any]":
        """The story as a Prefect flow: async, since a sync flow costs a second each (docs/decisions)."""
        from prefect import flow
        from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

        async def tell(*args: Any, **kwargs: Any) -> R:
            return self(*args, **kwargs)

        # Prefect passes hooks their three arguments by keyword: the names are not free.
        def undo_what_was_begun(flow: Any, flow_run: Any, state: Any) -> None:
            self.take_back()

        tell.__doc__ = self.__doc__
        tell.__name__ = self.story.__name__
        hooks: list[Any] = [undo_what_was_begun]
        return flow(
            name=self.name,
            validate_parameters=False,
            persist_result=False,
            # Nothing is stored; but not told where, Prefect asks its server each time.
            result_storage=PREFECT_LOCAL_STORAGE_PATH.value(),
            on_failure=hooks,
            on_crashed=hooks,
            on_cancellation=hooks,
        )(_with_signature_of(self.story, tell))


def phase(name: str, *, reverts: bool = True) -> Callable[[Callable[P, R]], Phase[P, R]]:
    """Make a story the phase called `name`."""
    return lambda story: Phase(story, name, reverts)


def _with_signature_of(story: Callable[..., Any], tell: Callable[..., Any]) -> Callable[..., Any]:
    """Prefect shows a run's parameters by the function's signature."""
    import inspect

    tell.__signature__ = inspect.signature(story)  # type: ignore[attr-defined]
    tell.__module__ = story.__module__
    return tell
