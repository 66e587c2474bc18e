"""The step: a function that changes one thing, with its undo directly below it.

    @step("flip slot", retries=2)
    def flip_slot(target: str) -> None:
        remember(previous=device().boot.target())
        device().boot.set_target(target)

    @flip_slot.undo
    def flip_back(previous: str) -> None:
        device().boot.set_target(previous)

`remember` puts what the undo needs into the journal, durably, before anything is changed; a step that never calls it
changed nothing. The first memory wins, so that a retry cannot remember its own half-done work. Both functions must be
idempotent, and the undo of what never happened does nothing.

Called inside a Prefect flow run, a step is a retrying Prefect task; called elsewhere (`otaflow recover` at boot, a
Prefect API that is away) it is the same function with the same retries. Prefect is imported on first use only.
"""

import inspect
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, cast, get_args

from otaflow import fault, progress
from otaflow.errors import ProcessSwPackageCancelled, Refused, UcmError, UndoFailed
from otaflow.journal import Intent, Journal
from otaflow.platform.device import device
from otaflow.platform.durable import sync_device
from otaflow.records import give_up_reserve

if TYPE_CHECKING:
    from prefect import Task

P = ParamSpec("P")
R = TypeVar("R")

Limits = Callable[[], tuple[int, float]]
"""Retries after the first try, and seconds between two tries."""

When = Literal["early", "restarted", "clean up"]
"""When a rollback takes a step back: before the former system starts, after it has, or in Cleaning-Up."""

UNDO_RETRIES = 2

STEPS: dict[str, "Step[..., Any]"] = {}
"""Every step by its name in the journal; recovery finds the undo here."""

_call: ContextVar["Call"] = ContextVar("call")


class Call:
    """One call of a step: what `remember` writes to."""

    def __init__(self, step: "Step[..., Any]", journal: Journal, key: str) -> None:
        self.step, self.journal, self.key = step, journal, key
        self.intent: Intent | None = None


def remember(**memory: Any) -> dict[str, Any]:
    """Make `memory` (plain data) durable before the step acts; returns what holds: the first memory, on a retry."""
    call = _call.get()
    call.intent = call.journal.intend(call.step.name, call.key, memory)
    return call.intent.memory


def worth_retrying(error: BaseException) -> bool:
    """A refusal stays one however often it is asked for; everything else may pass."""
    return isinstance(error, Exception) and not isinstance(error, (Refused, UcmError))


