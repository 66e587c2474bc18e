"""`otaflow diagnostics`: agree to diagnostic data or not, see what would be sent, send it."""

import getpass
import json as json_module
import os
import sys
from contextlib import suppress
from typing import Annotated, Any, Literal

import cyclopts

from otaflow import diagnostics
from otaflow.cli.common import ConfigFile, Json, Source, load_device, print_json
from otaflow.errors import OtaflowError
from otaflow.platform.device import Device

app = cyclopts.App(name="diagnostics", help="Diagnostic data for the maker: agree, look at it, send it.")


@app.command
def consent(answer: Literal["yes", "no"] | None = None, *, config: ConfigFile = None, json: Json = False) -> None:
    """Agree that diagnostic data is sent after a failure (yes), or withdraw that (no); show what holds.

    What is sent can be read beforehand: `otaflow diagnostics show`. `no` removes what waits to be sent.

    Parameters
    ----------
    answer
        yes or no; nothing changes without it.
    """
    device = load_device(config)
    removed = 0
    if answer == "yes":
        diagnostics.give_consent(device.nvm, _who())
    elif answer == "no":
        removed = diagnostics.withdraw_consent(device.nvm, _who())
    holds = diagnostics.read_consent(device.nvm)
    if json:
        print_json({"given": holds.given, "time": holds.time or None, "by": holds.by or None, "removed": removed})
        return
    said = "yes" if holds.given else "no"
    print(f"{said}, said {holds.by} at {holds.time}" if holds.time else "no: nobody was asked")
    if removed:
        print(f"removed what waited, unsent: {removed}")


@app.command
def show(
    report: Annotated[str | None, cyclopts.Parameter(help="One that waits, as `spool` lists it.")] = None,
    *,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Show what would be sent now, or a REPORT that waits. With --json: the very bytes, before they are compressed."""
    device = load_device(config)
    body = diagnostics.encode(diagnostics.collect(device)) if report is None else _read_waiting(device, report)
    if json:
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
    else:
        print(json_module.dumps(json_module.loads(body), indent=2, ensure_ascii=True))


@app.command
def send(*, config: ConfigFile = None, source: Source = None) -> None:
    """Send a report now, and what waits. Refused without consent."""
    device = load_device(config)
    if not diagnostics.read_consent(device.nvm).given:
        raise OtaflowError(
            "cannot send diagnostic data: nobody agreed to it",
            hint="`otaflow diagnostics show` shows what would be sent, `otaflow diagnostics consent yes` agrees",
        )
    print(diagnostics.send(device, source or "", always=True))


@app.command
def spool(*, config: ConfigFile = None, json: Json = False) -> None:
    """List the reports that wait to be sent, the oldest first."""
    spool = diagnostics.Spool(load_device(config).nvm)
    waiting: list[dict[str, Any]] = []
    for path in spool.waiting():
        with suppress(FileNotFoundError):  # sent meanwhile
            waiting.append({"report": path.name, "bytes": path.stat().st_size})
    if json:
        print_json(waiting)
        return
    for one in waiting:
        print(f"{one['report']}  {one['bytes']} bytes")
    if not waiting:
        print("nothing waits")


def _read_waiting(device: Device, name: str) -> bytes:
    spool = diagnostics.Spool(device.nvm)
    for path in spool.waiting():
        if path.name == name and (body := spool.read(path)) is not None:
            return body
    raise OtaflowError(f"cannot show {name}: it does not wait", hint="`otaflow diagnostics spool` lists what does")


def _who() -> str:
    """Who types: the user behind sudo, if there is one."""
    with suppress(OSError, KeyError):
        return os.environ.get("SUDO_USER") or getpass.getuser()
    return str(os.getuid())
