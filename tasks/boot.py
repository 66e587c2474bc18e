"""Steps 9 and 10 of the update processes: the boot target is changed, and the system restarts into it."""

from otaflow import progress
from otaflow.errors import ErrorDuringActivation, ErrorNoValidProcessing, HealthCheckFailed, OtaflowError
from otaflow.package import rules
from otaflow.package.metadata import Relation
from otaflow.platform.applications import Application
from otaflow.platform.device import device
from otaflow.platform.labels import read_label
from otaflow.tasks.package import metadata_of
from otaflow.tasks.step import remember, step
from otaflow.ucm.states import State


@step("check dependencies", retries=1)
def check_dependencies(folders: list[str], removed: list[str], slot: str) -> None:
    """Check dependencies and conflicts over all software clusters as they would be, the installed ones included.

    `folders` are the extracted packages of the session, in their order; `removed` are applications that go; `slot`
    holds the system that runs then. Changes nothing. Raises MissingDependencies; ErrorNoValidProcessing when what was
    processed is gone.
    """
    try:
        packages = [metadata_of(folder) for folder in folders]
    except OSError as error:
        raise ErrorNoValidProcessing(f"cannot activate: the processed package is gone ({error})") from error
    here = device()
    changed = {metadata.name for metadata in packages} | set(removed)
    system = read_label(here.slots.path(slot))
    standing = [one for one in here.applications.all() if one.name not in changed]
    clusters = {system.name: system.version}
    clusters |= {one.name: one.version for one in standing} | {one.name: one.version for one in packages}
    rules.check_clusters(packages, clusters, [_standing(one) for one in standing])


def _standing(one: Application) -> tuple[str, list[Relation], list[Relation]]:
    """An installed application, with what it depends on and what it conflicts with."""
    return one.name, [Relation(**need) for need in one.dependencies], [Relation(**foe) for foe in one.conflicts]


@step("flip slot", retries=2, when="early")
def flip_slot(target: str, generation: str) -> None:
    """Make `target` the slot that boots next, and promise that it holds the content `generation`.

    The content is on the disk before the target names it. Raises ErrorDuringActivation when another content is there.
    """
    here = device()
    here.slots.sync(target)
    try:
        found = read_label(here.slots.path(target)).generation
    except OtaflowError as error:
        raise ErrorDuringActivation(f"cannot activate slot {target}: {error}") from error
    if found != generation:
        raise ErrorDuringActivation(f"cannot activate slot {target}: it does not hold what was processed")
    remember(previous=here.boot.target(), promise=here.boot.promise())
    here.boot.set_target(target, generation, trial=True)


@flip_slot.undo
def flip_back(previous: str, promise: str) -> None:
    """Give the boot loader back the slot it had."""
    device().boot.set_target(previous, promise)


@step("restart", retries=1)
def restart() -> bool:
    """Restart into the boot target. False: the machine is going down.

    It has no undo: a restart takes nothing away, and the flow ends cleanly when the machine goes down.
    """
    boot = device().boot
    progress.tell("note", f"restarting into slot {boot.target()}")
    return boot.restart()


def new_system_was_started() -> bool:
    """Whether the device was started since Verifying began, be it into what the boot loader fell back to."""
    return device().boots.count() > _trial_began()


def old_system_must_start() -> bool:
    """Whether what was taken back is still running: the new system was started, and nothing since the last undo.

    It may have started after the rollback was decided: a client asks while the restart is made, the power is cut.
    """
    session = device().journal.session
    if not any(action.of_system for action in session.actions):
        return False
    undone = session.undone_boots
    return _trial_began() < undone and device().boots.count() <= undone


def _trial_began() -> int:
    """The boot counter when the activation ended; a monitor that goes on after a failed Rollback is no new trial."""
    return device().journal.session.boots_at(State.VERIFYING, origin=State.ACTIVATING)


@step("confirm slot", retries=2)
def confirm_slot() -> None:
    """Trust the slot that runs: the boot loader falls back no more, the trial's deadline counts no more.

    It has no undo: a rollback flips the boot target to the former slot, which is trusted then.
    """
    here = device()
    here.boot.confirm()
    here.marks.note_confirmed()


@step("check running slot", retries=1)
def check_running_slot() -> str:
    """The slot that runs, when it is the one that was to start and holds what was promised. Changes nothing.

    Raises HealthCheckFailed: the boot loader fell back, or the content is not the promised one.
    """
    here = device()
    running, target = here.boot.running(), here.boot.target()
    if running != target:
        tried = f" in {here.config.boot.tries} tries" if here.boot.tries_left() == 0 else ""
        raise HealthCheckFailed(f"slot {target} did not start{tried}: the boot loader went back to slot {running}")
    label = read_label(here.slots.path(running))
    if label.generation != here.boot.promise():
        raise HealthCheckFailed(f"slot {running} holds {label.version}, not the content that was to start")
    return running
