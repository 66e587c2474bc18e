"""`otaflow app` and `otaflow update` with applications, in this process and through an agent: the same in both."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from poll_rig import Site
from prefect.settings import PREFECT_API_URL, temporary_settings
from tiny_apps import MORE, SICK, build_app
from update_world import Packages, World

from otaflow import errors
from otaflow.actions import find_removal
from otaflow.agent.agent import Agent
from otaflow.api.app import make_app
from otaflow.api.serve import Server
from otaflow.cli.commands import app
from otaflow.platform.device import using
from otaflow.policy.closing import Closing, Request
from otaflow.repo import admin
from otaflow.repo.certificates import make_authority

Call = Callable[..., str]
ASKS = f'ask = true\n{MORE}[api]\nsocket = "../ucm.sock"\n'


@pytest.fixture
def kind() -> str:
    """Directories: the commands are the same on each storage."""
    return "directories"


@pytest.fixture(params=["here", "agent"])
def place(request: pytest.FixtureRequest) -> str:
    """Who does the work."""
    return str(request.param)


@pytest.fixture
def site(world: World, tmp_path: Path, quick: None) -> Iterator[Site]:
    """A device and its repository; nobody answers where Prefect's API should be."""
    folder = tmp_path / "repository"
    admin.init(folder / "site")
    site = Site(world, folder, make_authority(folder / "tls"))
    with site.served() as url, temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        site.configure(url, policy=ASKS)
        yield site


@pytest.fixture
def chain(site: Site, tmp_path: Path) -> list[Path]:
    """Three versions of an application, the last of which changes data for good: in the repository."""
    built = [
        build_app(tmp_path, "notes", "1.0.0"),
        build_app(tmp_path, "notes", "1.1.0", "1.0.0"),
        build_app(tmp_path, "notes", "1.2.0", "1.1.0", irreversible=True),
    ]
    words = site.world.device().applications.data("notes") / "words"
    words.mkdir(parents=True)
    site.publish(*built)
    return built


@contextmanager
def agent_of(world: World) -> Iterator[Agent]:
    agent = Agent(world.device())
    agent.start()
    server = Server(make_app(agent), world.device().config)
    server.start()
    try:
        yield agent
    finally:
        server.stop()
        agent.stop()


