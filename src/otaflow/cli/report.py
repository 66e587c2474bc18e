"""`otaflow status`, `history` and `backups`: what a device is and was. They change nothing and need no lock."""

from typing import Annotated, Any

from cyclopts import Parameter

from otaflow.cli.common import ConfigFile, Json, load_device, print_json
from otaflow.errors import ConfigError
from otaflow.platform.device import Device
from otaflow.ucm.states import MEANING


def status(*, config: ConfigFile = None, json: Json = False) -> None:
    """Show the update manager's state, both slots, the applications, and how the last update ended."""
    device = load_device(config)
    values = read_status(device)
    if json:
        print_json(values)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]{values['device']}[/]: {values['ucm_state']}, {MEANING[device.journal.state]}")
    table = Table("slot", "system", "version", "update", "")
    for name, slot in values["slots"].items():
        marks = [
            word for word, here in (("runs", name == values["active_slot"]), ("starts next", slot["next"])) if here
        ]
        table.add_row(name, slot["name"], slot["version"], str(slot["update_number"]), ", ".join(marks))
    console.print(table)
    for one in values["applications"]:
        console.print(f"application: {one['name']} {one['version']}", markup=False)
    if values["tries_left"] is not None:
        target = values["boot_target"]
        console.print(f"on trial: slot {target}; the boot loader starts it {values['tries_left']} more times at most")
    if values["alarm"]:
        console.print(f"[bold red]alarm[/]: {values['alarm']}", highlight=False)
    if last := values["last_result"]:
        why = f": {last['why']}" if last.get("why") else ""
        console.print(
            f"last: {last['action']} {last['name']} {last['version']}, {last['resolution']}{why}", markup=False
        )


def history(
    number: int | None = None,
    /,
    *,
    config: ConfigFile = None,
    log: Annotated[bool, Parameter(negative=(), help="Show the processing log of the last action.")] = False,
    why: Annotated[bool, Parameter(negative=(), help="Say why one ended so: checks, steps, the failed boot.")] = False,
    json: Json = False,
) -> None:
    """List every action on this device and how it ended, oldest first.

    Parameters
    ----------
    number
        With --why: the record, as it is numbered in the list; else the newest that failed.
    """
    device = load_device(config)
    if number is not None and not why:
        raise ConfigError("cannot show one record without --why", hint="`otaflow history --why NUMBER`")
    if why:
        from otaflow.why import explain_end, in_words

        explained = explain_end(device, number)
        if json:
            print_json(explained)
        else:
            print("\n".join(in_words(explained)))
        return
    records = device.history.read()
    if log:
        sessions = [record["session"] for record in records if record.get("session")]
        file = device.logs / f"{sessions[-1] if sessions else 'none'}.log"
        print(file.read_text() if file.exists() else "there is no processing log", end="")
        return
    if json:
        print_json([{key: value for key, value in record.items() if key != "key"} for record in records])
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(
        Column("no.", no_wrap=True, justify="right"),
        *(Column(name, no_wrap=True) for name in ("time (UTC)", "action", "name", "version", "resolution")),
        Column("why", ratio=1, overflow="fold"),
    )
    for number, record in enumerate(records, 1):
        time = str(record["time"])[:19].replace("T", " ")
        cells = (
            number,
            time,
            *(record[name] for name in ("action", "name", "version", "resolution")),
            record.get("why", ""),
        )
        table.add_row(*(str(cell) for cell in cells))
    Console(highlight=False, markup=False).print(table)


def backups(*, config: ConfigFile = None, json: Json = False) -> None:
    """List the backups: every one holds the slot and /etc/sys; full copies and main snapshots end with retention."""
    device = load_device(config)
    entries = [
        {
            "id": entry.id,
            "time": entry.time,
            "version": entry.version,
            "update_number": entry.update_number,
            "full": device.backups.path(entry.id, "full.tar").exists(),
            "main_snapshot": device.backups.path(entry.id, "main").exists(),
        }
        for entry in device.backups
    ]
    if json:
        print_json(entries)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "time", "version", "full backup", "main snapshot")
    for entry in entries:
        kept = ("kept" if entry[part] else "-" for part in ("full", "main_snapshot"))
        table.add_row(str(entry["id"]), str(entry["time"]), str(entry["version"]), *kept)
    Console(highlight=False, markup=False).print(table)


def read_status(device: Device) -> dict[str, Any]:
    """The device's status as plain data; a slot that cannot be read says so in its `error`."""
    running, target = device.boot.running(), device.boot.target()
    slots = {name: _read_slot(device, name) | {"next": name == target} for name in device.slots.names}
    last = device.history.last()
    return {
        "device": device.config.device.name,
        "ucm_state": str(device.journal.state),
        "session": device.journal.session.id if device.journal.state != "Idle" else None,
        "active_slot": running,
        "boot_target": target,
        "tries_left": device.boot.tries_left(),
        "system": slots[running]["name"],
        "system_version": slots[running]["version"],
        "update_number": slots[running]["update_number"],
        "slots": slots,
        "applications": [{"name": one.name, "version": one.version} for one in device.applications.all()],
        "backups": sum(1 for _ in device.backups),
        "alarm": _read_alarm(device),
        "last_result": {key: value for key, value in last.items() if key != "key"} if last else None,
    }


def _read_alarm(device: Device) -> str | None:
    """What an ended session could not take back."""
    left = [intent.step for intent in device.journal.open_intents()] if device.journal.state == "Idle" else []
    if not left:
        return None
    return f"not taken back: {', '.join(left)}; `otaflow clean-up` tries again, `otaflow history` says why"


def _read_slot(device: Device, name: str) -> dict[str, Any]:
    from otaflow.errors import OtaflowError
    from otaflow.platform.labels import read_label

    try:
        label = read_label(device.slots.path(name))
    except OtaflowError as error:
        return {"name": "?", "version": "?", "update_number": 0, "error": str(error)}
    return {"name": label.name, "version": label.version, "update_number": label.update_number}
