"""A machine with a real systemd, and the services in it."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import Machine, make_root
from machine_services import ServicesInside

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def new_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Machine]]:
    """new_machine(...) makes a machine, off; its `data` folder is seen inside at the same path."""
    if os.geteuid() != 0 or not shutil.which("systemd-nspawn"):
        pytest.skip("a machine with systemd needs root and systemd-nspawn (Debian: systemd-container)")
    made: list[Machine] = []

    def make(**options: Any) -> Machine:
        folder = tmp_path_factory.mktemp("machine")
        data = folder / "data"
        data.mkdir()
        machine = Machine(make_root(folder / "root"), shares={data: str(data)}, **options)
        made.append(machine)
        return machine

    yield make
    for machine in made:
        machine.stop()


@pytest.fixture(scope="module")
def machine(new_machine: Callable[..., Machine]) -> Machine:
    """A machine that is on; what a test leaves in it must not bear on another one."""
    machine = new_machine()
    machine.boot()
    return machine


@pytest.fixture
def services(machine: Machine) -> ServicesInside:
    """The services of the machine, patient."""
    return ServicesInside(machine, timeout=60)


class Application:
    """The unit files of an application; its services have names that no other test has."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.number = number
        folder.mkdir(parents=True)

    def name(self, name: str = "notes.service") -> str:
        stem, _, suffix = name.rpartition(".")
        return f"{stem}{self.number}.{suffix}"

    def write(self, *lines: str, name: str = "notes.service", install: str = "WantedBy=multi-user.target") -> str:
        """Write a unit file with these lines in its main section; its real name."""
        section = name.rpartition(".")[2].title()
        text = [f"[{section}]", *lines, "[Install]", install, ""]
        (self.folder / self.name(name)).write_text("\n".join(text))
        return self.name(name)


@pytest.fixture
def application(machine: Machine) -> Iterator[Application]:
    """A folder for unit files, seen inside at the same path; its services are gone after the test."""
    number = next(_numbers)
    application = Application(next(iter(machine.shares)) / f"application{number}" / "services", number)
    yield application
    for path in application.folder.iterdir():
        # not by the code under test
        gone = "systemctl kill --signal=KILL -- $1; systemctl stop --no-block -- $1; cd /etc/systemd/system &&"
        machine.run(["sh", "-c", f"{gone} rm -rf -- $1 $1.d *.wants/$1 *.requires/$1", "sh", path.name])
    machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "reset-failed"])
