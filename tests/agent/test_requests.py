"""What applications and their users ask of the agent: updates, removal, a later closing; and packages together."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent_rig import SECONDS, Rig, in_thread, running
from poll_rig import Site
from processes import has_ended
from tiny_apps import MORE, build_app, install_app
from update_world import Packages, World

from otaflow import errors
from otaflow.agent.requests import Requests
from otaflow.cli.commands import app
from otaflow.platform.device import Device
from otaflow.repo import admin
from otaflow.repo.certificates import make_authority

LINGERS = "#!/bin/sh\nwhile :; do sleep 1; done\n"
ASKS = f'ask = true\n{MORE}[api]\nsocket = "../ucm.sock"\n'


class Searching:
    """A search that is held until a test lets it go on; it remembers who was searched for."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.names: list[str] = []

    def __call__(self, device: Device, name: str, ended: threading.Event) -> None:
        self.names.append(name)
        self.begun.release()
        assert self.go_on.acquire(timeout=SECONDS)
        if name == "radio":
            raise OSError("its search fails")


@pytest.fixture
def device(world: World, tmp_path: Path) -> Device:
    """A device with two applications."""
    world.configure(MORE)
    for name in ("notes", "radio"):
        install_app(world, build_app(tmp_path, name, "1.0.0"), name, "1.0.0")
    return world.device()


def test_one_search_at_a_time(device: Device) -> None:
    searching = Searching()
    requests = Requests(device, searching, rest_seconds=3600)
    assert requests.ask("radio") == {"searching": True, "offers": []}
    assert searching.begun.acquire(timeout=SECONDS)
    assert [requests.ask(name)["searching"] for name in ("notes", "radio", "notes")] == [True, True, True]
    assert searching.names == ["radio"], "one after the other, however many ask"
    searching.go_on.release(2)
    assert searching.begun.acquire(timeout=SECONDS)
    requests.stop(SECONDS)
    assert searching.names == ["radio", "notes"], "one that fails does not keep the others"
    assert not requests.ask("notes")["searching"], "nothing begins after the end"


@pytest.mark.parametrize(("rest", "again"), [(3600.0, False), (0.0, True)], ids=["just now", "a while ago"])
def test_a_search_is_not_made_again_at_once(device: Device, rest: float, again: bool) -> None:
    searching = Searching()
    requests = Requests(device, searching, rest_seconds=rest)
    requests.ask("notes")
    searching.go_on.release()
    while requests.ask("radio")["searching"] is False or "radio" not in searching.names:
        searching.begun.acquire(timeout=SECONDS)  # the search for notes is over when that for the other begins
    assert requests.ask("notes")["searching"] is again
    searching.go_on.release(9)
    requests.stop(SECONDS)


def test_what_is_not_installed(device: Device) -> None:
    with pytest.raises(errors.OperationNotPermitted, match="camera: it is not installed"):
        Requests(device).ask("camera")


# --- over the interface -----------------------------------------------------------------------------------------------


@pytest.fixture
def close_seconds() -> int:
    """How long an application that is asked to close is waited for."""
    return 0


@pytest.fixture
def asked(world: World, tmp_path: Path, quick: None, signed: Any, close_seconds: int) -> Iterator[tuple[Rig, Site]]:
    """An agent on a device with an application at 1.0.0, whose user is asked; its repository has two updates."""
    folder = tmp_path / "repository"
    admin.init(folder / "site")
    site = Site(world, folder, make_authority(folder / "tls"))
    world.configure(MORE)
    install_app(world, build_app(tmp_path, "notes", "1.0.0", program=LINGERS), "notes", "1.0.0")
    site.publish(build_app(tmp_path, "notes", "1.1.0", "1.0.0"))
    site.publish(build_app(tmp_path, "notes", "1.2.0", "1.1.0", irreversible=True))
    with site.served() as url:
        site.configure(url, policy=ASKS.replace("close_seconds = 0", f"close_seconds = {close_seconds}"))
        with running(world, signed) as rig:
            yield rig, site


def versions(site: Site) -> dict[str, str]:
    return site.world.device().applications.versions()


def test_an_application_asks_for_its_updates(asked: tuple[Rig, Site]) -> None:
    """It is answered at once, and reads what was found in its inbox; what is installed is the user's to say."""
    rig, site = asked
    assert rig.client.request_update("notes") == {"searching": True, "offers": []}
    message = wait_for_message(rig, "available")
    assert (message["package"], message["version"]) in (("notes", "1.1.0"), ("notes", "1.2.0"))
    while (answer := rig.client.request_update("notes"))["searching"]:
        time.sleep(0.05)
    assert [(offer["version"], offer["verdict"]) for offer in answer["offers"]] == [("1.1.0", "ask"), ("1.2.0", "ask")]
    assert versions(site) == {"notes": "1.0.0"}
    with pytest.raises(errors.OperationNotPermitted, match="it is not installed"):
        rig.client.request_update("radio")


