"""The trial of a new system over its boots: which of them failed, which a power cut ended, what the boot loader counts.

A hang, a crash of the kernel, the trial's deadline and a verification whose process died are the new system's fault. A
power cut is not: its start is given back to the boot loader's count.
"""

import logging
from dataclasses import dataclass, field, fields
from typing import Any

from otaflow import history
from otaflow.errors import BootTargetDamaged, OtaflowError
from otaflow.platform.boots import Ending
from otaflow.platform.device import Device
from otaflow.platform.flight_recorder import read_journal, read_slot_journal
from otaflow.platform.labels import read_label
from otaflow.records import NO_ROOM
from otaflow.ucm.states import State

log = logging.getLogger("otaflow.ucm")

ORDERLY = 10
"""So many orderly restarts may interrupt a trial: they are nobody's fault, unless the new system makes them."""


@dataclass
class Trial:
    """What is noted in the journal. `boot`: the boots before it are judged; `begun`: a verification was, in this one.

    `failed` and `cuts` are how many boots failed, and were ended by a power cut; `ends` are those endings that count.
    `begins` is how often a verification was begun at all: orderly restarts have an end, too.
    """

    boot: int
    begun: bool = False
    failed: int = 0
    cuts: int = 0
    begins: int = 0
    ends: list[str] = field(default_factory=list)

    @classmethod
    def of_note(cls, noted: dict[str, Any]) -> "Trial":
        """The trial as it was noted, maybe by the otaflow of the other slot, which may be a newer one."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in noted.items() if name in known})


def count_boot(device: Device) -> None:
    """Count this start, once. On a full disk that waits, where nothing is going on. Raises OSError."""
    try:
        device.boots.note_boot()
    except OSError as error:
        if error.errno not in NO_ROOM or device.journal.state is not State.IDLE:
            raise
        log.error("cannot count this start: %s; it is counted once there is room on the disk", error)  # noqa: TRY400


def judge_boots(device: Device) -> Trial:
    """How the trial stands, with the boots that have ended since it was last noted. Changes nothing."""
    session, now = device.journal.session, device.boots.count()
    flipped = session.boots_at(State.VERIFYING, origin=State.ACTIVATING)
    trial = Trial.of_note(session.notes.get("trial") or {"boot": flipped})
    former = any(action.of_system for action in session.actions)  # the boot of the flip was the former system's
    ended = device.boots.endings(max(trial.boot, flipped + 1) if former else trial.boot)
    trial.failed += sum(ending.failed for ending in ended)
    trial.cuts += sum(ending is Ending.POWER_CUT for ending in ended)
    trial.ends = [*trial.ends, *(str(ending) for ending in ended if ending.failed)][-8:]
    if trial.boot != now:
        trial.boot, trial.begun = now, False
    return trial


def settle_boot(device: Device) -> None:
    """Once in each boot of a slot on trial: systemd's units are told, a try that a power cut has cost is given back.

    A device whose power is cut again and again gets `health.power_cuts` back; then the boot loader's count ends it.
    """
    boot, journal = device.boot, device.journal
    if journal.state is not State.VERIFYING or boot.tries_left() is None or boot.running() != boot.target():
        return
    device.marks.note_trial()
    trial, noted = judge_boots(device), journal.session.notes.get("trial", {})
    if trial.boot == noted.get("boot"):
        return
    journal.note(trial=vars(trial))
    if trial.boot - 1 <= journal.session.boots_at(State.VERIFYING, origin=State.ACTIVATING):
        return  # that boot was the former system's
    _keep_former_boot(device, trial)
    last = device.boots.endings(trial.boot - 1)
    if last == [Ending.POWER_CUT] and trial.cuts < device.config.health.power_cuts:
        log.warning("the power was cut while slot %s was on trial: that start does not count", boot.target())
        boot.give_try_back()


def _keep_former_boot(device: Device, trial: Trial) -> None:
    """The boot before this one failed: its journal may be gone after the next ones."""
    for ending in device.boots.endings(trial.boot - 1):
        if ending.failed and device.config.boot.restart != "switch":
            title = f"boot {trial.boot - 1}, which {ending} ended"
            device.recorder.keep(device.journal.session.id, title, lambda: read_journal(-1))


def keep_boot_log(device: Device) -> None:
    """The trial has failed: keep what systemd's journal has of it, before anything is brought back. Never raises."""
    session = device.journal.session
    if device.config.boot.restart == "switch" or not any(action.of_system for action in session.actions):
        return
    try:
        running, target = device.boot.running(), device.boot.target()
    except (OtaflowError, OSError):
        return
    if running != target:
        title = f"slot {target}, which did not start: the last boot of which it has a journal"
        slot = device.slots.place(target)
        device.recorder.keep(session.id, title, lambda: read_slot_journal(slot))
    else:
        title = f"slot {running}: the boot in which the trial failed"
        device.recorder.keep(session.id, title, read_journal)


def has_fallen_back(device: Device) -> bool:
    """Whether the boot loader gave the system on trial up, and started the other one."""
    return device.journal.state is State.VERIFYING and _runs_another_slot(device) and _was_started(device)


def has_given_way(device: Device) -> bool:
    """Whether a system that was verified did not start again, before its session is over: the other one runs."""
    journal = device.journal
    of_system = any(action.of_system for action in journal.session.actions)
    return journal.state is State.ACTIVATED and of_system and _runs_another_slot(device)


def must_recover(device: Device) -> bool:
    """Whether anything is to be put in order: after a restart or a kill, or as a verified system gave way."""
    return device.journal.needs_recovery or has_given_way(device)


def _was_started(device: Device) -> bool:
    return device.boots.count() > device.journal.session.boots_at(State.VERIFYING, origin=State.ACTIVATING)


def _runs_another_slot(device: Device) -> bool:
    return device.boot.running() != device.boot.target()


def put_target_right(device: Device) -> str:
    """In Idle: another slot runs than the boot target, which did not start. What runs is the target from now on.

    An alarm in the history says so, which is returned; "" where nothing is the matter. The caller holds the lock.
    A target on trial that nobody will verify, since nothing is going on, is trusted: it runs.
    """
    if device.journal.state is not State.IDLE:
        return ""
    try:
        another = _runs_another_slot(device)
    except BootTargetDamaged as error:
        return _set_to_running(device, f"{error}; slot {device.boot.running()} runs, and starts next from now on")
    if not another:
        if device.boot.tries_left() is not None:
            log.warning("slot %s is on trial, but nothing is going on: it is trusted from now on", device.boot.target())
            device.boot.confirm()
            device.marks.note_confirmed()
        return ""
    running, target = device.boot.running(), device.boot.target()
    try:
        other = read_label(device.slots.path(target))
        what = f"slot {target} ({other.name} {other.version})"
    except OtaflowError:
        what = f"slot {target}, in which there is no system any more,"
    return _set_to_running(
        device, f"{what} was to start, and did not: slot {running} runs, and starts next from now on"
    )


def _set_to_running(device: Device, why: str) -> str:
    log.error("%s", why)
    try:
        system = device.running_system()
        name, version, generation = system.name, system.version, system.generation
    except OtaflowError:  # gone back to by hand, it may have no label any more; it runs all the same
        name, version, generation = device.config.device.name, "unknown", ""
    device.history.add(
        key=f"boot.{device.boots.boot_id}",
        name=name,
        version=version,
        action=history.BOOT,
        resolution=history.FAILED,
        error="SlotDidNotStart",
        why=why,
    )
    device.boot.set_target(device.boot.running(), generation)
    return why
