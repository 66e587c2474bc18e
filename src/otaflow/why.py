"""Why an action ended as it did: its record, what the checks and steps said, and the failed boot's log.

`{number, record, said, boot_log}`: `said` are lines of the processing log, `boot_log` is the flight recorder's text
(`otaflow.platform.flight_recorder`). Nothing is stripped: it is for the device's owner. What leaves the device is.
"""

from typing import Any

from otaflow import history
from otaflow.errors import OtaflowError
from otaflow.platform.device import Device
from otaflow.records import Record

SAID = 400
"""So many of the newest lines of what was said are shown."""


def explain_end(device: Device, number: int | None = None) -> Record:
    """About record `number` of the history (1: the oldest), or the newest that failed. OtaflowError: there is none."""
    records = device.history.read()
    if number is None:
        failed = [place for place, one in enumerate(records, 1) if one["resolution"] != history.ACTIVATED]
        number = failed[-1] if failed else 0
    if not 1 <= number <= len(records):
        what = f"there is no record {number}, but {len(records)}" if number else "nothing has failed"
        raise OtaflowError(f"cannot say why: {what}", hint="`otaflow history` lists the records")
    record = {key: value for key, value in records[number - 1].items() if key != "key"}
    session = str(record.get("session", ""))
    return {
        "number": number,
        "record": record,
        "said": read_said(device, session) if session else [],
        "boot_log": device.recorder.read(session) if session else "",
    }


def read_said(device: Device, session: str) -> list[str]:
    """What failed in a session, and what its health checks said, from its processing log."""
    try:
        lines = (device.logs / f"{session}.log").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [line for line in lines if _tells_why(line)][-SAID:]


def _tells_why(line: str) -> bool:
    """`TIME KIND NAME FACTS`, as `otaflow.work.ProcessingLog` writes it."""
    kind, _, rest = line.partition(" ")[2].partition(" ")
    return kind == "failed" or (kind == "output" and rest.strip().startswith("health check")) or "error=" in rest


def in_words(why: dict[str, Any]) -> list[str]:
    """The explanation for a terminal or a report."""
    record = why["record"]
    lines = [f"{record['action']} {record['name']} {record['version']}: {record['resolution']}, {record['time'][:19]}"]
    lines += [f"why: {record['why']}"] if record.get("why") else []
    if why["said"]:
        lines += ["", "what was said:", *(f"  {line}" for line in why["said"])]
    if why["boot_log"]:
        lines += ["", "the failed boot:", *(f"  {line}" for line in why["boot_log"].splitlines())]
    return lines
