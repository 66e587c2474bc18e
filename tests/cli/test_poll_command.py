"""`otaflow poll --if-due`, as a timer starts it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from poll_rig import Site
from prefect.settings import PREFECT_API_URL, temporary_settings
from update_world import Packages, World

from otaflow.cli.commands import app
from otaflow.repo import admin
from otaflow.repo.certificates import make_authority

AWAY = "http://127.0.0.1:9/api"
WINDOW = '[[policy.windows]]\ncron = "{}"\nminutes = 1440\n'
OPEN, CLOSED = WINDOW.format("* * * * *"), '[[policy.windows]]\ncron = "0 0 29 2 *"\nminutes = 1\n'
HEAVY = ("prefect", "tuf", "httpx", "securesystemslib", "rich", "psutil", "apprise")
SAY = f"""
import sys
from otaflow.cli import main
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules])
"""


@pytest.fixture
def kind() -> str:
    """Directories: the command is the same on each storage."""
    return "directories"


@pytest.fixture
def site(world: World, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A device and its repository; nobody answers where Prefect's API should be."""
    folder = tmp_path / "repository"
    admin.init(folder / "site")
    site = Site(world, folder, make_authority(folder / "tls"))
    monkeypatch.setenv("OTAFLOW_CONFIG", str(world.config))
    with site.served() as url, temporary_settings({PREFECT_API_URL: AWAY}):
        site.configure(url)
        yield site


@pytest.fixture
def poll(site: Site, capsys: Any) -> Callable[[], str]:
    """poll() is one tick of the timer; what it says."""

    def poll() -> str:
        app(["poll", "--if-due"], result_action="return_value", exit_on_error=False)
        return str(capsys.readouterr().out)

    return poll


def test_a_tick_that_finds_nothing_due_loads_neither_prefect_nor_tuf(site: Site, poll: Callable[[], str]) -> None:
    assert poll().splitlines() == ["a poll is due: this device was never polled", "Up to date"]
    told = (site.world.device().nvm / "policy/told").read_bytes()
    for arguments, says in {(): "no poll is due", ("--json",): '"end": "Not due"'}.items():
        command = [sys.executable, "-c", SAY, "poll", "--if-due", *arguments]
        out = subprocess.run(command, env=os.environ, check=True, capture_output=True, text=True).stdout
        assert says in out
        assert out.splitlines()[-1] == "[]"
    assert (site.world.device().nvm / "policy/told").read_bytes() == told


def test_an_answer_waits_for_its_window(site: Site, poll: Callable[[], str], packages: Packages) -> None:
    site.publish(packages.make())
    url = site.world.device().config.sources["test"].url
    site.configure(url, policy=CLOSED)
    assert poll().splitlines()[1].startswith("Waiting for the user")
    assert poll() == "no poll is due\n"
    site.answer("in-window")
    assert poll() == "no poll is due\n"
    site.configure(url, policy=OPEN)
    assert poll().splitlines()[1] == "Installed: installed 1.2.0"
    assert poll() == "no poll is due\n"
    assert site.world.device().running_system().version == "1.2.0"


def test_an_answer_waits_for_the_restart(site: Site, poll: Callable[[], str], packages: Packages) -> None:
    site.publish(packages.make())
    poll()
    site.answer("at-next-restart")
    assert poll() == "no poll is due\n"
    site.world.device().boots.note_restart()
    assert poll().splitlines()[1] == "Installed: installed 1.2.0"


def test_a_poll_that_could_not_install_it_is_not_repeated_at_each_tick(
    site: Site, poll: Callable[[], str], packages: Packages, capsys: Any
) -> None:
    site.publish(packages.make())
    poll()
    site.answer("now")
    site.configure("https://127.0.0.1:9")
    with pytest.raises(SystemExit):
        poll()
    capsys.readouterr()
    assert poll() == "no poll is due\n"


def test_what_the_timer_starts(site: Site) -> None:
    """The unit's command is one that there is."""
    unit = Path(__file__).parents[2] / "deployments/otaflow-update.service"
    [line] = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    command, bound, _ = app.parse_args(line.split()[1:], exit_on_error=False)
    assert (command.__name__, bound.arguments) == ("poll", {"if_due": True})
