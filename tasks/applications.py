"""One application: its new files are prepared, it is asked to close and ended, its files are exchanged.

spec/update-processes.md, application updates. Starting it again is the services' part (services.py).
"""

import logging
import time
from pathlib import Path
from uuid import uuid4

from otaflow.errors import ErrorDuringActivation, InvalidManifest, NothingToRollback
from otaflow.package.metadata import Metadata
from otaflow.platform.applications import UNITS, Application, read_services, write_application
from otaflow.platform.copying import delete_tree
from otaflow.platform.device import device
from otaflow.platform.overlay import overlay
from otaflow.platform.processes import end_processes, find_processes
from otaflow.records import RESERVE
from otaflow.tasks.package import metadata_of
from otaflow.tasks.program import hold_reserve, release_reserve
from otaflow.tasks.step import remember, step, stop_if_asked

log = logging.getLogger("otaflow.applications")

LOOK_SECONDS = 0.2


@step("prepare files", retries=2)
def prepare_files(folder: str, kept: str) -> str:
    """Make the application's new tree beside the present one, which is not touched; returns its generation.

    It lies under the name `kept`, and is a copy of the present tree with the package's `files` over it, and without
    what the metadata removes. On btrfs it costs what changed. Room for taking the session back is kept from here on.
    """
    here = device()
    metadata = metadata_of(folder)
    data = here.applications.data(metadata.name)
    reserve = f"{RESERVE}-{here.journal.session.current}"
    memory = remember(name=metadata.name, kept=kept, made_data=not data.is_dir(), reserve=reserve)
    hold_reserve(memory["reserve"])
    data.mkdir(parents=True, exist_ok=True)
    aside = here.applications.aside(metadata.name, memory["kept"])
    here.trees.remove(aside)
    present = here.applications.path(metadata.name)
    if present.is_dir():
        here.trees.clone(present, aside)
    else:
        here.trees.create(aside)
    files = Path(folder) / "files"
    if files.is_dir():
        overlay(files, aside, metadata.remove, before_each=stop_if_asked)
    application = _label(metadata)
    write_application(aside, application)
    _check_services(metadata, aside / UNITS)
    here.trees.sync(aside)
    return application.generation


@prepare_files.undo
def remove_prepared(name: str, kept: str, made_data: bool, reserve: str = "") -> None:
    """Remove the tree that was prepared; the application's own is another. Data of one that was not there goes.

    `reserve`: "" in the journal of a former otaflow, which kept none for an application.
    """
    here = device()
    if reserve:
        release_reserve(reserve)
    here.trees.remove(here.applications.aside(name, kept))
    if made_data:
        delete_tree(here.applications.data(name))


@step("ask application to close", when="restarted", key="name")
def ask_to_close(*, name: str, version: str, priority: bool) -> None:
    """Tell the application that it is about to be ended, and give it time; nothing where it does not run.

    It is waited for until nothing of it runs, or it has acknowledged the message, or its time is over: `close_seconds`,
    and what was put off. What ran before it was asked is remembered: it may end itself now.
    """
    here = device()
    remember(running=[one for one in here.applications.services(name) if here.services.state(one).active])
    if is_closed(name):
        return
    from otaflow.policy.closing import Closing, Request
    from otaflow.tasks.policy import memory, request_close

    settings = here.config.applications
    session = here.journal.session.id
    closing = Closing(here.nvm)
    if closing.find(name, session) is None:
        most = 0 if priority else settings.defers
        message = request_close(name, version, settings.close_seconds, 0 if priority else settings.defer_seconds)
        closing.ask(Request(name, version, session, message, settings.close_seconds, most=most))
    began = time.monotonic()
    try:
        while (request := closing.find(name, session)) and time.monotonic() - began < request.seconds:
            if is_closed(name) or (request.message and memory().inbox.has_acknowledged(name, request.message)):
                break
            here.stop_work.wait(LOOK_SECONDS)
            stop_if_asked()
    finally:
        closing.end(name)


@ask_to_close.undo_called("start application again")
def start_what_ran(running: list[str]) -> None:
    """Start what ran before."""
    for service in running:
        device().services.start(service)


@step("stop application", when="restarted", key="name")
def stop_application(*, name: str, services: list[str]) -> None:
    """Stop its services, so that nobody starts them before the update is through, and end what else runs of it.

    `services` are those of the version that comes: they, too, start when it is there and not before. Raises
    ErrorDuringActivation when it cannot be closed fully.
    """
    here = device()
    every = list(dict.fromkeys([*here.applications.services(name), *services]))
    memory = remember(name=name, services=every)
    close_application(name, memory["services"])
    here.services.unlink(here.applications.units(name))


