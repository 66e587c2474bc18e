"""`otaflow check`, `update`, `rollback`, `recover`, `resume` and `clean-up`: what changes a device."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from otaflow import answers, work
from otaflow.asked import Asked
from otaflow.cli.common import Accept, ConfigFile, Json, Source, load_device, print_json, showing, working
from otaflow.errors import ConfigError, HealthCheckFailed, Locked, OtaflowError
from otaflow.platform.boots import Ending
from otaflow.platform.device import Device, using
from otaflow.policy.explain import explain as say

if TYPE_CHECKING:
    from otaflow.actions import Way
    from otaflow.client import Client
    from otaflow.policy.decide import Decision
    from otaflow.repo.choice import Target
    from otaflow.service import Ucm


def check(
    *,
    config: ConfigFile = None,
    source: Source = None,
    explain: Annotated[bool, Parameter(negative=(), help="Say what a poll would do with it, and why not now.")] = False,
    json: Json = False,
) -> None:
    """Ask the repository what is new for this device. Nothing is installed."""
    device = load_device(config, source)
    if agent := find_agent(device):
        from otaflow import through

        with agent, showing(not json):
            targets = through.find_new(device)
    else:
        with working(device, view=not json) as (ucm, _):
            targets = work.find_new(ucm)
    installed = device.running_system()
    decisions = _decide(device, targets) if explain else []
    if json:
        answer = {"installed": installed.version, "new": [_describe(target) for target in targets]}
        print_json(answer | ({"decisions": answers.records(decisions)} if explain else {}))
    elif not targets:
        print(f"{installed.name} {installed.version} is up to date")
    for target in targets if not json else []:
        priority = ", priority" if target.priority else ""
        print(f"{target.name} {target.version} ({target.length} bytes{priority}) {target.description}".rstrip())
    for decision in decisions if not json else []:
        print("\n".join(say(decision)))


def update(
    file: Path | None = None,
    /,
    *,
    config: ConfigFile = None,
    source: Source = None,
    down: Annotated[bool, Parameter(negative=(), help="Uninstall: run the package's program with `down`.")] = False,
    accept_irreversible: Accept = False,
    json: Json = False,
) -> None:
    """Install what is new, of the system and of applications, one package after the other.

    Each proves itself healthy or is taken back.

    Parameters
    ----------
    file
        A package (.nsu, .nua) that the repository signs, or a local repository package (.nsr), instead of the server.
        What must be installed before an application's package is fetched from the repository.
    """
    device = load_device(config, source)
    installed: list[str] = []
    asked = Asked(file=file, accepts=accept_irreversible)
    if down and (file is None or file.suffix == ".nsr"):
        raise ConfigError("cannot uninstall: no package is named", hint="`otaflow update --down FILE` takes it back")
    if agent := find_agent(device):
        from otaflow import through

        with reporting(device, json, installed), agent, showing(not json):
            if down and file:
                through.uninstall(agent, device, file)
                installed.append(device.running_system().version)
            else:
                installed.extend(through.install_new(agent, device, asked))
    else:
        _update(device, asked, installed, down=down, json=json)
    if not json:
        print(f"installed {', '.join(installed)}" if installed else "nothing to install: the device is up to date")


def _update(device: Device, asked: Asked, installed: list[str], *, down: bool, json: bool) -> None:
    with (
        reporting(device, json, installed),
        work.recorded(device, asked.file.name if asked.file else "check", of=Locked),
        working(device, view=not json) as (ucm, _),
    ):
        go_on(ucm)
        if down and asked.file:
            installed.append(work.uninstall(ucm, asked.file))
            return
        for version in work.install_new(ucm, asked):
            installed.append(version)


def rollback(
    *,
    config: ConfigFile = None,
    snapshot: Annotated[bool, Parameter(negative=(), help="Bring back the main partition from its snapshot.")] = False,
    backup: Annotated[str | None, Parameter(help="Bring back /sys and /etc/sys from this backup.")] = None,
    json: Json = False,
) -> None:
    """Go back: to the previous slot at once, to a snapshot of the main partition, or to any backup.

    `--snapshot --backup ID` takes the snapshot of that backup; the newest one otherwise. `otaflow backups` lists them.
    What is gone back to must prove itself healthy too, else the present system stays.
    """
    device = load_device(config)
    done: list[str] = []
    to: Way = "snapshot" if snapshot else "backup" if backup else "previous-slot"
    if agent := find_agent(device):
        from otaflow import through

        with reporting(device, json, done), agent, showing(not json):
            through.go_back(agent, device, to, backup)
            done.append(device.running_system().version)
    else:
        with reporting(device, json, done), working(device, view=not json) as (ucm, _):
            if to != "previous-slot" or ucm.state not in ("Verifying", "Activated"):
                go_on(ucm)
            work.go_back(ucm, to, backup)
            done.append(device.running_system().version)
    if not json:
        print(f"{device.config.device.name} runs {device.running_system().version}")


def recover(
    *,
    config: ConfigFile = None,
    verify: Annotated[bool, Parameter(help="Verify a system that is on trial; else that is left to `resume`.")] = True,
    going_down: Annotated[bool, Parameter(negative=(), help="Only note that the machine goes down orderly.")] = False,
    json: Json = False,
) -> None:
    """Finish or take back what a power cut or a kill interrupted. Run at boot, before anything else of otaflow.

    It needs neither network nor Prefect. With nothing to do it changes nothing. It has systemd know the applications'
    services as they are now; where there is no systemd, it starts them.
    """
    device = load_device(config)
    if going_down:
        device.boots.note_going_down(Ending.DEADLINE if device.marks.is_deadline_over() else Ending.ORDERLY)
        return
    from otaflow.trial import count_boot, must_recover

    count_boot(Device(device.config))
    # read without the lock: the UCM itself is loaded only where there is work for it, and reads it anew
    idle = not must_recover(Device(device.config))
    problem = _arrange_services(Device(device.config)) if device.config.services.kind == "systemd" else ""
    fallen_back = _put_target_right(device)
    outcome = "" if idle else _recover(device, verify=verify, view=not json)
    device = load_device(config)
    outcome = "; ".join(filter(None, [fallen_back, outcome, problem]))
    if device.config.services.kind == "processes":
        outcome = "; ".join(filter(None, [outcome, *_start_services(device)]))
    if json:
        print_json({"recovered": not idle, "outcome": outcome, "ucm_state": str(device.journal.state)})
    else:
        what = "nothing to recover" if idle else "recovered"
        print(f"{what}: {device.journal.state}" + (f"; {outcome}" if outcome else ""))


def resume(*, config: ConfigFile = None, json: Json = False) -> None:
    """After the restart: verify the system that is on trial, and keep it or roll it back.

    Where an agent runs, it goes on by itself: this waits for its end, and tells it.
    """
    device = load_device(config)
    done: list[str] = []
    if agent := find_agent(device):
        from otaflow import through

        with reporting(device, json, done), agent, showing(not json):
            _tell_rolled_back(through.resume(agent, device))
            done.append(device.running_system().version)
    else:
        from otaflow.trial import must_recover

        here = Device(device.config)  # the device's own journal is read when it is locked
        # nearly every boot: nothing is to be done, nor told, and loading Prefect would take seconds
        prefect = must_recover(here) or bool(here.journal.untold() or here.journal.phase_runs)
        with reporting(device, json, done), working(device, prefect=prefect, view=not json) as (ucm, _):
            go_on(ucm)
            done.append(device.running_system().version)
    if not json:
        state = Device(device.config).journal.state
        print(f"{device.config.device.name} runs {device.running_system().version}, {state}")


def clean_up(*, config: ConfigFile = None, json: Json = False) -> None:
    """Remove full backups and main snapshots whose time is over (a week or two more restarts, whichever is later).

    Incremental backups stay for ever; the last version that was verified good is never given up.
    """
    device = load_device(config)
    if agent := find_agent(device):
        with agent:
            removed = agent.clean_up()
    else:
        with working(device, view=not json) as (ucm, _):
            removed = work.end_backups(ucm)
    if json:
        print_json({"removed": removed})
    else:
        print(f"removed the full backups and snapshots of {', '.join(removed)}" if removed else "nothing to remove")


# --- inside -----------------------------------------------------------------------------------------------------------


def _decide(device: Device, targets: "list[Target]") -> "list[Decision]":
    """What a poll would do now."""
    from otaflow.tasks.policy import decide_now, offer_of

    with using(device):
        return [decide_now(offer_of(target)) for target in targets]


def find_agent(device: Device) -> "Client | None":
    """A client of the device's agent, where one runs. Without its socket nothing of the client is even loaded."""
    if not device.config.path(device.config.api.socket).exists():
        return None
    from otaflow.through import find_agent

    return find_agent(device)


