"""The one thread that works: phases and house-keeping, one after the other, each answered by its future."""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from otaflow.errors import OtaflowError, Restarting
from otaflow.platform.device import using
from otaflow.service import Superseded, Ucm
from otaflow.ucm.states import State

log = logging.getLogger("otaflow.agent")

WORKING = frozenset({State.PROCESSING, State.ACTIVATING, State.ROLLING_BACK, State.CLEANING_UP})

Job = Callable[[], Any]
Answer = Future[Any]


class Worker:
    """Does what is submitted, in its order."""

    def __init__(self, ucm: Ucm) -> None:
        self.ucm = ucm
        self.stuck: tuple[str, int] | None = None
        """Where work failed and no client can do anything about it: the house-keeping tries again."""
        self._jobs: queue.Queue[tuple[Job, Answer] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._run, name="otaflow-worker", daemon=True)

    def submit(self, job: Job) -> Answer:
        """Do `job` when those before it are done."""
        answer: Answer = Future()
        self._jobs.put((job, answer))
        return answer

    def end(self) -> None:
        """End when all that was submitted is done."""
        self._jobs.put(None)

    def _run(self) -> None:
        with using(self.ucm.device):
            while (item := self._jobs.get()) is not None:
                self._do(*item)

    def _do(self, job: Job, answer: Answer) -> None:
        try:
            answer.set_result(job())
        except Superseded:
            answer.set_result(None)
        except Restarting:
            # Not answered: it is not done yet. The machine goes down, and the caller asks again after it.
            log.info("the machine is restarting")
        except BaseException as error:
            if not isinstance(error, OtaflowError):
                log.exception("work failed")
            self.note_stuck()
            answer.set_exception(error)

    def note_stuck(self) -> None:
        """Work has failed: is it in a state that only work leads out of?"""
        self.stuck = self.ucm.where if self.ucm.state in WORKING else None