@stop_application.undo
def release_former(name: str, services: list[str]) -> None:
    """Let the former services start again."""
    here = device()
    here.services.link(here.applications.units(name))
    for service in services:
        here.services.release(service)


@step("close applications")
def close_again(stopped: dict[str, list[str]]) -> None:
    """Before anything is brought back: nothing runs of what the session stopped, whoever started it since.

    `stopped`: the applications, each with its services.
    """
    for name, services in stopped.items():
        close_application(name, services)


@step("replace files", retries=2, when="early", key="name")
def replace_files(*, name: str, kept: str, generation: str) -> None:
    """Let the prepared tree be the application, in one exchange; the former one is kept."""
    here = device()
    memory = remember(name=name, kept=kept, generation=generation, former=here.applications.path(name).is_dir())
    here.applications.switch(name, memory["kept"], memory["generation"])


@replace_files.undo
def put_back_files(name: str, kept: str, generation: str, former: bool) -> None:
    """Let the former tree be the application again. NothingToRollback when it is gone: the present one stays then."""
    if former:
        check_former_tree(name, kept, generation)
    device().applications.switch_back(name, kept, generation)


def check_former_tree(name: str, kept: str, generation: str) -> None:
    """Raise NothingToRollback when the tree before that of `generation` is neither kept nor back already."""
    if not device().applications.has_former(name, kept, generation):
        raise NothingToRollback(
            f"cannot roll back {name}: its former files are not there any more", hint="install the application anew"
        )


@step("remove application", retries=2, when="early", key="name")
def remove_application(*, name: str, kept: str) -> None:
    """Take the application away; its tree is kept until the removal is committed. Its data stays."""
    memory = remember(name=name, kept=kept)
    device().applications.take_away(name, memory["kept"])


@remove_application.undo
def put_back_application(name: str, kept: str) -> None:
    """Give the application back."""
    device().applications.give_back(name, kept)


@step("forget former files", retries=2)
def forget_tree(name: str, kept: str) -> None:
    """Give up the application's former tree: the update is committed, there is no undo."""
    here = device()
    aside = here.applications.aside(name, kept)
    release_gone(aside)
    here.trees.remove(aside)


def release_gone(tree: Path) -> None:
    """Services of a former `tree` that no application has any more are held no more."""
    here = device()
    present = {service for one in here.applications.all() for service in one.services}
    for service in read_services(tree):
        if service not in present:
            here.services.release(service)


def is_closed(name: str) -> bool:
    """Whether nothing of the application runs."""
    here = device()
    if any(here.services.state(service).active for service in here.applications.services(name)):
        return False
    return not find_processes([here.applications.path(name)])


def close_application(name: str, services: list[str]) -> None:
    """Hold and stop the services, end what else runs of the application's files. Raises ErrorDuringActivation."""
    here = device()
    for service in services:
        here.services.hold(service)
    for service in services:
        here.services.stop(service)
    settings = here.config.applications
    left = end_processes([here.applications.path(name)], grace=settings.end_seconds)
    if left:
        running = ", ".join(f"{one.command} ({one.pid}, {one.why})" for one in left)
        raise ErrorDuringActivation(
            f"cannot close {name}: {running} cannot be ended",
            hint="restart the device, and try again",
        )


def _check_services(metadata: Metadata, units: Path) -> None:
    """Its services can be used as they will be. Raises ServiceFailed; InvalidManifest for another one's units."""
    here = device()
    own = {path.name for path in units.glob("*")} if units.is_dir() else set()
    if missing := {name for name in own if name.endswith(".service")} - set(metadata.services.restart):
        raise InvalidManifest(
            f"cannot install {metadata.name} {metadata.version}: `services.restart` does not name {min(missing)}",
            hint="it names each unit file in `services/`: what is not stopped and started would run on as it was",
        )
    for other in here.applications.all():
        both = own & {path.name for path in here.applications.units(other.name).glob("*")}
        if other.name != metadata.name and both:
            raise InvalidManifest(
                f"cannot install {metadata.name} {metadata.version}: {min(both)} is a service of {other.name}",
                hint="services of two applications have different names",
            )
    for service in [*metadata.services.restart, *metadata.services.reload]:
        here.services.check(service, units)


def _label(metadata: Metadata) -> Application:
    return Application(
        metadata.name,
        metadata.version,
        metadata.update_number,
        uuid4().hex,
        services=list(metadata.services.restart),
        dependencies=[one.model_dump() for one in metadata.dependencies],
        conflicts=[one.model_dump() for one in metadata.conflicts],
    )
