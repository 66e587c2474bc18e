"""The agent: the one process of a device that decides and writes (the `UcmService` of otaflow.api.service).

It holds the device's lock for its life. Clients' calls arrive in any thread and are decided at once; one worker thread
runs the phases. What it must remember is in the journal, the transfers and the logs, so it may die at any moment.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from otaflow import errors, progress
from otaflow.action import Action
from otaflow.agent.reports import Report, report_changes, report_clusters, report_history, report_packages
from otaflow.agent.subscription import Subscription
from otaflow.agent.visible import Shown, Visible
from otaflow.errors import Restarting
from otaflow.flows.retention import retention
from otaflow.package.extract import read_metadata
from otaflow.package.versions import newer
from otaflow.platform.device import Device, using
from otaflow.progress import Event
from otaflow.repo.client import open_repository
from otaflow.service import Superseded, Ucm, Work
from otaflow.transfer.cached import PackageState
from otaflow.transfer.logs import PackageLogs
from otaflow.transfer.store import Accepted, Transfers
from otaflow.ucm.states import RESTING, State
from otaflow.work import ProcessingLog

log = logging.getLogger("otaflow.agent")

Connect = Callable[[], Shown]
"""Connects to Prefect; raises whatever is wrong while that is away."""

RECONNECT_SECONDS = 10.0
EXPIRE_SECONDS = 60.0
RETENTION_SECONDS = 24 * 3600.0
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
        self._connect = connect
        self._work: queue.Queue[tuple[Work, Future[None]] | None] = queue.Queue()
        self._processing: tuple[str, Future[None]] | None = None
        self._percent = 0
        self._stuck = False
        """An undo failed where no client can do anything about it: the house-keeping tries again."""
        self._log = ProcessingLog(device)
        self._subscribers: list[Subscription] = []
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the device, put it in order, and begin to work. Raises Locked when another agent or command has it.

        What a restart interrupted goes on in the worker: a verification, an unattended update.
        """
        self.device.lock.acquire()
        self.device.boots.note_boot()
        progress.subscribe(self._hear)
        progress.subscribe(self._log)
        with using(self.device):
            self._recover()
        self._mark_interrupted_packages()
        if self.ucm.state is State.VERIFYING:
            self._submit(self.ucm.go_on if self.ucm.journal.session.unattended else self.ucm.verify)
        for target in (self._run_worker, self._keep_house):
            thread = threading.Thread(target=target, name=target.__name__, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, seconds: float = 60.0) -> None:
        """End cleanly: no step is undone by it; work in hand has `seconds` to finish, the rest is left to recovery."""
        self._ended.set()
        self._work.put(None)
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

    def transfer_data(self, id: str, block_counter: int, block: bytes) -> int:
        """TransferData: the number of consecutive bytes that are on the disk."""
        return self.transfers.data(id, block_counter, block)

    def transfer_exit(self, id: str) -> None:
        """TransferExit: the package is whole, signed, and not older than what is installed."""
        accepted = self.transfers.exit(id, self._accept)
        self.logs.write(id, 4, f"{accepted.name} {accepted.version} was transferred and is signed")

    def delete_transfer(self, id: str) -> None:
        """DeleteTransfer."""
        self.transfers.delete(id)

    # --- what changes the state: decided at once, answered when it is done -----------------------------------------

    def process(self, id: str) -> Future[None]:
        """ProcessSwPackage. Answers on reaching Ready."""
        with self.ucm.deciding:
            self.ucm.check("<ProcessSwPackage")
            work = self.ucm.begin_process(self._action(id))
            self._percent = 0
            future = self._submit(lambda: self._process(id, work))
            self._processing = (id, future)
            return future

    def cancel(self, id: str) -> Future[None]:
        """Cancel. Answers when the processing has stopped; CancelFailed when it was done before it could be stopped."""
        with self.ucm.deciding:
            if self.ucm.state is State.PROCESSING and (self._processing is None or self._processing[0] != id):
                raise errors.InvalidTransferId(f"cannot Cancel {id}: that package is not being processed")
            self.ucm.cancel()
            assert self._processing is not None
            answer: Future[None] = Future()
            self._processing[1].add_done_callback(lambda processed: _answer_cancel(answer, processed))
            return answer

    def activate(self) -> Future[None]:
        """Activate. Answers on entering Verifying, which goes on by itself."""
        with self.ucm.deciding:
            work = self.ucm.begin_activate()
            return self._submit(lambda: self._activate(work))

    def rollback(self) -> Future[None]:
        """Rollback, from Verifying or Activated. Answers on Rolled-back."""
        with self.ucm.deciding:
            work = self.ucm.begin_rollback()
            return self._submit(lambda: self._roll_back(work))

    def revert(self) -> Future[None]:
        """RevertProcessedSwPackages. Answers on Idle."""
        with self.ucm.deciding:
            return self._submit(self._ending(self.ucm.begin_revert()))

    def finish(self) -> Future[None]:
        """Finish. Answers on Idle."""
        with self.ucm.deciding:
            return self._submit(self._ending(self.ucm.begin_finish()))

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

    # --- inside: the work -------------------------------------------------------------------------------------------

    def _submit(self, work: Work) -> Future[None]:
        future: Future[None] = Future()
        self._work.put((work, future))
        return future

    def _run_worker(self) -> None:
        """Do one piece of work after the other, until the agent ends."""
        with using(self.device):
            while (item := self._work.get()) is not None:
                work, future = item
                try:
                    work()
                except Superseded:
                    future.set_result(None)
                except Restarting:
                    # Not answered: it is not done yet. The machine goes down, and the caller asks again after it.
                    log.info("the machine is restarting")
                except BaseException as error:
                    if not isinstance(error, errors.OtaflowError):
                        log.exception("work failed")
                    self._stuck = isinstance(error, errors.UndoFailed) and self.ucm.state not in RESTING
                    future.set_exception(error)
                else:
                    future.set_result(None)

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
        self.transfers.mark(id, PackageState.PROCESSED)
        self.logs.write(id, 4, "processed")

    def _activate(self, work: Work) -> None:
        work()
        self._submit(self.ucm.verify)

    def _roll_back(self, work: Work) -> None:
        try:
            work()
        finally:
            if self.ucm.state is State.VERIFYING:  # it could not be rolled back: the monitor goes on
                self._submit(self.ucm.verify)

    def _ending(self, work: Work) -> Work:
        """`work` that ends the session: its packages have served."""

        def end() -> None:
            # Only now: the worker may have been about to mark the last one when the client asked.
            packages = [p.id for p in self.transfers.packages() if p.state == PackageState.PROCESSED]
            work()
            for id in packages:
                self.transfers.mark(id, PackageState.TRANSFERRED)
                if self.ucm.journal.session.kept:
                    self.transfers.delete(id)

        return end

    def _action(self, id: str) -> Action:
        """What ProcessSwPackage is to do; a package that is not there is refused in Processing, as the table has it."""
        refusal = {"refused": f"cannot process {id}: there is no such package, `GetSwPackages` lists them"}
        try:
            package = self.transfers.get(id)
        except errors.InvalidTransferId:
            return Action(kind="up", name="unknown", version="unknown", facts=refusal)
        if package.state != PackageState.TRANSFERRED:
            refusal = {"refused": f"cannot process {id}: its transfer is {package.state}"}
            return Action(
                kind="up", name=package.name or "unknown", version=package.version or "unknown", facts=refusal
            )
        path = self.transfers.path(id)
        metadata = read_metadata(path)
        return Action(
            kind="up",
            name=metadata.name,
            version=metadata.version,
            update_number=metadata.update_number,
            package=str(path),
            facts={"from_version": self.device.running_system().version},
        )

    def _accept(self, path: Path) -> Accepted:
        """Whether a transferred file may be processed: signed, understood, and not older than what is installed."""
        try:
            with open_repository(self.device.config) as repository:
                target = repository.trusted(path)
        except (errors.Refused, errors.ConfigError) as error:
            raise errors.AuthenticationFailed(f"cannot accept the package: {error}", hint=error.hint) from error
        if target is None:
            raise errors.AuthenticationFailed(
                "cannot accept the package: it is not signed by a repository that this device trusts",
                hint="`otaflow check` fetches the newest signatures",
            )
        metadata = read_metadata(path)
        installed = self.device.running_system()
        if metadata.name == installed.name and not newer(metadata.version, installed.version):
            raise errors.OldVersion(
                f"cannot accept {metadata.name} {metadata.version}: {installed.version} is installed",
                hint="an update must be higher than what is installed",
            )
        return Accepted(metadata.name, metadata.version)

    def _recover(self) -> None:
        """Put the device in order. What fails is in the journal and the log; the interface answers all the same."""
        try:
            self.ucm.recover(verifies=False)
        except Restarting:
            log.info("the machine is restarting")
        except (errors.OtaflowError, OSError) as error:
            self._stuck = self.ucm.state not in RESTING
            log.error("cannot finish what was interrupted: %s; it is %s", error, self.ucm.state)  # noqa: TRY400

    # --- inside: the house ------------------------------------------------------------------------------------------

    def _mark_interrupted_packages(self) -> None:
        """A package that was being processed when the agent died is there to be processed again."""
        processed = (
            {action.package for action, _ in self.ucm.processed()} if self.ucm.state is not State.IDLE else set()
        )
        for package in self.transfers.packages():
            if package.state in (PackageState.PROCESSING, PackageState.PROCESSED):
                here = str(self.transfers.path(package.id)) in processed
                self.transfers.mark(package.id, PackageState.PROCESSED if here else PackageState.TRANSFERRED)

    def _keep_house(self) -> None:
        """Connect to Prefect as soon as it is there, let go of what is over, and try again what could not be undone."""
        connected = self._connect is None
        expired = retained = time.monotonic()
        while not self._ended.is_set():
            if not connected and self._connect:
                try:
                    self.ucm.runs = Visible(self._connect(), self._press, lambda: self.ucm.state)
                    connected = True
                except Exception as error:
                    log.warning("Prefect is away: %s", error)
            if time.monotonic() - expired > EXPIRE_SECONDS:
                expired = time.monotonic()
                for id in self.transfers.expire():
                    log.warning("the transfer %s was idle for too long and is given up", id)
                if self._stuck:
                    self._stuck = False
                    self._submit(self._recover)
            if self.ucm.state is State.IDLE and time.monotonic() - retained > RETENTION_SECONDS:
                retained = time.monotonic()
                self._submit(self._end_backups)
            self._ended.wait(RECONNECT_SECONDS)

    def _end_backups(self) -> None:
        """Step 11 of the update processes, once a day."""
        if self.ucm.state is State.IDLE:
            self.ucm.run(retention, {})

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


def _answer_cancel(answer: Future[None], processed: Future[None]) -> None:
    error = processed.exception()
    if isinstance(error, errors.ProcessSwPackageCancelled):
        answer.set_result(None)
    else:
        answer.set_exception(errors.CancelFailed("cannot Cancel: the processing had ended before it could be stopped"))
