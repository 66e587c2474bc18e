"""What the deployed flows do with runs: reports as artifacts, runs that wait, and polls that are due later."""

import logging
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.states import Scheduled

from otaflow import answers
from otaflow.diagnostics.report import find_secrets
from otaflow.diagnostics.stripping import strip
from otaflow.errors import OtaflowError
from otaflow.history import ACTIVATED
from otaflow.platform.device import Device
from otaflow.platform.labels import read_label
from otaflow.why import explain_end

log = logging.getLogger("otaflow.runs")

SHOWN_LINES, SHOWN_LETTERS = 60, 300
"""What a report shows of a log."""

Parts = dict[str, dict[str, Any]]
NOTHING = {"name": "", "version": "", "runs": False, "starts next": False}


def describe(device: Device) -> Parts:
    """Each slot: what is in it, whether it runs, whether it starts next; then each application."""
    running, target = device.boot.running(), device.boot.target()
    found: Parts = {}
    for name in device.slots.names:
        try:
            label = read_label(device.slots.path(name))
            found[name] = {"name": label.name, "version": label.version}
        except OtaflowError:
            found[name] = {"name": "", "version": "nothing that can start"}
        found[name] |= {"runs": name == running, "starts next": name == target}
    for name, version in device.applications.versions().items():
        found[f"application {name}"] = NOTHING | {"name": name, "version": version}
    return found


def report(device: Device, before: Parts, title: str = "Update") -> None:
    """Leave a table of slots and applications before and after, and a report in words, on the present run."""
    now = describe(device)
    before, after = ({name: part.get(name, NOTHING) for name in before | now} for part in (before, now))
    rows = [
        {
            "slot": name,
            "before": before[name]["version"] + (" (ran)" if before[name]["runs"] else ""),
            "after": after[name]["version"] + (" (runs)" if after[name]["runs"] else ""),
            "starts next": "yes" if after[name]["starts next"] else "",
        }
        for name in after
    ]
    key = device.config.device.name.lower().replace("_", "-").replace(".", "-")
    create: Any = create_table_artifact
    what = "The slots and applications" if device.applications.names() else "The slots"
    create(table=rows, key=f"slots-{key}", description=f"{what} of {device.config.device.name}", _sync=True)
    tell: Any = create_markdown_artifact
    tell(markdown=write_report(device, title), key=f"report-{key}", description=title, _sync=True)


def write_report(device: Device, title: str, last: int = 10) -> str:
    """The device's state and its newest history, in Markdown."""
    system = device.running_system()
    lines = [
        f"# {title}: {device.config.device.name}",
        "",
        f"**{system.name} {system.version}** runs in slot **{device.boot.running()}**.",
        *(f"Application **{name} {version}**." for name, version in device.applications.versions().items()),
        "",
        "| when | what | version | how it ended | why |",
        "| --- | --- | --- | --- | --- |",
    ]
    for record in reversed(device.history.read()[-last:]):
        why = str(record.get("why", "")).replace("|", "\\|").replace("\n", " ")
        lines.append(
            f"| {record['time'][:19]} | {record['action']} {record['name']} | {record['version']} "
            f"| {record['resolution']} | {why} |"
        )
    lines += _write_why(device)
    if decisions := answers.decisions(device):
        lines += ["", "## On offer", ""]
        lines += [
            f"* {one.offer.title()}: {one.verdict}; {'; '.join(reason.text for reason in one.reasons)}"
            for one in decisions
        ]
    return "\n".join(lines)


def _write_why(device: Device) -> list[str]:
    """Of the last action, where it failed: what its checks said and the end of the failed boot, without secrets."""
    records = device.history.read()
    if not records or records[-1]["resolution"] == ACTIVATED:
        return []
    why = strip(explain_end(device, len(records)), list(find_secrets(device.config)))
    lines: list[str] = []
    for title, said in (("What was said", why["said"]), ("The failed boot", why["boot_log"].splitlines())):
        if said:
            lines += ["", f"## {title}", "", *(f"    {line[:SHOWN_LETTERS]}" for line in said[-SHOWN_LINES:])]
    return lines


def poll_again(run: str, content: str, when: datetime) -> None:
    """Have the deployment of `run` poll again at `when`, once for each content and moment."""
    with get_client(sync_client=True) as client:
        deployment = client.read_flow_run(UUID(run)).deployment_id
        later: Any = Scheduled(scheduled_time=when)
        if deployment:
            client.create_flow_run_from_deployment(
                deployment,
                state=later,
                idempotency_key=f"again-{content[:16]}-{when.isoformat(timespec='minutes')}",
                tags=["otaflow", "again"],
            )