@pytest.fixture
def call(site: Site, place: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """call(*arguments) is the command; what it says."""
    monkeypatch.setenv("OTAFLOW_CONFIG", str(site.world.config))

    def otaflow(*arguments: str) -> str:
        app(list(arguments), result_action="return_value", exit_on_error=False)
        return str(capsys.readouterr().out)

    with agent_of(site.world) if place == "agent" else nullcontext():
        yield otaflow


def versions(site: Site) -> dict[str, str]:
    return site.world.device().applications.versions()


def ends(site: Site) -> list[tuple[str, str, str]]:
    """What the history says of applications."""
    records = site.world.device().history.read()
    return [(one["action"], one["version"], one["resolution"]) for one in records if one["name"] == "notes"]


def test_the_life_of_an_application(site: Site, chain: list[Path], call: Call) -> None:
    assert "no applications are installed" in call("app", "list")
    assert call("app", "install", "notes", "--version", "1.0.0") == "installed notes 1.0.0\n"
    assert "notes 1.0.0" in call("status")
    assert json.loads(call("status", "--json"))["applications"] == [{"name": "notes", "version": "1.0.0"}]
    assert call("app", "update", "notes", "--version", "1.1.0") == "installed notes 1.1.0\n"
    [listed] = json.loads(call("app", "list", "--json"))["applications"]
    data = Path(listed["data"])
    assert (listed["name"], listed["version"], listed["services"]) == ("notes", "1.1.0", [])
    assert (Path(listed["files"]) / "version").read_text() == "1.1.0"
    (data / "kept").write_text("what the user wrote")
    assert call("app", "remove", "notes").startswith("removed notes; its data stays in ")
    assert versions(site) == {}
    assert (data / "kept").read_text() == "what the user wrote"
    assert ends(site) == [
        ("Install", "1.0.0", "kActivated"),
        ("Update", "1.1.0", "kActivated"),
        ("Remove", "1.1.0", "kActivated"),
    ]


def test_the_list_as_a_table(site: Site, chain: list[Path], call: Call) -> None:
    call("app", "install", "notes", "--version", "1.1.0")
    listed = call("app", "list")
    assert "notes" in listed
    assert "1.1.0" in listed


def test_what_changes_data_for_good_must_be_agreed_to(site: Site, chain: list[Path], call: Call) -> None:
    """Nothing of the chain is installed before that."""
    with pytest.raises(errors.OperationNotPermitted, match=r"notes 1\.2\.0: it changes .* for good") as refused:
        call("app", "install", "notes")
    assert "--accept-irreversible" in refused.value.hint
    assert versions(site) == {}
    installed = call("app", "install", "notes", "--accept-irreversible")
    assert installed == "installed notes 1.0.0, notes 1.1.0, notes 1.2.0\n"
    assert "up to date" in call("app", "update", "notes")


REFUSED: dict[str, tuple[list[str], type[errors.OtaflowError], str]] = {
    "install what is there": (["install", "notes"], errors.OperationNotPermitted, r"1\.0\.0 is installed"),
    "install the unknown": (["install", "radio"], errors.IncompatibleDelta, "no application of that name"),
    "install the system": (["install", "demo-system"], errors.ConfigError, "it is the system"),
    "update the unknown": (["update", "radio"], errors.OperationNotPermitted, "it is not installed"),
    "update to nothing": (["update", "notes", "--version", "7.0.0"], errors.IncompatibleDelta, r"7\.0\.0"),
    "remove the unknown": (["remove", "radio"], errors.NothingToRevert, "it is not installed"),
    "request the unknown": (["request", "radio"], errors.OtaflowError, "it is not installed"),
    "defer nothing": (["defer", "notes"], errors.OperationNotPermitted, "it was not asked to close"),
}


def test_what_is_refused(site: Site, chain: list[Path], call: Call) -> None:
    call("app", "install", "notes", "--version", "1.0.0")
    for name, (arguments, kind, why) in REFUSED.items():
        with pytest.raises(kind, match=why):
            call("app", *arguments)
        assert versions(site) == {"notes": "1.0.0"}, name
        assert site.world.device().journal.state == "Idle", name


def test_a_file_brings_what_must_be_installed_before_it(site: Site, chain: list[Path], call: Call) -> None:
    call("app", "install", "notes", "--version", "1.0.0")
    with pytest.raises(errors.OperationNotPermitted, match="for good"):
        call("update", str(chain[2]))
    assert versions(site) == {"notes": "1.0.0"}
    assert call("update", str(chain[2]), "--accept-irreversible") == "installed notes 1.1.0, notes 1.2.0\n"
    with pytest.raises((errors.OldVersion, errors.IncompatibleDelta), match=r"1\.2\.0 is installed"):
        call("update", str(chain[1]))


def test_a_file_that_fits_needs_no_network(site: Site, chain: list[Path], call: Call) -> None:
    call("app", "install", "notes", "--version", "1.0.0")
    text = site.world.config.read_text()
    site.world.config.write_text(text.replace("https://127.0.0.1:", "https://127.0.0.2:"))
    assert call("update", str(chain[1])) == "installed notes 1.1.0\n"


def test_a_file_whose_link_is_missing(site: Site, chain: list[Path], tmp_path: Path, call: Call) -> None:
    """The refusal names it, and nothing is installed."""
    far = build_app(tmp_path, "notes", "1.5.0", "1.4.0")
    site.publish(far)
    call("app", "install", "notes", "--version", "1.0.0")
    with pytest.raises(errors.IncompatibleDelta, match=r"applies to 1\.4\.0.*no package brings 1\.4\.0"):
        call("update", str(far))
    assert versions(site) == {"notes": "1.0.0"}


def test_update_brings_everything_up_to_date(site: Site, chain: list[Path], call: Call, packages: Packages) -> None:
    call("app", "install", "notes", "--version", "1.0.0")
    site.publish(packages.make())
    assert "notes 1.1.0" in call("check")
    with pytest.raises(errors.OperationNotPermitted, match="for good"):
        call("update")
    assert site.world.device().running_system().version == "1.2.0"
    assert versions(site) == {"notes": "1.1.0"}
    assert call("update", "--accept-irreversible") == "installed notes 1.2.0\n"


def test_an_update_that_is_taken_back(site: Site, chain: list[Path], tmp_path: Path, call: Call) -> None:
    site.publish(build_app(tmp_path, "notes", "1.1.1", "1.0.0", health=SICK))
    call("app", "install", "notes", "--version", "1.0.0")
    with pytest.raises(errors.HealthCheckFailed):
        call("app", "update", "notes", "--version", "1.1.1", "--json")
    assert versions(site) == {"notes": "1.0.0"}


@pytest.mark.parametrize("place", ["here"])  # tests/agent/test_requests.py has what an agent does
def test_the_closing_is_put_off(site: Site, chain: list[Path], call: Call, place: str) -> None:
    call("app", "install", "notes", "--version", "1.0.0")
    with site.world.ucm() as ucm:
        ucm.process(find_removal(ucm.device, "notes"))
        ucm.fire("<Activate")
        session = ucm.journal.session.id
    Closing(site.world.device().nvm).ask(Request("notes", "1.1.0", session, 0, 30.0, most=1))
    assert json.loads(call("app", "defer", "notes", "--json")) == {"secondsLeft": 330.0, "defersLeft": 0}
    with pytest.raises(errors.OperationNotPermitted, match="put off 1 times"):
        call("app", "defer", "notes")


@pytest.mark.parametrize("place", ["here"])  # tests/agent/test_requests.py has what an agent does
def test_a_request_without_an_agent_looks_at_once(site: Site, chain: list[Path], call: Call, place: str) -> None:
    call("app", "install", "notes", "--version", "1.0.0")
    assert call("app", "request", "notes").startswith("Waiting for the user: notes 1.1.0: ")
    with using(site.world.device()):
        assert site.messages == ["available", "available"]
