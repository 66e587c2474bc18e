"""`otaflow demo`: the whole way on a device made for it: a good update, then a sick one that is rolled back; and an
application with a database, which goes the same way (demo_notes.py).

`--stage` makes the device and the repository only, for somebody who wants to go that way himself.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from otaflow.cli import demo_notes
from otaflow.cli.common import Json, print_json
from otaflow.cli.demo_site import EXAMPLE, NOTES, START_SECONDS, SYSTEM, Site, prefect_environment
from otaflow.errors import HealthCheckFailed, OtaflowError

if TYPE_CHECKING:
    from rich.console import Console

    from otaflow.flows.session import PrefectRuns
    from otaflow.platform.device import Device

GOOD, SICK = "1.1.0", "1.2.0"
SEARCH = (
    "connect to the package management server",
    "check ssl certificate of connection",
    "authenticate",
    "update package repository",
    "find new packages",
    "find packages of application",
)
CONFIGURATION = '\ngreeting = "friendly"\n'
STAGE_MINUTES = 1.0
"""How often the stage's device polls: somebody watches."""
ENDS = [
    (SYSTEM, "Update", GOOD, "kActivated"),
    (SYSTEM, "Update", SICK, "kVerificationFailed"),
    *((NOTES, *end) for end in demo_notes.ENDS),
]


def demo(
    *,
    keep: Annotated[bool, Parameter(negative=(), help="Leave the device and the servers running.")] = False,
    stage: Annotated[
        bool, Parameter(negative=(), help="Make the device and its repository, install nothing, and leave them.")
    ] = False,
    folder: Annotated[Path | None, Parameter(help="Make it in this new folder, not in a temporary one.")] = None,
    directories: Annotated[bool, Parameter(negative=(), help="Make the device of directories, without btrfs.")] = False,
    remove: Annotated[Path | None, Parameter(help="Remove what --keep or --stage left in this folder.")] = None,
    json: Json = False,
) -> None:
    """Show good updates and sick ones that are rolled back, of the system and an application; then remove everything.

    It makes a device (btrfs on a loop file where it may, directories otherwise), a signed repository and its TLS
    server, and shows the runs on a Prefect server of its own, or on that of PREFECT_API_URL. With --stage it makes a
    device to try `otaflow up` on (docs/operating.md), and nothing more.
    """
    if remove:
        Site.find(remove).remove()
        print(f"{remove}: stopped and removed")
        return
    from rich.console import Console

    console = Console(stderr=json, highlight=False)
    why_no_btrfs = "not wanted" if directories else ""
    with _staged(folder, keep=keep or stage) as site:
        if stage:
            made = _set_stage(site, console, why_no_btrfs)
            print_json(made) if json else _say_how_to_go_on(site, console)
            return
        answer = _tell_story(site, console, why_no_btrfs=why_no_btrfs)
        if json:
            print_json(answer)
        else:
            _show_result(site, console, answer)
        if keep and not json:
            _say_where(site, console, answer["runs"])
    if answer["unexpected"]:
        raise OtaflowError(f"the demo did not end as it should: {'; '.join(answer['unexpected'])}")


# --- inside -----------------------------------------------------------------------------------------------------------


@contextmanager
def _staged(folder: Path | None, *, keep: bool) -> Iterator[Site]:
    """The demo's folder; removed with all that runs in it, unless the story came to its end and is to be kept."""
    if folder and folder.exists():
        raise OtaflowError(f"cannot make the demo in {folder}: it is there already", hint="name a new folder")
    if folder:
        folder.mkdir(parents=True)
    site = Site(folder or Path(tempfile.mkdtemp(prefix="otaflow-demo-")), outlives=keep)
    site.save()
    kept = False
    try:
        yield site
        kept = keep
    finally:
        if not kept:
            former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave half of it behind
            _drain()
            site.remove()
            signal.signal(signal.SIGINT, former)


def _drain() -> None:
    if "prefect.events" in sys.modules:
        from otaflow.flows.drain import drain_prefect

        drain_prefect()


