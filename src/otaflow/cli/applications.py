"""`otaflow app`: the applications of a device."""

from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from otaflow import work
from otaflow.asked import Asked
from otaflow.cli.common import Accept, ConfigFile, Json, Source, load_device, print_json, showing, working
from otaflow.cli.update import find_agent, go_on, reporting
from otaflow.errors import OtaflowError

if TYPE_CHECKING:
    from otaflow.platform.device import Device

app = cyclopts.App(name="app", help="Applications: list them, install, update and remove them.")

Name = Annotated[str, Parameter(help="The application's name.")]
Version = Annotated[str, Parameter(name="--version", help="Up to this version; the highest otherwise.")]


@app.command(name="list")
def list_applications(*, config: ConfigFile = None, json: Json = False) -> None:
    """List what is installed: versions, what runs of it, and where its data is."""
    device = load_device(config)
    found = read_applications(device)
    if json:
        print_json({"applications": found})
        return
    if not found:
        print("no applications are installed; `otaflow app install NAME` fetches one from the repository")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("application", "version", "services", "data")
    for one in found:
        states = "\n".join(f"{service['name']}: {service['state']}" for service in one["services"])
        table.add_row(one["name"], one["version"], one.get("error") or states or "-", one["data"])
    Console(highlight=False, markup=False).print(table)


@app.command
def install(
    name: Name,
    /,
    *,
    version: Version = "",
    accept_irreversible: Accept = False,
    config: ConfigFile = None,
    source: Source = None,
    json: Json = False,
) -> None:
    """Install an application from the repository, with the updates that follow, one after the other."""
    asked = Asked(name=name, version=version, anew=True, accepts=accept_irreversible)
    installed = _install(load_device(config, source), asked, json=json)
    if not json:
        print(f"installed {', '.join(installed)}")


@app.command
def update(
    name: Name,
    /,
    *,
    version: Version = "",
    accept_irreversible: Accept = False,
    config: ConfigFile = None,
    source: Source = None,
    json: Json = False,
) -> None:
    """Update one application now, without asking about it as a poll does."""
    asked = Asked(name=name, version=version, accepts=accept_irreversible)
    installed = _install(load_device(config, source), asked, json=json)
    if not json:
        print(f"installed {', '.join(installed)}" if installed else f"nothing to install: {name} is up to date")


@app.command
def remove(name: Name, /, *, config: ConfigFile = None, json: Json = False) -> None:
    """Remove an application; its data stays."""
    device = load_device(config)
    done: list[str] = []
    if agent := find_agent(device):
        from otaflow import through

        with reporting(device, json, done), agent, showing(not json):
            through.remove(agent, device, name)
            done.append(name)
    else:
        with reporting(device, json, done), working(device, view=not json) as (ucm, _):
            go_on(ucm)
            work.remove(ucm, name)
            done.append(name)
    if not json:
        print(f"removed {name}; its data stays in {device.applications.data(name)}")


@app.command
def request(name: Name, /, *, config: ConfigFile = None, json: Json = False) -> None:
    """Look for updates of an application now, as a poll does: what is found is asked about, or installed.

    With an agent this says at once what is on offer, and the agent looks; without one it looks itself.
    """
    device = load_device(config)
    if agent := find_agent(device):
        with agent:
            answer = agent.request_update(name)
        if json:
            print_json(answer)
            return
        for offer in answer["offers"]:
            reasons = "; ".join(reason["text"] for reason in offer["reasons"])
            print(f"{offer['name']} {offer['version']}: {offer['verdict']}; {reasons}")
        if not answer["offers"]:
            print(f"nothing is on offer for {name}")
        if answer["searching"]:
            print("the agent looks for updates now; `otaflow inbox list` says what it finds")
        return
    if name not in device.applications.names():
        raise OtaflowError(
            f"cannot look for an update of {name}: it is not installed",
            hint="`otaflow app list` shows what is installed",
        )
    from otaflow.cli.poll import print_end, run_poll

    print_end(run_poll(device, config, None, name), json=json)


@app.command
def defer(name: Name, /, *, config: ConfigFile = None, json: Json = False) -> None:
    """Put off the closing of an application that was asked to close for its update."""
    from otaflow.closing import defer as put_off

    device = load_device(config)
    if agent := find_agent(device):
        with agent:
            answer = agent.defer(name)
    else:
        answer = put_off(device, name)
    if json:
        print_json(answer)
        return
    again = f"can be put off {answer['defersLeft']} times more" if answer["defersLeft"] else "cannot be put off again"
    print(f"{name} is ended in {answer['secondsLeft']:g} s; that {again}")


# --- inside -----------------------------------------------------------------------------------------------------------


def _install(device: "Device", asked: Asked, *, json: bool) -> list[str]:
    """Install what is asked for, through the agent or in this process; the versions that are in place."""
    installed: list[str] = []
    if agent := find_agent(device):
        from otaflow import through

        with reporting(device, json, installed), agent, showing(not json):
            installed.extend(through.install_new(agent, device, asked))
    else:
        with reporting(device, json, installed), working(device, view=not json) as (ucm, _):
            go_on(ucm)
            installed.extend(work.install_new(ucm, asked))
    return installed


def read_applications(device: "Device") -> list[dict[str, Any]]:
    """Every application as plain data; one whose label cannot be read says so in its `error`."""
    return [_read_application(device, name) for name in device.applications.names()]


def _read_application(device: "Device", name: str) -> dict[str, Any]:
    here = device.applications
    described: dict[str, Any] = {"name": name, "version": "?", "update_number": 0, "services": []}
    described |= {"files": str(here.path(name)), "data": str(here.data(name))}
    try:
        found = here.find(name)
    except OtaflowError as error:
        return described | {"error": str(error)}
    if found is None:  # removed meanwhile
        return described
    services = [_read_service(device, service) for service in found.services]
    return described | {"version": found.version, "update_number": found.update_number, "services": services}


def _read_service(device: "Device", service: str) -> dict[str, Any]:
    try:
        state = device.services.state(service)
    except OtaflowError as error:
        return {"name": service, "active": False, "state": f"not known: {error}"}
    return {"name": service, "active": state.active, "state": state.words or ("active" if state.active else "inactive")}
