"""Networks that misbehave, through the deployed flow `check`: each poll ends in the chart's box, and the next is fine.

Chance is seeded. Which try meets which fault may differ from machine to machine, so that what is held is what every
course has in common.
"""

import datetime as calendar
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from bad_wire import Line, Wire
from poll_rig import BEGIN, FAILS, FOUND, INSTALLS, NO_DATA, WAITS, Site
from update_world import PROGRAM, Packages

from otaflow.repo import admin, serve
from otaflow.repo.certificates import make_authority
from otaflow.tasks import policy

POLLS = 6
CUTS = (1, 700, 1_500, 3_000, 10_000, 30_000)
"""After so many bytes: in the handshake, in the metadata, in a package."""
YEAR = 365
DOWNLOAD = len(FOUND) + 1
"""Where the download is among the tasks of a priority update."""
UP_TO_DATE = [*BEGIN, ("new packages available", "no")]
INSTALLED = [*FOUND, ("priority update", "yes"), *INSTALLS]
WAITING = [*FOUND, *WAITS]
PAGE = b"<!DOCTYPE html><html><body>Welcome! Please log in to use this network.</body></html>"

Course = tuple[str, list[tuple[str, str]]]
"""How a poll ended, and the tasks on its way."""
Act = Callable[[Any], bool]
"""Takes a request over (True), or leaves it to the server."""


@pytest.fixture
def kind() -> str:
    """Directories: a network knows no storage."""
    return "directories"


@pytest.fixture
def package(packages: Packages) -> Any:
    """A priority update of 40 kB that cannot be packed, so that it is long on the wire."""
    return packages.make(program=f"{PROGRAM}# {random.Random(1).randbytes(20_000).hex()}\n", priority=True)


def failed_at(way: list[tuple[str, str]], number: int) -> Course:
    """The red side of the chart, from the box with this number on."""
    return "Failed", [*way[:number], (way[number][0], "Failed"), *FAILS, *NO_DATA]


def courses(end: str, way: list[tuple[str, str]]) -> list[Course]:
    """A poll that goes well, and those that fail in one of the boxes that use the network."""
    boxes = [1, 2, 3, 4, *([DOWNLOAD] if len(way) > DOWNLOAD else [])]
    return [(end, way), *(failed_at(way, number) for number in boxes)]


def is_whole(site: Site) -> None:
    """Nothing is half done: no session, no metadata in work, no file in the cache that is not what its name says."""
    device = site.world.device()
    assert str(device.journal.state) == "Idle"
    assert list(device.journal.open_intents()) == []
    assert list((device.nvm / "tuf").glob(".*")) == []
    packages = device.cache / "packages"
    for path in packages.iterdir() if packages.is_dir() else []:
        assert ".part" in path.name or path.stat().st_size > 40_000, path


def is_fine_again(site: Site, end: str) -> None:
    """The next poll, on a network that works."""
    is_whole(site)
    with site.served() as url:
        site.configure(url)
        assert site.poll() == end
    is_whole(site)


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, act: Act) -> Iterator[None]:
    """The repository's server, with `act` asked first."""
    answer = serve._Handler._answer

    def acted(handler: Any) -> None:
        if not act(handler):
            answer(handler)

    with monkeypatch.context() as patch:
        patch.setattr(serve._Handler, "_answer", acted)
        yield


@contextmanager
def wired(site: Site, line: Callable[[], Line], more: str = "") -> Iterator[Wire]:
    """The repository behind a wire."""
    with site.served() as url, Wire(urlsplit(url).port or 0, line) as wire:
        site.configure(f"https://127.0.0.1:{wire.port}", more)
        yield wire


