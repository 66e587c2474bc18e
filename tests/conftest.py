"""Fixtures for all tests. What several test files share beside fixtures is in tests/support, on the import path."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from update_world import STORIES, Packages, Picture, World

from otaflow.errors import OtaflowError

# Started in the background, we would ignore Ctrl-C, and so would every program that a test starts and stops so.
with contextlib.suppress(ValueError):
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Prefect gives its temporary server 20 s to start, which is a matter of how busy the machine is.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")

BTRFS_BYTES = 2**30
KINDS = ["directories", pytest.param("btrfs", marks=pytest.mark.btrfs)]


@pytest.fixture(scope="session")
def btrfs_top(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The mounted top of an empty btrfs on a loop file; needs root. Mark tests that use it `btrfs`."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        message = "btrfs tests need root and loop devices"
        if os.environ.get("OTAFLOW_REQUIRE_BTRFS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("btrfs")
    image, top = folder / "image", folder / "top"
    top.mkdir()
    with image.open("wb") as file:
        file.truncate(BTRFS_BYTES)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    # `-o loop` detaches the loop device itself when it is unmounted
    subprocess.run(["mount", "-o", "loop,noatime", image, top], check=True)
    try:
        yield top
    finally:
        subprocess.run(["umount", "--recursive", top], check=True)
        image.unlink()


@pytest.fixture
def btrfs_tmp(btrfs_top: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new folder on the btrfs for one test, removed after it with all subvolumes in it."""
    from otaflow.platform.btrfs import BtrfsTrees

    # short: a device's socket is in it, whose path has a hundred characters at most
    folder = btrfs_top / f"{request.node.name[5:15]}-{os.getpid()}".replace("/", "_")
    folder.mkdir()
    yield folder
    BtrfsTrees().remove(folder)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Builds update packages, each once."""
    return Packages(tmp_path_factory.mktemp("packages"))


class Worlds:
    """The made worlds, one of each kind, that each test gets a copy of."""

    def __init__(self, packages: Packages, factory: pytest.TempPathFactory) -> None:
        self.packages, self.factory = packages, factory
        self._made: dict[str, World] = {}
        self._outcomes: dict[tuple[str, str], Picture] = {}

    def template(self, kind: str, folder: Path) -> World:
        """The world of `kind`, made in `folder` when it is first asked for."""
        if kind not in self._made:
            world = World(folder, kind, self.packages)
            folder.mkdir()
            world.make()
            self._made[kind] = world
        return self._made[kind]

    def outcome(self, story: str, kind: str) -> Picture:
        """What the world of `kind` is after the story; told once."""
        if (kind, story) not in self._outcomes:
            template = self._made[kind]
            other = template.copy(template.folder.parent / f"{template.folder.name} {story}")
            with contextlib.suppress(OtaflowError):
                other.install(STORIES[story](other))
            self._outcomes[kind, story] = other.outcome()
        return self._outcomes[kind, story]


@pytest.fixture(scope="session")
def worlds(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(packages, tmp_path_factory)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of storage."""
    return str(request.param)


@pytest.fixture
def world(kind: str, worlds: Worlds, request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """A device with a past, of each kind of storage."""
    if kind == "btrfs":
        top, folder = request.getfixturevalue("btrfs_top"), request.getfixturevalue("btrfs_tmp")
        return worlds.template(kind, top / "world").copy(folder / "w")
    return worlds.template(kind, worlds.factory.getbasetemp() / "world").copy(tmp_path / "w")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between the tries of a step."""
    import otaflow.service  # noqa: F401  (loads every step)
    from otaflow.tasks.step import STEPS

    for step in STEPS.values():
        if step.name != "connect":
            retries = step.limits()[0]
            monkeypatch.setattr(step, "limits", lambda retries=retries: (retries, 0))


@pytest.fixture
def fault_points(quick: None) -> Iterator[Any]:
    """`fault.arm`, disarmed at the end."""
    from otaflow import fault

    yield fault.arm
    fault.arm("")


class Zygote:
    """Does jobs on worlds in processes of their own (tests/support/zygote.py)."""

    def __init__(self) -> None:
        script = Path(__file__).parent / "support" / "zygote.py"
        self.process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, world: World, do: str, *, fault: str = "", action: Any = None) -> int:
        """The exit status of one job: 0, 1 for an error, minus the signal that ended it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {
            "config": str(world.config),
            "do": do,
            "fault": fault,
            "actions": [one.record() for one in (action if isinstance(action, list) else [action] if action else [])],
            "log": str(world.folder / "job.log"),
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        assert status in (0, 1, -9), (world.folder / "job.log").read_text()
        return status


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Does jobs in processes of their own, which may be killed."""
    zygote = Zygote()
    yield zygote
    zygote.process.communicate(timeout=120)


@pytest.fixture
def otaflow(world: World) -> Any:
    """otaflow(*arguments) runs the real command on the world; returns the completed process."""

    def call(*arguments: str, check: bool = True, **environment: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-c", "from otaflow.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "OTAFLOW_CONFIG": str(world.config), **environment},
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return call


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything must run (OTAFLOW_REQUIRE=1, as in continuous integration), a skipped test is a failed one."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("OTAFLOW_REQUIRE") == "1":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and nothing may be: {report.longrepr}"
    return report