def go_on(ucm: "Ucm") -> None:
    _tell_rolled_back(str(work.go_on(ucm) or ""))


def _tell_rolled_back(why: str) -> None:
    if why:
        print(f"otaflow: the update on trial was rolled back: {why}", file=sys.stderr)


def _arrange_services(device: Device) -> str:
    """Before any of them may start: the slot that came up may know what was when it was made. What failed."""
    from otaflow.tasks.services_at_boot import arrange_services

    try:
        with using(device), device.lock:
            arrange_services()
    except Locked:  # somebody works on the device: this is no boot
        pass
    except OtaflowError as error:
        return str(error)
    return ""


def _put_target_right(device: Device) -> str:
    """Where the boot loader started another slot than it was told to, while nothing was going on."""
    from otaflow.trial import put_target_right

    here = Device(device.config)
    try:
        with here.lock:
            return put_target_right(here)
    except Locked:  # who works on the device looks by itself
        return ""


def _start_services(device: Device) -> list[str]:
    """Where there is no systemd, nobody else starts the services at boot; what runs is left alone. What failed."""
    from otaflow.platform.supervised import SupervisedServices

    services = device.services
    assert isinstance(services, SupervisedServices)
    return [str(error) for error in services.start_all().values()]


def _recover(device: Device, *, verify: bool, view: bool) -> str:
    """Recover without Prefect; returns what a person should know beside the state."""
    from otaflow.errors import Restarting
    from otaflow.recovery import recover as recover_device
    from otaflow.trial import has_fallen_back

    with working(device, prefect=False, view=view) as (ucm, _):
        try:
            # Where the boot loader gave the new system up, there is nothing to wait for.
            recover_device(ucm, verifies=verify or has_fallen_back(device))
        except HealthCheckFailed as error:
            return f"rolled back: {error}"
        except Restarting:
            return "the machine is restarting"
    return ""


@contextmanager
def reporting(device: Device, json: bool, done: list[str]) -> Iterator[None]:
    """Say how it ended: as JSON where asked for, also of a failure; a restart is no failure."""
    from otaflow.cli.report import read_status
    from otaflow.errors import Restarting

    answer: dict[str, Any] = {"done": done, "error": None, "restarting": False}
    try:
        try:
            yield
        except Restarting:
            answer["restarting"] = True
            print("the machine is restarting; the update goes on at its start", file=sys.stderr)
        except OtaflowError as error:
            answer["error"] = {"name": type(error).__name__, "message": str(error), "hint": error.hint}
            raise
    finally:
        if json:
            print_json(answer | {"status": read_status(Device(device.config))})


def _describe(target: "Target") -> dict[str, Any]:
    return {
        "name": target.name,
        "version": target.version,
        "update_number": target.update_number,
        "bytes": target.length,
        "priority": target.priority,
        "description": target.description,
    }
