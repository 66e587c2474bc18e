"""The demo's application: notes, a web service with a database. Installed, updated with its data, twice brought back.

All that is said of it here was asked of the service over HTTP, as any client does.
"""

import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otaflow.asked import Asked
from otaflow.cli.demo_site import NOTES, START_SECONDS, Site
from otaflow.errors import HealthCheckFailed, OtaflowError

if TYPE_CHECKING:
    from rich.console import Console

    from otaflow.platform.device import Device
    from otaflow.service import Ucm

FIRST, GOOD = "1.0.0", "1.1.0"
SICK = {"1.2.0": "its migration fails half-way", "1.3.0": "its service does not come up"}
ENDS = [
    ("Install", FIRST, "kActivated"),
    ("Update", GOOD, "kActivated"),
    *(("Update", version, "kVerificationFailed") for version in SICK),
]
WRITTEN = ["Buy milk", "Call Ann"]
LATER = ("Ann", "Milk is here")
"""Author and text of the note that is written once notes have authors."""
FIRST_ANSWER = {"version": FIRST, "schema": 1, "notes": WRITTEN}
GOOD_ANSWER = {"version": GOOD, "schema": 2, "notes": [*(f"unknown: {text}" for text in WRITTEN), ": ".join(LATER)]}


@dataclass
class Story:
    """What happened: of each version what the service answered afterwards, and why it was taken back, if it was."""

    url: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def keep(self, version: str, answer: dict[str, Any], wanted: dict[str, Any], why: str = "") -> None:
        """Note what `version` led to, and whether that is what it should lead to."""
        self.steps.append({"version": version, "taken_back": why, "answer": answer})
        if answer != wanted:
            self.unexpected.append(f"after notes {version} the service answers {answer}")
        if bool(why) != (version in SICK):
            self.unexpected.append(f"notes {version} was {'taken back' if why else 'kept'}")


def tell_notes(ucm: "Ucm", site: Site, console: "Console") -> Story:
    """Go the application's way, and show it."""
    story = Story(site.notes_url)
    console.print("\n[bold]An application, a web service with a database[/]")
    _install(ucm, FIRST, anew=True)
    console.print(f"[bold green]{NOTES} {FIRST} is installed[/]: {story.url}", soft_wrap=True)
    for text in WRITTEN:
        write(story.url, text)
    story.keep(FIRST, _show(console, ask(story.url)), FIRST_ANSWER)
    console.print("\n[bold]Its update, which changes the database[/]")
    _install(ucm, GOOD)
    console.print(f"[bold green]{NOTES} {GOOD} is installed[/]: each note has an author")
    write(story.url, LATER[1], LATER[0])
    story.keep(GOOD, _show(console, ask(story.url)), GOOD_ANSWER)
    for version, what in SICK.items():
        console.print(f"\n[bold]{version}: {what}[/]")
        why = _install(ucm, version)
        console.print("[bold yellow]taken back[/], files and data" if why else f"[bold red]{version} is installed[/]")
        story.keep(version, _show(console, ask(story.url)), GOOD_ANSWER, why)
    story.unexpected.extend(_find_unexpected(ucm.device))
    return story


def ask(url: str) -> dict[str, Any]:
    """What the service answers; one that was just started is waited for. OtaflowError when it does not answer."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            answer: dict[str, Any] = _request(urllib.request.Request(url))
            return answer
        except (OSError, ValueError) as error:
            if time.monotonic() > end:
                raise OtaflowError(f"cannot ask {NOTES} at {url}: {error}") from error
            time.sleep(0.05)


def write(url: str, text: str, author: str = "") -> None:
    """Have the service keep a note. OSError when it does not."""
    _request(urllib.request.Request(f"{url}notes", text.encode(), {"X-Author": author} if author else {}))


# --- inside -----------------------------------------------------------------------------------------------------------


def _install(ucm: "Ucm", version: str, *, anew: bool = False) -> str:
    """What `otaflow app install` and `otaflow app update` do; why it was taken back, if it was."""
    from otaflow import work

    try:
        for _ in work.install_new(ucm, Asked(name=NOTES, version=version, anew=anew)):
            pass
    except HealthCheckFailed as error:
        return str(error)
    return ""


def _request(request: urllib.request.Request) -> Any:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=START_SECONDS) as answer:
        return json.load(answer)


def _show(console: "Console", answer: dict[str, Any]) -> dict[str, Any]:
    notes = ", ".join(f"“{note}”" for note in answer["notes"])
    text = f"          {answer['version']} answers, schema {answer['schema']}: {notes}"
    console.print(text, soft_wrap=True, markup=False)
    return answer


def _find_unexpected(device: "Device") -> Iterator[str]:
    """What is not as promised, seen on the device."""
    if device.applications.versions() != {NOTES: GOOD}:
        yield f"the applications are {device.applications.versions()}"
    if kept := [path.name for path in [*device.dumps.glob("*"), *device.applications.leavings()]]:
        yield f"of applications is left: {', '.join(kept)}"
