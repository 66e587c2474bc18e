"""The agent: the one process of a device that decides and writes (the `UcmService` of otaflow.api.service).

It holds the device's lock for its life. Clients' calls arrive in any thread and are decided at once; one worker thread
runs the phases. What it must remember is in the journal, the transfers and the logs, so it may die at any moment.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from otaflow import errors, progress
from otaflow.action import Action
from otaflow.actions import Way, find_removal, find_way_back
from otaflow.agent.house import House
from otaflow.agent.packages import accept, accept_removal, find_action, find_uninstall
from otaflow.agent.policy import Policy
from otaflow.agent.reports import Report, report_changes, report_clusters, report_history, report_packages
from otaflow.agent.requests import Requests
from otaflow.agent.subscription import Subscription
from otaflow.agent.visible import Shown, Visible
from otaflow.agent.worker import Answer, Worker
from otaflow.closing import defer
from otaflow.platform.device import Device, using
from otaflow.progress import Event
from otaflow.service import Ucm, Work
from otaflow.transfer.cached import PackageState
from otaflow.transfer.logs import PackageLogs
from otaflow.transfer.store import Transfers
from otaflow.trial import count_boot
from otaflow.ucm.states import State
from otaflow.work import ProcessingLog

log = logging.getLogger("otaflow.agent")

Connect = Callable[[], Shown]
"""Connects to Prefect; raises whatever is wrong while that is away."""

WEIGHT = {"extract_package": 10, "copy_active_slot": 20, "back_up_incremental": 30, "back_up_full": 60}
"""How far the processing is, in percent, when a step is done; the program's own share is the rest."""