def _tell_story(site: Site, console: "Console", *, why_no_btrfs: str) -> dict[str, Any]:
    """Make everything, update, and say how it ended as plain data."""
    from otaflow import work
    from otaflow.cli.report import read_status

    began = time.monotonic()
    console.print("[bold]A device, a repository, its server[/]")
    api = _choose_prefect(site)
    storage = _make(site, console, why_no_btrfs, [GOOD, SICK], [demo_notes.FIRST, demo_notes.GOOD, *demo_notes.SICK])
    if "ui" in site.record:
        site.wait_for("prefect", f"{api}/health")
    console.print(f"  Prefect     {api}", soft_wrap=True)

    device = work.load_device(site.config)
    installed: list[str] = []
    refused = ""
    with _view(console) as hide_search, work.working(device) as (ucm, runs):
        console.print("\n[bold]What is new?[/]")
        for target in work.find_new(ucm):
            console.print(f"          {target.name} {target.version}: {target.description}")
        hide_search()
        console.print("\n[bold]Install it, one after the other[/]")
        try:
            for version in work.install_new(ucm):
                installed.append(version)
                console.print(f"[bold green]{version} is installed[/]\n")
        except HealthCheckFailed as error:
            refused = str(error)
            console.print("[bold yellow]taken back[/]")
        notes = demo_notes.tell_notes(ucm, site, console)
        if site.outlives and runs:
            _wait_until_told(runs)
    return {
        "seconds": round(time.monotonic() - began, 1),
        "storage": storage,
        "installed": installed,
        "refused": refused,
        "application": {"name": NOTES, "url": notes.url, "steps": notes.steps},
        "unexpected": [*_find_unexpected(device), *notes.unexpected],
        "status": read_status(device),
        "history": [{key: value for key, value in record.items() if key != "key"} for record in device.history.read()],
        "folder": str(site.folder),
        "config": str(site.config),
        "prefect": api,
        "runs": [record["run"] for record in device.journal.file.read() if "run" in record],
    }


@contextmanager
def _view(console: "Console") -> Iterator[Callable[[], None]]:
    """The work is shown; from the moment that what is given is called, without the search, which is the same again."""
    from otaflow.cli.view import View
    from otaflow.progress import Event

    hidden: set[str] = set()

    class Brief(View):
        def show(self, event: Event) -> None:
            if not (event.kind == "done" and event.name in hidden):
                super().show(event)

    with Brief(console):
        yield lambda: hidden.update(SEARCH)


def _wait_until_told(runs: "PrefectRuns") -> None:
    """Prefect is told behind our backs; who looks at what is left wants to see all of it."""
    end = time.monotonic() + START_SECONDS
    while runs.behind() and time.monotonic() < end:
        runs.catch_up()
        time.sleep(0.05)


def _make(site: Site, console: "Console", why_no_btrfs: str, systems: list[str], notes: list[str]) -> str:
    """The device, its repository with these versions, and the repository's server; returns what the storage is.

    The other versions of the examples are built, and not published.
    """
    storage = site.make_storage(why_no_btrfs)
    site.make_repository(systems, [version for version in (GOOD, SICK) if version not in systems])
    site.publish_notes(notes, [version for version in demo_notes.SICK if version not in notes])
    repository = site.start_repository()
    site.make_device()
    console.print(f"  device      {site.device}: {SYSTEM} 1.0.0, {storage}", soft_wrap=True)
    offered = f"{SYSTEM} {', '.join(systems)}; {NOTES} {', '.join(notes)}; signed"
    console.print(f"  repository  {repository}: {offered}", soft_wrap=True)
    site.wait_for("repository", repository)
    return storage


def _set_stage(site: Site, console: "Console", why_no_btrfs: str) -> dict[str, Any]:
    """A device that has an update to come, an application to install, and sick ones that can be published later."""
    console.print("[bold]A device, a repository, its server[/]")
    storage = _make(site, console, why_no_btrfs, [GOOD], [demo_notes.FIRST, demo_notes.GOOD])
    site.add_schedule(STAGE_MINUTES)
    return {"storage": storage, "folder": str(site.folder), "config": str(site.config), "notes": site.notes_url}