def test_packages_in_one_session(
    asked: tuple[Rig, Site], tmp_path: Path, packages: Packages, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system and two applications, by the command: they are activated together; one by one they are refused twice."""
    rig, site = asked
    files = [packages.make(), tmp_path / "notes-1.1.0.nua", build_app(tmp_path, "radio", "1.0.0")]
    site.publish(files[0], files[2])
    monkeypatch.setenv("OTAFLOW_CONFIG", str(site.world.config))

    def call(*arguments: str) -> str:
        app(["ucm", *arguments], result_action="return_value", exit_on_error=False)
        return str(capsys.readouterr().out)

    app(["check"], result_action="return_value", exit_on_error=False)  # the signatures
    capsys.readouterr()
    assert len(json.loads(call("process", *map(str, files), "--json"))["ids"]) == 3
    changes = {one["name"]: one["state"] for one in rig.client.get_sw_cluster_change_info()}
    assert changes == {"demo-system": "kUpdating", "notes": "kUpdating", "radio": "kAdded"}
    with pytest.raises(errors.OperationNotPermitted, match="another package of notes"):
        call("process", str(tmp_path / "notes-1.2.0.nua"), "--accept-irreversible")
    call("activate")
    rig.wait_for("Activated")
    call("finish")
    assert versions(site) == {"notes": "1.1.0", "radio": "1.0.0"}
    assert site.world.device().running_system().version == "1.2.0"
    # what changes data for good, without the agreement and with it
    last = str(tmp_path / "notes-1.2.0.nua")
    with pytest.raises(errors.OperationNotPermitted, match="cannot be brought back"):
        call("process", last)
    call("process", last, "--accept-irreversible")
    call("revert-processed-sw-packages")
    assert rig.state == "Idle"


@pytest.mark.parametrize("way", ["finish", "revert", "roll back"])
def test_an_application_is_removed(asked: tuple[Rig, Site], way: str) -> None:
    rig, site = asked
    rig.client.remove("notes")
    assert rig.state == "Ready"
    assert rig.client.get_sw_cluster_change_info() == [{"name": "notes", "version": "1.0.0", "state": "kRemoved"}]
    if way == "revert":
        rig.client.revert_processed_sw_packages()
    else:
        rig.client.activate()
        rig.wait_for("Activated")
        assert versions(site) == {}
        if way == "roll back":
            rig.client.rollback()
        rig.client.finish()
    assert rig.state == "Idle"
    assert versions(site) == ({} if way == "finish" else {"notes": "1.0.0"})
    if way == "finish":
        with pytest.raises(errors.NothingToRevert):
            rig.client.remove("notes")


def start_orphan(program: Path) -> psutil.Process:
    """Start a program that is no child of the agent, as a user's program is."""
    start = "subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=-3, stderr=-3)"
    code = f"import subprocess, sys; print({start}.pid)"
    done = subprocess.run([sys.executable, "-c", code, program], capture_output=True, text=True, check=True)
    return psutil.Process(int(done.stdout))


def wait_for_message(rig: Rig, kind: str) -> dict[str, Any]:
    """The newest message of the kind, once there is one."""
    end = time.monotonic() + SECONDS
    while True:
        if found := [one for one in rig.client.get_messages("notes") if one["kind"] == kind]:
            return found[-1]
        assert time.monotonic() < end, f"no message says {kind}"
        time.sleep(0.05)


@pytest.mark.parametrize("close_seconds", [600])
@pytest.mark.parametrize("way", ["closes", "acknowledges"])
def test_an_application_that_runs_is_waited_for(asked: tuple[Rig, Site], way: str) -> None:
    """It is told, may put it off within bounds, and is updated when it is gone, or ready to be ended."""
    rig, site = asked
    with pytest.raises(errors.OperationNotPermitted, match="it was not asked to close"):
        rig.client.defer("notes")
    rig.client.request_update("notes")
    wait_for_message(rig, "available")
    program = start_orphan(site.world.device().applications.path("notes") / "bin/program")
    try:
        rig.client.process_sw_package(rig.client.transfer(site.folder.parent / "notes-1.1.0.nua"))
        activated = in_thread(rig.another_client().activate)
        message = wait_for_message(rig, "close-requested")
        assert message["facts"]["seconds"] == 600
        answers = [rig.client.defer("notes") for _ in range(3)]
        assert [answer["defersLeft"] for answer in answers] == [2, 1, 0]
        assert 900 < answers[2]["secondsLeft"] <= 1500
        with pytest.raises(errors.OperationNotPermitted, match="put off 3 times"):
            rig.client.defer("notes")
        assert rig.state == "Activating"
        assert program.is_running()
        if way == "closes":
            program.terminate()
        else:
            rig.client.acknowledge_message("notes", message["id"])
        activated.result(SECONDS)
        rig.wait_for("Activated")
        assert has_ended(program.pid), "what still ran was ended"
        rig.client.finish()
    finally:
        with suppress(psutil.NoSuchProcess):
            program.kill()
    assert versions(site) == {"notes": "1.1.0"}