class Step(Generic[P, R]):
    """A step and its undo; what the parameters mean is said at `step`."""

    def __init__(self, do: Callable[P, R], title: str, limits: Limits, when: "When", key: str, once: bool) -> None:
        self.do, self.title, self.limits, self.when, self.once = do, title, limits, when, once
        self.undo_title = f"undo: {title}"
        self.name = do.__name__
        self.key = key
        self.take_back: Callable[..., None] | None = None
        self.last_error: BaseException | None = None
        self._tasks: dict[tuple[int, float], Task[P, R]] = {}
        self.__doc__ = do.__doc__
        self.__name__ = do.__name__
        STEPS[self.name] = self

    def undo(self, function: Callable[..., None]) -> Callable[..., None]:
        """Decorator: `function` takes the step back; its parameters are the names that the step remembers."""
        self.take_back = function
        return function

    def undo_called(self, title: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Decorator: like `undo`, with a `title` of its own in the UI."""
        self.undo_title = title
        return self.undo

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if in_flow_run():
            return self.task(*args, **kwargs)
        return _retrying(lambda: self.run(*args, **kwargs), *self.limits())

    def run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do the step once, and record that it is done."""
        call = Call(self, device().journal, str(kwargs.get(self.key, "")) if self.key else "")
        token = _call.set(call)
        started = time.monotonic()
        progress.tell("step", self.title, step=self.name)
        try:
            stop_if_asked()
            if self.once and (former := call.journal.find_open(self.name, call.key)) and former.done:
                return cast("R", None)
            fault.point(f"{self.name}.before")
            result = self.do(*args, **kwargs)
            fault.point(f"{self.name}.acted")
            if call.intent:
                call.journal.finish(call.intent)
            fault.point(f"{self.name}.done")
        except BaseException as error:
            self.last_error = error
            progress.tell("failed", self.title, step=self.name, error=str(error))
            raise
        finally:
            _call.reset(token)
        progress.tell("done", self.title, step=self.name, seconds=time.monotonic() - started)
        return result

    def revert(self, intent: Intent) -> None:
        """Take one intent back, with retries, and record it. Raises UndoFailed; the intent stays open then."""
        try:
            if self.take_back:
                self._undo(intent.memory)
                sync_device(device())
        except Exception as error:
            device().journal.undo_failed(intent, str(error))
            raise UndoFailed(
                f"cannot take back {self.title!r}: {error}",
                hint="the journal holds what is needed: `otaflow recover` tries again",
            ) from error
        device().journal.undone(intent, counts=self.when != "restarted")
        fault.point(f"undo.{self.name}.done")
        progress.tell("undone", self.title, step=self.name)

    def _undo(self, memory: dict[str, Any]) -> None:
        """As a Prefect task where there is a flow run; where Prefect itself fails, without it."""
        if in_flow_run():
            try:
                self.undo_task(memory)
                return
            except Exception as error:
                if type(error).__module__.partition(".")[0] not in ("prefect", "httpx", "httpcore"):
                    raise
        _retrying(lambda: self._take_back(memory), *self.undo_limits())

    def undo_limits(self) -> tuple[int, float]:
        """An undo is always tried again: also that of a step which may be done only once."""
        retries, wait = self.limits()
        return max(retries, UNDO_RETRIES), wait

    def _take_back(self, memory: dict[str, Any]) -> None:
        assert self.take_back is not None
        progress.tell("undo", self.title, step=self.name)
        fault.point(f"undo.{self.name}.before")
        try:
            self.take_back(**self._known(memory))
        except Exception:
            give_up_reserve(device().nvm)  # the disk may be full, and the next try is what the room was kept for
            raise
        fault.point(f"undo.{self.name}.acted")

    def _known(self, memory: dict[str, Any]) -> dict[str, Any]:
        """What the undo takes of a memory: the otaflow of the other slot, maybe a newer one, may have written more."""
        assert self.take_back is not None
        parameters = inspect.signature(self.take_back).parameters
        return {name: value for name, value in memory.items() if name in parameters}

    @property
    def task(self) -> "Task[P, R]":
        """The step as a Prefect task, made once for each pair of limits (making one takes Prefect 5 ms)."""
        limits = self.limits()
        if limits not in self._tasks:
            self._tasks[limits] = cast("Task[P, R]", self._make_task(self.run, self.title, limits))
        return self._tasks[limits]

    @cached_property
    def undo_task(self) -> "Task[..., None]":
        """The undo as a Prefect task."""
        assert self.take_back is not None
        return self._make_task(self._take_back, self.undo_title, self.undo_limits(), always=True)

    def _make_task(
        self, function: Callable[..., Any], name: str, limits: tuple[int, float], *, always: bool = False
    ) -> "Task[..., Any]":
        """A Prefect task, retried `always` or when it is worth it.

        No cache: equal inputs of tasks made here would share a key and a result.
        """
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        make = task(
            name=name,
            task_run_name=name,
            retries=limits[0],
            retry_delay_seconds=limits[1],
            retry_condition_fn=lambda _task, _run, _state: (
                always or self.last_error is None or worth_retrying(self.last_error)
            ),
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        return make(function)


def stop_if_asked() -> None:
    """End the work here when Cancel, or a Rollback while Verifying, asks for it. Raises ProcessSwPackageCancelled."""
    if device().stop_work.is_set():
        raise ProcessSwPackageCancelled("the work was stopped as a client asked for")


def step(
    title: str,
    *,
    retries: int = 0,
    wait: float = 1,
    limits: Limits | None = None,
    when: When = "clean up",
    key: str = "",
    once: bool = False,
) -> Callable[[Callable[P, R]], Step[P, R]]:
    """Make a function a step called `title` in the UI.

    `retries` and `wait` (seconds) hold for the undo too, which is tried at least three times; `limits` gives both where
    the device's configuration says them. `when` says when a rollback takes it back. `key` names the keyword parameter
    that tells several calls in one phase apart. `once`: a step without a result that is done is not done again, as when
    its phase goes on after a power cut.
    """

    def decorate(function: Callable[P, R]) -> Step[P, R]:
        return Step(function, title, limits or (lambda: (retries, wait)), when, key, once)

    return decorate


def compensate(wanted: Callable[[Intent], bool] = lambda intent: True) -> None:
    """Walk the journal backwards and take back every open intent that is `wanted`: first all that are early, then those
    that start former programs, then the rest.

    The one function that the failure hooks, the rollback and the recovery at boot call. It stops at the first undo
    that fails (UndoFailed): what was done earlier may be needed by what could not be taken back. Only the starts go on:
    a program that does not start keeps no other one down.
    """
    failed: UndoFailed | None = None
    for when in get_args(When):
        for intent in list(device().journal.open_intents()):
            if not wanted(intent) or STEPS[intent.step].when != when:
                continue
            try:
                STEPS[intent.step].revert(intent)
            except UndoFailed as error:
                if when != "restarted":
                    raise
                failed = failed or error
        if failed:
            raise failed


def in_flow_run() -> bool:
    """Whether this is called inside a Prefect flow run (and not already inside one of its tasks)."""
    if "prefect.context" not in sys.modules:
        return False
    from prefect.context import FlowRunContext, TaskRunContext

    return FlowRunContext.get() is not None and TaskRunContext.get() is None


def _retrying(call: Callable[[], R], retries: int, wait: float) -> R:
    for _ in range(retries):
        try:
            return call()
        except Exception as error:
            if not worth_retrying(error):
                raise
            time.sleep(wait)
    return call()
