"""What the UCM reports in every state (GetSwClusterInfo, GetSwClusterChangeInfo, GetSwPackages, GetHistory)."""

from datetime import UTC, datetime
from typing import Any

from otaflow.errors import GeneralReject
from otaflow.platform.device import Device
from otaflow.transfer.cached import PackageInfo
from otaflow.ucm.states import State

Report = list[dict[str, Any]]
HISTORY_FIELDS = ("time", "name", "version", "action", "resolution", "error")


def report_clusters(device: Device) -> Report:
    """The software clusters that are present: the system that runs, and the applications."""
    system = device.running_system()
    clusters = {system.name: system.version, **device.applications.versions()}
    return [{"name": name, "version": version, "state": "kPresent"} for name, version in clusters.items()]


def report_changes(device: Device) -> Report:
    """What the session that is going on adds, updates or removes, once for each cluster."""
    session = device.journal.session
    if device.journal.state is State.IDLE:
        return []
    present = {cluster["name"] for cluster in report_clusters(device)}
    changes = {}
    for place in session.processed:
        action = session.actions[place]
        state = "kRemoved" if action.kind == "remove" else "kUpdating" if action.name in present else "kAdded"
        changes[action.name] = {"name": action.name, "version": action.version, "state": state}
    return list(changes.values())


def report_packages(packages: list[PackageInfo]) -> Report:
    """Every package in the cache, with where its transfer is to go on."""
    return [
        {
            "id": package.id,
            "name": package.name,
            "version": package.version,
            "state": package.state,
            "consecutiveBytesReceived": package.consecutive_bytes_received,
            "consecutiveBlocksReceived": package.consecutive_blocks_received,
        }
        for package in packages
    ]


def report_history(device: Device, since: str | None, until: str | None) -> Report:
    """Every action and its end, oldest first; `since` and `until` (RFC 3339) are included. Raises GeneralReject."""
    first, last = (_read_time(limit) if limit else None for limit in (since, until))
    return [
        {name: record[name] for name in HISTORY_FIELDS if name in record}
        for record in device.history.read()
        if (first is None or _read_time(record["time"]) >= first)
        and (last is None or _read_time(record["time"]) <= last)
    ]


def _read_time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise GeneralReject(
            f"cannot read the time {text!r}: it is not RFC 3339", hint="write it as 2026-05-01T12:00:00Z"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