def _choose_prefect(site: Site) -> str:
    """The API's URL: the user's own server, or one in the demo's folder, which Prefect finds by the environment."""
    if api := os.environ.get("PREFECT_API_URL"):
        return api
    os.environ.update(prefect_environment(site.folder))
    os.environ["PREFECT_API_URL"] = f"{site.start_prefect()}/api"
    return os.environ["PREFECT_API_URL"]


def _find_unexpected(device: "Device") -> Iterator[str]:
    """What is not as the story promises: the running system, files and configuration, the other slot, the history."""
    from otaflow.cli.report import read_status
    from otaflow.platform.describe import describe

    status = read_status(device)
    if (status["ucm_state"], status["system_version"]) != ("Idle", GOOD):
        yield f"{status['system_version']} runs, {status['ucm_state']}"
    slot = device.slots.path(device.boot.running())
    for name in ("bin/hello", "share/words"):
        if (slot / name).read_bytes() != (EXAMPLE / GOOD / "assets" / name).read_bytes():
            yield f"{name} is not that of {GOOD}"
    if sorted(name for name in describe(slot / "share")) != [".", "words"]:
        yield f"{slot / 'share'} holds other files too"
    first = (EXAMPLE / "1.0.0" / "etc" / "hello.conf").read_text()
    if (device.configuration / "hello.conf").read_text() != first.rstrip("\n") + CONFIGURATION:
        yield "the configuration is not that of " + GOOD
    ends = [
        (record["name"], record["action"], record["version"], record["resolution"]) for record in device.history.read()
    ]
    if ends != ENDS:
        yield f"the history is {ends}"
    if status["slots"][device.spare()]["version"] != "1.0.0":
        yield "the other slot does not hold 1.0.0 again"


def _show_result(site: Site, console: "Console", answer: dict[str, Any]) -> None:
    from otaflow.cli.report import history, status

    console.print("\n[bold]The device now[/]")
    status(config=site.config)
    history(config=site.config)
    if not answer["unexpected"]:
        console.print(f"[bold green]As expected[/]: {GOOD} runs, {SICK} is gone; {answer['seconds']} s.")
        gone = " and ".join(demo_notes.SICK)
        console.print(f"{NOTES} {demo_notes.GOOD} answers, with its data; {gone} are gone.")


def _say_how_to_go_on(site: Site, console: "Console") -> None:
    program = "otaflow" if not sys.argv else sys.argv[0]
    lines = [
        "\n[bold]Nothing is installed yet.[/] To operate the device in Prefect's UI (docs/operating.md):",
        f"    {program} up -c {site.config}",
        f"  to publish a second update, a sick one, when {GOOD} is installed:",
        f"    {program} repo publish {site.repository} {site.folder}/packages/{SYSTEM}-{SICK}.nsu",
        f"  to install an application, which answers at {site.notes_url} then, and has an update to come:",
        f"    {program} app install {NOTES} --version {demo_notes.FIRST} -c {site.config}",
        "  to stop the repository's server and remove everything, after `otaflow up` was ended:",
        f"    {program} demo --remove {site.folder}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=line.startswith("\n"))


def _say_where(site: Site, console: "Console", runs: list[str]) -> None:
    """Where to look at what --keep left, and how to be rid of it."""
    ui = os.environ["PREFECT_API_URL"].removesuffix("/api")
    console.print("\n[bold]Left running[/]")
    for (name, _, version, _), run in zip(ENDS, runs, strict=False):
        console.print(f"  {name} {version}: {ui}/runs/flow-run/{run}", soft_wrap=True)
    console.print(f"  {NOTES}: {site.notes_url}", soft_wrap=True)
    console.print("\n  to work with the device:", soft_wrap=True)
    console.print(f"    export OTAFLOW_CONFIG={site.config} PREFECT_API_URL={ui}/api", soft_wrap=True, markup=False)
    console.print("    otaflow status", soft_wrap=True)
    program = "otaflow" if not sys.argv else sys.argv[0]
    console.print("  to stop the servers and remove everything:", soft_wrap=True)
    console.print(f"    {program} demo --remove {site.folder}", soft_wrap=True, markup=False)
