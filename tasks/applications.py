"""One application: its new files are prepared, it is asked to close and ended, its files are exchanged.

spec/update-processes.md, application updates. Starting it again is the services' part (services.py).
"""

import logging
import time
from pathlib import Path
from uuid import uuid4

from otaflow.errors import ErrorDuringActivation, InvalidManifest, NothingToRollback, OtaflowError
from otaflow.package.metadata import Metadata
from otaflow.platform.applications import UNITS, Application, read_application, write_application
from otaflow.platform.copying import delete_tree
from otaflow.platform.device import device
from otaflow.platform.overlay import overlay
from otaflow.platform.processes import end_processes, find_processes
from otaflow.tasks.package import metadata_of
from otaflow.tasks.step import remember, step, stop_if_asked

log = logging.getLogger("otaflow.applications")

LOOK_SECONDS = 0.2


@step("prepare files", retries=2)
def prepare_files(folder: str) -> str:
    """Make the application's new tree beside the present one, which is not touched; returns its generation.

    It is a copy of the present tree with the package's `files` over it, and without what the metadata removes. On
    btrfs it costs what changed.
    """
    here = device()
    metadata = metadata_of(folder)
    data = here.applications.data(metadata.name)
    memory = remember(name=metadata.name, kept=kept_tree(), made_data=not data.is_dir())
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
def remove_prepared(name: str, kept: str, made_data: bool) -> None:
    """Remove the tree that was prepared; the application's own is another. Data of one that was not there goes."""
    here = device()
    here.trees.remove(here.applications.aside(name, kept))
    if made_data:
        delete_tree(here.applications.data(name))


@step("ask application to close", key="name")
def ask_to_close(*, name: str, version: str, priority: bool) -> None:
    """Tell the application that it is about to be ended, and give it time; nothing where it does not run.

    It is waited for until nothing of it runs, or it has acknowledged the message, or its time is over: `close_seconds`,
    and what was put off. Changes nothing.
    """
    here = device()
    if is_closed(name):
        return
    from otaflow.policy.closing import Closing, Request
    from otaflow.tasks.policy import memory, request_close

    settings = here.config.applications
    closing = Closing(here.nvm)
    if closing.find(name) is None:
        most = 0 if priority else settings.defers
        message = request_close(name, version, settings.close_seconds, 0 if priority else settings.defer_seconds)
        closing.ask(Request(name, version, message, settings.close_seconds, most=most))
    began = time.monotonic()
    try:
        while (request := closing.find(name)) and time.monotonic() - began < request.seconds:
            if is_closed(name) or (request.message and memory().inbox.has_acknowledged(name, request.message)):
                break
            here.stop_work.wait(LOOK_SECONDS)
            stop_if_asked()
    finally:
        closing.end(name)


@step("stop application", when="restarted", key="name")
def stop_application(*, name: str, services: list[str]) -> None:
    """Stop its services, so that nobody starts them before the update is through, and end what else runs of it.

    `services` are those of the version that comes: they, too, start when it is there and not before. Raises
    ErrorDuringActivation when it cannot be closed fully.
    """
    here = device()
    former = here.applications.services(name)
    every = list(dict.fromkeys([*former, *services]))
    memory = remember(name=name, services=every, running=[one for one in former if here.services.state(one).active])
    close_application(name, memory["services"])
    here.services.unlink(here.applications.units(name))


@stop_application.undo
def start_former(name: str, services: list[str], running: list[str]) -> None:
    """Let the former services start again, and start those that ran."""
    here = device()
    here.services.link(here.applications.units(name))
    for service in services:
        here.services.release(service)
    for service in running:
        here.services.start(service)


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
        check_former_tree(name, kept)
    device().applications.switch_back(name, kept, generation)


def check_former_tree(name: str, kept: str) -> None:
    """Raise NothingToRollback when one of the application's two trees, the present and the former one, is not there."""
    applications = device().applications
    for tree in (applications.path(name), applications.aside(name, kept)):
        try:
            read_application(tree)
        except OtaflowError as error:
            raise NothingToRollback(
                f"cannot roll back {name}: its former files are not there any more ({error})",
                hint="install the application anew",
            ) from error


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
    present = {service for one in here.applications.all() for service in one.services}
    for service in here.applications.kept_services(name, kept):
        if service not in present:  # it is gone with the former version: nothing of it is held any more
            here.services.release(service)
    here.trees.remove(aside)


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


def kept_tree(action: int | None = None) -> str:
    """The name under which this session's action prepares a tree, and keeps the former one."""
    session = device().journal.session
    return f"{session.id}-{session.current if action is None else action}"


def _check_services(metadata: Metadata, units: Path) -> None:
    """Its services can be used as they will be. Raises ServiceFailed; InvalidManifest for another one's units."""
    here = device()
    own = {path.name for path in units.glob("*")} if units.is_dir() else set()
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
