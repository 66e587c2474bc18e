"""Sending reports: collected, spooled, then sent oldest first over the source's authenticated TLS (spec/s16-package-
update.md, "send diagnostic data").

Durable in the spool before it is sent; removed only after the server took it. A power cut between the two sends it
twice, which the server can tell by its bytes. The same failure again within an hour makes no other report.
"""

import gzip
import hashlib
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from otaflow import fault
from otaflow.diagnostics.consent import read_consent
from otaflow.diagnostics.report import collect
from otaflow.diagnostics.spool import Spool, store_of
from otaflow.errors import ConfigError, OtaflowError, RepositoryRefused
from otaflow.records import Record

if TYPE_CHECKING:
    from otaflow.config import Source
    from otaflow.platform.device import Device

log = logging.getLogger("otaflow.diagnostics")

SAME = timedelta(hours=1)
"""The very same failure is reported once in so long."""
NO_CONSENT = "nothing is sent: nobody agreed to it (`otaflow diagnostics consent yes` does)"


def send(device: "Device", source: str = "", *, always: bool = False) -> str:
    """Report the last failure of `device` to `source` (its own, if empty) and send what waits; what became of it.

    Without consent, or where the source has no `diagnostics`, nothing is collected. With `always` a report is made even
    if the same failure was reported lately. What cannot be sent now waits. Raises ConfigError, and nothing else.
    """
    if not read_consent(device.nvm).given:
        return NO_CONSENT
    from otaflow.repo.client import locate

    name = source or device.config.update.use
    where = locate(device.config, name)
    if where.diagnostics is None:
        return f"nothing is sent: the source {name!r} has no `diagnostics` in the configuration"
    try:
        made = _spool(device, always=always)
    except OSError as error:
        made = f"no report could be kept: {error}"
    try:
        return f"{made}; {_deliver(device, where)}"
    except OSError as error:
        return f"{made}; what waits could not be sent: {error}"


def fingerprint(report: Record) -> str:
    """What failed, without when: the same text for the very same failure."""
    history = report["history"] if isinstance(report["history"], list) else []
    last = history[-1] if history else {}
    what = [last.get(name) for name in ("name", "version", "action", "resolution", "error", "why")]
    state = report["ucm"].get("state")
    return hashlib.sha256(json.dumps([what, state, report["trouble"]], default=str).encode()).hexdigest()[:16]


def _spool(device: "Device", *, always: bool) -> str:
    report = collect(device)
    mark, now = fingerprint(report), datetime.now(UTC)
    if not always and (seen := _seen(device.nvm, now).get(mark)):
        return f"the same failure was reported at {seen}"
    kept = Spool(device.nvm).add(report, lambda: read_consent(device.nvm).given)
    if kept is None:
        return "the consent was withdrawn"
    with store_of(device.nvm).changing() as stored:
        stored["seen"] = _seen(device.nvm, now) | {mark: now.isoformat(timespec="seconds")}
    return "a report was made"


def _seen(nvm: Path, now: datetime) -> dict[str, str]:
    """The failures of the last hour, and when they were reported; after a clock was set back, none from the future."""
    found: dict[str, str] = {}
    for mark, time in store_of(nvm).read().get("seen", {}).items():
        try:
            if timedelta() <= now - datetime.fromisoformat(time) < SAME:
                found[mark] = time
        except (TypeError, ValueError):
            continue
    return found


def _deliver(device: "Device", source: "Source") -> str:
    """Send what waits, the oldest first, until the server is away."""
    spool = Spool(device.nvm)
    with spool.sending() as mine:
        if not mine:
            return f"another otaflow is sending, {_count(len(spool.waiting()))} waiting"
        sent, why = _send_all(device.nvm, spool, source)
    left = len(spool.waiting())
    host = urlsplit(source.diagnostics or "").hostname
    text = f"sent {_count(sent)} to {host}"
    return text if not left else f"{text}, {_count(left)} waiting" + (f": {why}" if why else "")


def _send_all(nvm: Path, spool: Spool, source: "Source") -> tuple[int, str]:
    from otaflow.repo.transport import Transport

    sent, why = 0, ""
    way = Transport(source)
    try:
        for path in spool.waiting():
            body = spool.read(path)
            if body is None or not read_consent(nvm).given:
                continue
            try:
                way.upload(source.diagnostics or "", gzip.compress(body, mtime=0))
            except ConfigError:
                raise
            except RepositoryRefused as error:  # perhaps this one only: it must not hold the others back
                why = str(error)
                continue
            except OtaflowError as error:
                why = str(error)
                break
            fault.point("diagnostics.sent")
            spool.remove(path)
            sent += 1
    finally:
        way.close()
    if why:
        log.warning("%s", why)
    return sent, why


def _count(number: int) -> str:
    return f"{number or 'no'} report{'' if number == 1 else 's'}"
