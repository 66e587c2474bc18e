"""House-keeping: what nobody calls for. Prefect is connected, what is over goes, what is stuck is tried again."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from otaflow import errors
from otaflow.agent.again import Again
from otaflow.agent.packages import release
from otaflow.agent.worker import Worker
from otaflow.errors import Restarting
from otaflow.files import write_atomic
from otaflow.flows.retention import retention
from otaflow.recovery import carry_on, recover
from otaflow.service import Ucm, Work
from otaflow.transfer.store import Transfers
from otaflow.trial import count_boot, put_target_right
from otaflow.ucm.states import State

log = logging.getLogger("otaflow.agent")

LOOK_SECONDS = 10.0
EXPIRE_SECONDS = 60.0
RETENTION = timedelta(days=1)
UNATTENDED_SECONDS = 60.0
"""How long an unattended session may rest until it goes on by itself: the command that drove it is gone then."""


class House:
    """Keeps house in a thread of its own; what changes the device is left to the worker."""

    def __init__(self, ucm: Ucm, transfers: Transfers, worker: Worker, show: Callable[[], None] | None) -> None:
        """`show` connects to Prefect; raises whatever is wrong while that is away."""
        self.ucm, self.transfers, self.worker = ucm, transfers, worker
        self._show = show
        self._ended = threading.Event()
        self._seen: tuple[str, int] | None = None
        self._since = 0.0
        self._expired = time.monotonic()
        self._retained: datetime | None = None
        self._carried: dict[str, int] = {}
        self._again = Again(ucm)
        self.thread = threading.Thread(target=self._run, name="otaflow-house", daemon=True)

    def end(self) -> None:
        self._ended.set()

    def put_in_order(self) -> None:
        """Recover. What fails is in the journal and the log; the interface answers all the same."""
        try:
            put_target_right(self.ucm.device)
        except (errors.OtaflowError, OSError) as error:
            log.error("cannot put the boot target right: %s", error)  # noqa: TRY400
        self._recover()

    def _recover(self) -> Exception | None:
        """Recover; what failed."""
        failed: Exception | None = None
        session = self.ucm.journal.session
        try:
            recover(self.ucm, verifies=False)
        except Restarting:
            log.info("the machine is restarting")
        except (errors.OtaflowError, OSError) as error:
            failed = error
            self.worker.note_stuck()
            log.error("cannot finish what was interrupted: %s; it is %s", error, self.ucm.state)  # noqa: TRY400
        processed = frozenset(action.package for action, _ in self.ucm.processed())
        release(self.transfers, session, but=processed if self.ucm.state is not State.IDLE else frozenset())
        if self.ucm.state is State.VERIFYING:
            self.worker.submit(self.ending(self.ucm.go_on) if session.unattended else self.ucm.verify)
        return failed

    def ending(self, work: Work) -> Work:
        """`work` that may end the session, also with an error: its packages have served then."""

        def end() -> None:
            session = self.ucm.journal.session
            try:
                work()
            finally:
                if self.ucm.state is State.IDLE or self.ucm.journal.session is not session:
                    release(self.transfers, session)

        return end

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._look(time.monotonic())
            except Exception:  # a full disk, say: nobody else would carry on what rests
                log.exception("cannot keep house")
            self._ended.wait(LOOK_SECONDS)

    def _look(self, now: float) -> None:
        self._connect()
        if now - self._expired > EXPIRE_SECONDS:
            self._expired = now
            self._try_again(now)
            self._expire()
            self._retain(datetime.now(UTC))
            if self.ucm.state is State.IDLE:
                count_boot(self.ucm.device)  # where the disk was full at the start
        self._look_after(now)

    def _retain(self, now: datetime) -> None:
        """Once a day, also where the device is off each night; a clock that was set back must not keep it waiting."""
        file = self.ucm.device.nvm / "retention"
        if self._retained is None:
            self._retained = read_time(file)
        last = self._retained
        if self.ucm.state is not State.IDLE or (last and timedelta(0) <= now - last <= RETENTION):
            return
        self._retained = now
        self.worker.submit(self.end_backups)
        write_atomic(file, f"{now.isoformat()}\n".encode())

    def _connect(self) -> None:
        if self._show is None:
            return
        try:
            self._show()
            self._show = None
        except Exception as error:
            log.warning("Prefect is away: %s", error)

    def _expire(self) -> None:
        for id in self.transfers.expire():
            log.warning("the transfer %s was idle for too long and is given up", id)

    def _try_again(self, now: float) -> None:
        stuck = self._find_stuck()
        # Cleaning-Up is tried a few times, and then is Idle with an alarm: that is not to take long.
        if stuck and (self.ucm.state is State.CLEANING_UP or self._again.is_due(now)):
            self.worker.stuck = None
            self.worker.submit(lambda: self._leave(stuck, now))

    def _find_stuck(self) -> tuple[str, int] | None:
        """Where no client, or none any more, can do anything about it."""
        unattended = self.ucm.journal.session.unattended
        failed = self.ucm.where if unattended and self.ucm.state is State.ROLLING_BACK_FAILED else None
        return self.worker.stuck or failed

    def _leave(self, stuck: tuple[str, int], now: float) -> None:
        if self.ucm.where != stuck:  # a client may have begun something, whose work is still to come
            return
        if self.ucm.state is not State.CLEANING_UP:
            self._again.begin(now)
        if error := self._recover():
            self._again.end(error)

    def _look_after(self, now: float) -> None:
        """An unattended session that rests for long is carried on: nobody is there who drives it."""
        seen = self._resting()
        if seen != self._seen:
            self._seen, self._since = seen, now
        elif seen and now - self._since > UNATTENDED_SECONDS and self._may_carry(seen[0]):
            self._since = now
            self.worker.submit(self.ending(lambda: self._carry_on(seen)))

    def _may_carry(self, session: str) -> bool:
        """Not for ever: what cannot be reverted is left to the next start, and to people."""
        self._carried = {session: self._carried.get(session, 0) + 1}
        return self._carried[session] <= self.ucm.device.config.health.clean_ups

    def _resting(self) -> tuple[str, int] | None:
        """Where an unattended session rests; None where there is none, or where it works."""
        rests = self.ucm.is_resting and self.ucm.state is not State.IDLE
        return self.ucm.where if rests and self.ucm.journal.session.unattended else None

    def _carry_on(self, seen: tuple[str, int]) -> None:
        if self._resting() == seen:
            log.warning("nobody drives the unattended session any more: it goes on from %s", self.ucm.state)
            carry_on(self.ucm)

    def end_backups(self) -> list[str]:
        """Step 11 of the update processes, once a day and when asked for; the ids of the entries that lost a part."""
        if self.ucm.state is not State.IDLE:
            return []
        removed: list[str] = self.ucm.run(retention, {})
        return removed


def read_time(file: Path) -> datetime | None:
    """The time in `file`, UTC; None where there is none."""
    try:
        time = datetime.fromisoformat(file.read_text().strip())
    except (OSError, ValueError):
        return None
    return time if time.tzinfo else None