# --- by chance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [False, True], ids=["nothing new", "an update"])
def test_half_of_all_requests_get_a_500(site: Site, package: Any, monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    chance, refused = random.Random(500), []

    def act(handler: Any) -> bool:
        if chance.random() < 0.5:
            return False
        refused.append(handler.path)
        handler._say(500, handler.PLAIN, b"no\n")
        return True

    if new:
        site.publish(package)
    with answering(monkeypatch, act), site.served() as url:
        site.configure(url)
        ends = polls_by_chance(site, new)
    assert refused
    is_fine_again(site, "Installed" if new and "Installed" not in ends else "Up to date")


@pytest.mark.parametrize("new", [False, True], ids=["nothing new", "an update"])
def test_a_fifth_of_all_connections_is_cut(site: Site, package: Any, new: bool) -> None:
    chance = random.Random(342)  # the second connection is one of them
    cuts = 0

    def line() -> Line:
        return Line(cut_after=chance.choice(CUTS)) if chance.random() < 0.2 else Line()

    if new:
        site.publish(package)
    with wired(site, line) as wire:
        ends = polls_by_chance(site, new)
        cuts = wire.cuts
    assert cuts
    is_fine_again(site, "Installed" if new and "Installed" not in ends else "Up to date")


def polls_by_chance(site: Site, new: bool) -> list[str]:
    """Some polls, each of which takes one of the chart's ways; an update is there until it is installed."""
    ends: list[str] = []
    for _ in range(POLLS):
        there = new and "Installed" not in ends
        ways = courses("Installed", INSTALLED) if there else courses("Up to date", UP_TO_DATE)
        ends.append(site.shows_one_of(*ways))
        is_whole(site)
    return ends


# --- slow -------------------------------------------------------------------------------------------------------------


def test_two_kilobytes_a_second_are_enough(site: Site, packages: Packages) -> None:
    """Slow, but steady: within the bounds as they are delivered."""
    site.publish(packages.make(priority=True))
    with wired(site, lambda: Line(rate=2000)):
        site.shows("Installed", *INSTALLED)
    is_fine_again(site, "Up to date")


def test_metadata_that_takes_too_long(site: Site, package: Any) -> None:
    """At this rate the timestamp alone takes longer than the whole metadata may."""
    site.publish(package)
    with wired(site, lambda: Line(rate=2000), "refresh_seconds = 0.01\n"):
        site.shows_one_of(failed_at(UP_TO_DATE, 4))
    is_fine_again(site, "Installed")


def test_slower_than_the_least(site: Site) -> None:
    """The handshake alone would take minutes."""
    with wired(site, lambda: Line(rate=20), "timeout_seconds = 0.3\n"):
        site.shows_one_of(failed_at(UP_TO_DATE, 2))
    is_fine_again(site, "Up to date")


# --- silent -----------------------------------------------------------------------------------------------------------


def test_server_that_accepts_and_says_nothing(site: Site) -> None:
    with wired(site, lambda: Line(stall_after=0), "timeout_seconds = 0.3\n"):
        site.shows_one_of(failed_at(UP_TO_DATE, 2))
    is_fine_again(site, "Up to date")


HANGS = {
    "the login": ("metadata/timestamp.json", False, 3),
    "the metadata": (".root.json", False, 4),
    "the metadata, after its head": (".root.json", True, 4),
    "the package": ("targets/", False, DOWNLOAD),
    "the package, after its head": ("targets/", True, DOWNLOAD),
}


@pytest.mark.parametrize(("where", "head", "box"), HANGS.values(), ids=HANGS)
def test_server_that_hangs(
    site: Site, package: Any, monkeypatch: pytest.MonkeyPatch, where: str, head: bool, box: int
) -> None:
    site.publish(package)
    over = threading.Event()

    def act(handler: Any) -> bool:
        if where not in handler.path:
            return False
        handler.close_connection = True
        if head:
            handler._say(200, {"Content-Length": str(package.stat().st_size)})
        over.wait()
        return True

    with ExitStack() as stack:
        stack.enter_context(answering(monkeypatch, act))
        url = stack.enter_context(site.served())
        stack.callback(over.set)
        site.configure(url, "timeout_seconds = 5\n")
        site.shows_one_of(failed_at(INSTALLED, box))
    is_fine_again(site, "Installed")


# --- led astray -------------------------------------------------------------------------------------------------------


def test_name_that_does_not_resolve(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver itself is ours: a test asks nobody outside of the machine."""
    ask, name = socket.getaddrinfo, "updates.example.invalid"

    def resolve(host: Any, *args: Any, **more: Any) -> Any:
        if host in (name, name.encode()):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ask(host, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", resolve)
        site.configure(f"https://{name}")
        site.shows_one_of(failed_at(UP_TO_DATE, 1))
    is_fine_again(site, "Up to date")


def test_proxy_with_a_certificate_of_its_own(site: Site) -> None:
    ours = site.authority
    site.authority = make_authority(site.folder / "proxy")
    with site.served() as url:
        site.authority = ours
        site.configure(url)
        site.shows_one_of(failed_at(UP_TO_DATE, 2))
    is_fine_again(site, "Up to date")


PAGES = {
    "for everything": ("/", 200, 4),
    "for the metadata": (".root.json", 200, 4),
    "for the timestamp": ("timestamp.json", 200, 4),
    "for the package": ("targets/", 200, DOWNLOAD),
    "at another address": ("/", 302, 3),
}


@pytest.mark.parametrize(("where", "status", "box"), PAGES.values(), ids=PAGES)
def test_a_page_of_a_proxy(
    site: Site, package: Any, monkeypatch: pytest.MonkeyPatch, where: str, status: int, box: int
) -> None:
    site.publish(package)

    def act(handler: Any) -> bool:
        if where not in handler.path:
            return False
        handler._say(status, {"Content-Type": "text/html", "Location": "http://login.example/"}, PAGE)
        return True

    with answering(monkeypatch, act), site.served() as url:
        site.configure(url)
        site.shows_one_of(failed_at(INSTALLED, box))
    is_fine_again(site, "Installed")


# --- the wrong time ---------------------------------------------------------------------------------------------------


@contextmanager
def clock(monkeypatch: pytest.MonkeyPatch, days: int, *modules: str) -> Iterator[None]:
    """The clock that these modules look at is off by `days`. The host's own is not touched."""

    class Shifted(calendar.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return calendar.datetime.now(tz) + calendar.timedelta(days=days)

    with monkeypatch.context() as patch:
        for module in modules:
            patch.setattr(f"{module}.datetime", Shifted)
        yield


@contextmanager
def device_clock(monkeypatch: pytest.MonkeyPatch, days: int) -> Iterator[None]:
    """The clock by which the device judges metadata and remembers is off by `days`; that of its TLS is the host's."""
    trusted = "tuf.ngclient._internal.trusted_metadata_set.datetime"
    with clock(monkeypatch, days, "otaflow.tasks.policy", "otaflow.answers"), monkeypatch.context() as patch:
        shifted = vars(policy)["datetime"]
        patch.setattr(trusted, SimpleNamespace(datetime=shifted, timezone=calendar.timezone))
        yield


def test_clock_a_year_ahead(site: Site, packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata seems to have expired."""
    site.publish(packages.make())
    with site.served() as url:
        site.configure(url)
        with device_clock(monkeypatch, YEAR):
            site.shows_one_of(failed_at(UP_TO_DATE, 4))
    is_fine_again(site, "Waiting for the user")


def test_clock_a_year_behind(site: Site, packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata says only when it ends: all is well, also when the clock has come right."""
    site.publish(packages.make())
    with site.served() as url:
        site.configure(url)
        with device_clock(monkeypatch, -YEAR):
            site.shows("Waiting for the user", *WAITING)
        site.answer("now")
    is_fine_again(site, "Installed")


@pytest.mark.parametrize("days", [-YEAR, YEAR], ids=["expired", "not yet valid"])
def test_clock_off_by_more_than_the_certificate_lasts(site: Site, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """Seen from the device: the same certificate, and a clock that is as much ahead, or behind."""
    with ExitStack() as stack:
        with clock(monkeypatch, days, "otaflow.repo.certificates"):
            url = stack.enter_context(site.served(days=90))
        site.configure(url)
        site.shows_one_of(failed_at(UP_TO_DATE, 2))
    is_fine_again(site, "Up to date")


def test_metadata_that_nobody_renewed_for_a_year(
    site: Site, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clock(monkeypatch, -YEAR, "otaflow.repo.signing"):
        site.publish(packages.make())
    with site.served() as url:
        site.configure(url)
        site.shows_one_of(failed_at(UP_TO_DATE, 4))
    admin.refresh(site.folder / "site")
    is_fine_again(site, "Waiting for the user")
