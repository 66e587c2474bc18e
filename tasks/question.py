"""The question: a diamond of a chart as a step whose answer is seen in Prefect as its state, "yes" or "no".

@question("priority update")
def is_priority(offer: Offer) -> bool:
    return offer.priority
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from otaflow.tasks.step import Step, in_flow_run

if TYPE_CHECKING:
    from prefect import Task

P = ParamSpec("P")


class Question(Step[P, bool]):
    """A step that changes nothing and answers yes or no."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        if not in_flow_run():
            return super().__call__(*args, **kwargs)
        answer: Any = self.task(*args, **kwargs)
        return bool(answer.name == "yes")

    def _make_task(
        self, function: Callable[..., Any], name: str, limits: tuple[int, float], *, always: bool = False
    ) -> "Task[..., Any]":
        from prefect.states import Completed

        @wraps(function)
        def ask(*args: Any, **kwargs: Any) -> Any:
            return Completed(name="yes" if function(*args, **kwargs) else "no")

        return super()._make_task(ask, name, limits, always=always)


def question(title: str) -> Callable[[Callable[P, bool]], Question[P]]:
    """Make a function the question called `title` in the UI."""
    return lambda function: Question(function, title, lambda: (0, 0), when="clean up", key="", once=False)