class Agent:
    """One device's agent. `start` and `stop` enclose its life."""

    def __init__(self, device: Device, connect: Connect | None = None) -> None:
        self.device = device
        self.ucm = Ucm(device)
        bounds = device.config.transfer
        self.transfers = Transfers(
            device.cache / "transfers", quota=bounds.quota_bytes, timeout_seconds=bounds.timeout_seconds
        )
        self.logs = PackageLogs(device.nvm / "packages")
        self.policy = Policy(device)
        self.requests = Requests(device)
        self._connect = connect
        self.worker = Worker(self.ucm)
        self.house = House(self.ucm, self.transfers, self.worker, self._show if connect else None)
        self._processing: tuple[str, Answer] | None = None
        self._percent = 0
        self._log = ProcessingLog(device)
        self._subscribers: list[Subscription] = []

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the device, put it in order, and begin to work. Raises Locked when another agent or command has it.

        What a restart interrupted goes on in the worker: a verification, an unattended update.
        """
        self.device.lock.acquire()
        count_boot(self.device)
        progress.subscribe(self._hear)
        progress.subscribe(self._log)
        with using(self.device):
            self.house.put_in_order()
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float = 60.0) -> None:
        """End cleanly: no step is undone by it; work in hand has `seconds` to finish, the rest is left to recovery."""
        self.requests.stop()
        self.house.end()
        self.worker.end()
        for thread in self._threads:
            thread.join(seconds)
        if any(thread.is_alive() for thread in self._threads):
            log.warning("the work in hand takes too long: it is left to recovery")
            os._exit(0)
        if isinstance(self.ucm.runs, Visible):
            self.ucm.runs.close()
        progress.unsubscribe(self._hear)
        progress.unsubscribe(self._log)
        self.device.lock.release()

    @property
    def is_alive(self) -> bool:
        """Whether the threads that work and keep house are there."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def _threads(self) -> tuple[threading.Thread, ...]:
        return self.worker.thread, self.house.thread

    # --- status ---------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """CurrentStatus: the state, and the session's id where one is going on."""
        state = self.ucm.state
        return {"status": str(state), "session": self.ucm.journal.session.id if state is not State.IDLE else None}

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """A subscription to every status change."""
        subscription = Subscription()
        self._subscribers.append(subscription)
        try:
            yield subscription
        finally:
            self._subscribers.remove(subscription)

    # --- transfer -------------------------------------------------------------------------------------------------

    def transfer_start(self, size: int) -> tuple[str, int]:
        """TransferStart. Raises InsufficientMemory."""
        started = self.transfers.start(size)
        self.logs.add(started.id)
        return started.id, started.block_size

    def transfer_data(self, id: str, block_counter: int, block: bytes | memoryview) -> int:
        """TransferData: the number of consecutive bytes that are on the disk."""
        return self.transfers.data(id, block_counter, block)

    def transfer_exit(self, id: str) -> None:
        """TransferExit: the package is whole, signed, and not older than what is installed."""
        accepted = self.transfers.exit(id, lambda path: accept(self.device, path))
        self.logs.write(id, 4, f"{accepted.name} {accepted.version} was transferred and is signed")

    def delete_transfer(self, id: str) -> None:
        """DeleteTransfer."""
        self.transfers.delete(id)

    # --- what changes the state: decided at once, answered when it is done -----------------------------------------

    def process(self, id: str, *, unattended: bool = False, accept_irreversible: bool = False) -> Answer:
        """ProcessSwPackage. Answers on reaching Ready."""
        with self.ucm.deciding:
            self.ucm.check("<ProcessSwPackage")
            action = find_action(self.device, self.transfers, id, accepted=accept_irreversible)
            return self._begin(id, action, unattended)

    def go_back(self, to: Way, backup: str | None = None, *, unattended: bool = False) -> Answer:
        """GoBack: what ProcessSwPackage is for a package. Answers on reaching Ready."""
        with self.ucm.deciding:
            self.ucm.check("<ProcessSwPackage")
            return self._begin(to, find_way_back(self.device, to, backup), unattended)

    def uninstall(self, id: str, *, unattended: bool = False) -> Answer:
        """Uninstall: take back what the package installed. Answers on reaching Ready."""
        self.ucm.check("<ProcessSwPackage")
        if self.transfers.get(id).state == PackageState.TRANSFERRING:
            self.transfers.exit(id, lambda path: accept_removal(self.device, path))
        with self.ucm.deciding:
            self.ucm.check("<ProcessSwPackage")
            return self._begin(id, find_uninstall(self.device, self.transfers, id), unattended)

    def remove(self, name: str, *, unattended: bool = False) -> Answer:
        """Remove an application. Answers on reaching Ready."""
        with self.ucm.deciding:
            self.ucm.check("<ProcessSwPackage")
            return self._begin(name, find_removal(self.device, name), unattended)

    def cancel(self, id: str) -> Answer:
        """Cancel. Answers when the processing has stopped; CancelFailed when it was done before it could be stopped."""
        with self.ucm.deciding:
            named = self._processing is not None and self._processing[0] == id
            self.ucm.cancel("" if named else f"cannot Cancel {id}: that is not being processed")
            assert self._processing is not None
            answer: Answer = Future()
            self._processing[1].add_done_callback(lambda processed: _answer_cancel(answer, processed))
            return answer

    def activate(self) -> Answer:
        """Activate. Answers on entering Verifying, which goes on by itself."""
        with self.ucm.deciding:
            work = self.ucm.begin_activate()
            return self.worker.submit(self.house.ending(lambda: self._activate(work)))

    def rollback(self) -> Answer:
        """Rollback, from Verifying or Activated. Answers on Rolled-back."""
        with self.ucm.deciding:
            work = self.ucm.begin_rollback()
            return self.worker.submit(lambda: self._roll_back(work))

    def revert(self) -> Answer:
        """RevertProcessedSwPackages. Answers on Idle."""
        with self.ucm.deciding:
            return self.worker.submit(self.house.ending(self.ucm.begin_revert()))

    def finish(self) -> Answer:
        """Finish. Answers on Idle."""
        with self.ucm.deciding:
            return self.worker.submit(self.house.ending(self.ucm.begin_finish()))

    # --- applications: in every state -----------------------------------------------------------------------------

    def request_update(self, name: str) -> dict[str, Any]:
        """RequestUpdate. Raises OperationNotPermitted."""
        return self.requests.ask(name)

    def defer(self, name: str) -> dict[str, Any]:
        """Defer. Raises OperationNotPermitted."""
        return defer(self.device, name)

    # --- reports: in every state ------------------------------------------------------------------------------------

    def progress(self, id: str) -> int:
        """GetSwProcessProgress: 0 to 100."""
        state = self.transfers.get(id).state
        if state == PackageState.PROCESSED:
            return 100
        return self._percent if state == PackageState.PROCESSING else 0

    def clusters(self) -> Report:
        """GetSwClusterInfo."""
        return report_clusters(self.device)

    def cluster_changes(self) -> Report:
        """GetSwClusterChangeInfo."""
        return report_changes(self.device)

    def packages(self) -> Report:
        """GetSwPackages."""
        return report_packages(self.transfers.packages())

    def history(self, since: str | None, until: str | None) -> Report:
        """GetHistory. Raises GeneralReject for a time that is none."""
        return report_history(self.device, since, until)

    def set_log_level(self, id: str, level: int) -> None:
        """SetLogLevel."""
        self.logs.set_level(id, level)

    def log(self, id: str) -> list[dict[str, Any]]:
        """GetLog. A package's log outlives it."""
        return self.logs.read(id)

    def clean_up(self) -> Answer:
        """CleanUp: remove the full backups and snapshots whose time is over. Answers with the ids of their entries."""
        with self.ucm.deciding:
            if self.ucm.state is not State.IDLE:
                raise errors.OperationNotPermitted(
                    f"cannot CleanUp: the update manager is {self.ucm.state}", hint="it is done in Idle only"
                )
            return self.worker.submit(lambda: {"removed": self.house.end_backups()})

    # --- inside: the work -------------------------------------------------------------------------------------------

    def _begin(self, id: str, action: Action, unattended: bool) -> Answer:
        """Enter Processing; `id` is what Cancel is to name. The caller decides."""
        work = self.ucm.begin_process(action, unattended=unattended)
        self._percent = 0
        answer = self.worker.submit(lambda: self._process(id, work))
        self._processing = (id, answer)
        return answer

    def _process(self, id: str, work: Work) -> None:
        known = any((p.id, p.state) == (id, PackageState.TRANSFERRED) for p in self.transfers.packages())
        try:
            if known:
                self.transfers.mark(id, PackageState.PROCESSING)
            work()
        except BaseException as error:
            if known:
                self.transfers.mark(id, PackageState.TRANSFERRED)
                self.logs.write(id, 2, f"not processed: {error}")
            raise
        if known:
            self.transfers.mark(id, PackageState.PROCESSED)
            self.logs.write(id, 4, "processed")

    def _activate(self, work: Work) -> None:
        work()
        self.worker.submit(self.ucm.verify)

    def _roll_back(self, work: Work) -> None:
        try:
            work()
        finally:
            if self.ucm.state is State.VERIFYING:  # it could not be rolled back: the monitor goes on
                self.worker.submit(self.ucm.verify)

    # --- inside: the watchers ---------------------------------------------------------------------------------------

    def _show(self) -> None:
        assert self._connect is not None
        self.ucm.runs = Visible(self._connect(), self._press, lambda: self.ucm.state)

    def _press(self, call: str, state: State) -> None:
        """A button of Prefect's that means the method `call`, pressed in `state`. Raises the refusing UcmError."""
        with self.ucm.deciding:
            if self.ucm.state is not state:
                raise errors.OperationNotPermitted(f"it was {state}, and is {self.ucm.state} now")
            if call == "cancel":
                self.cancel(self._processing[0] if self._processing else "")
            else:
                getattr(self, call)()

    def _hear(self, event: Event) -> None:
        """What the phases tell: to the watchers, the package's log and the progress."""
        if event.kind == "state":
            status = self.status()
            for subscription in list(self._subscribers):
                subscription.put(status)
        step = event.facts.get("step", "")
        if event.kind == "done" and step in WEIGHT:
            self._percent = max(self._percent, WEIGHT[step])
        if self._processing and event.kind in ("output", "failed", "done", "undone"):
            level = {"failed": 2, "output": 5}.get(event.kind, 4)
            text = event.facts.get("line") or event.facts.get("error") or event.kind
            with suppress(errors.InvalidTransferId):
                self.logs.write(self._processing[0], level, f"{event.name}: {text}")


def _answer_cancel(answer: Answer, processed: Answer) -> None:
    error = processed.exception()
    if isinstance(error, errors.ProcessSwPackageCancelled):
        answer.set_result(None)
    else:
        answer.set_exception(errors.CancelFailed("cannot Cancel: the processing had ended before it could be stopped"))
