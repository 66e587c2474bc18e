"""A report: what a device can say of itself and of its last failure, as plain data, stripped and bounded.

`{format, time, device, versions, ucm, trouble, machine, history, journal, boot_log, logs, cut}`. A part that cannot be
read is `{"error": why}`: a sick device is what reports are about. `cut` says what was left out; of everything the
newest is kept. No configuration, no user data, no file of the slots or of the main partition.
"""

import json
import os
import platform
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otaflow import __version__
from otaflow.diagnostics.stripping import strip
from otaflow.journal import now
from otaflow.policy.store import Store
from otaflow.records import Record, decode
from otaflow.ucm.states import State

if TYPE_CHECKING:
    from otaflow.config import Config
    from otaflow.platform.device import Device

MAX_BYTES = 256 * 1024
SHARES = {"history": 24 * 1024, "journal": 64 * 1024, "boot_log": 56 * 1024, "logs": 96 * 1024}
"""Bytes of JSON of the parts that grow; the rest is for the facts."""
LONGEST = 2000
"""Characters of one line or one text."""
LOGS = 4
BOOT_LINES = 800


def collect(device: "Device") -> Record:
    """The report that would be sent now: at most MAX_BYTES of JSON, without secrets. Raises nothing."""
    secrets = list(find_secrets(device.config))
    return bound({name: _strip_part(part, secrets) for name, part in _gather(device).items()})


def encode(report: Record) -> bytes:
    """The report's JSON, byte by byte as it is sent (before it is compressed)."""
    return json.dumps(report, separators=(",", ":"), ensure_ascii=True, sort_keys=True).encode()


def bound(report: Record, max_bytes: int = MAX_BYTES) -> Record:
    """`report` with its long parts cut to their shares: the newest entries stay, `cut` says what went."""
    cut: list[str] = []
    short = {name: value if name in SHARES else _shorten(value, LONGEST) for name, value in report.items()}
    for name in ("history", "journal"):
        if isinstance(report.get(name), list):
            short[name] = _newest(name, report[name], SHARES[name], cut)
    if isinstance(report.get("boot_log"), str):
        short["boot_log"] = _newest("boot_log", report["boot_log"].splitlines(), SHARES["boot_log"], cut)
    if isinstance(report.get("logs"), dict):
        short["logs"], left = {}, SHARES["logs"]
        for name, text in report["logs"].items():  # the newest log first
            lines = _newest(f"logs/{name}", text.splitlines(), left, cut)
            short["logs"][name] = lines
            left -= _size(lines)
    short["cut"] = cut
    for name in ("logs", "boot_log", "journal", "history", "machine", "versions", "ucm"):
        if _size(short) > max_bytes and name in short:
            short[name] = {"error": "left out: the report would be too long"}
    return short


def find_secrets(config: "Config") -> Iterable[str]:
    """What this device must not tell, as far as its configuration knows it: tokens, private keys, notices' URLs."""
    files = [config.api.token_file, config.api.key]
    for source in config.sources.values():
        files += [source.token_file, source.key]
    for file in files:
        if file is not None:
            text = _read(lambda file=file: config.path(file).read_text())  # type: ignore[misc]
            if isinstance(text, str):
                yield text
    for url in [*config.notices.urls, *(source.url for source in config.sources.values())]:
        _, _, place = url.partition("://")
        user, at, _ = place.rpartition("@")
        yield from user.split(":")[1:] if at else ()
    for url in config.notices.urls:
        yield url
        yield from (piece for piece in re.split(r"[/:@?&=]+", url) if len(piece) >= 8 and "." not in piece)


# --- the parts --------------------------------------------------------------------------------------------------------


def _gather(device: "Device") -> Record:
    """Everything, with its secrets, and more of it than will be kept: what is cut off could tell what is a secret."""
    config = device.config
    return {
        "format": 1,
        "time": now(),
        "device": {"name": config.device.name, "model": config.device.model},
        "versions": {
            "otaflow": __version__,
            "python": platform.python_version(),
            "kernel": _read(lambda: " ".join(os.uname()[i] for i in (0, 2, 3, 4))),
            "system": _read(lambda: vars(device.running_system())),
            "slots": {name: _read(lambda name=name: _label(device, name)) for name in device.config.slots.names},  # type: ignore[misc]
        },
        "ucm": _read(lambda: _ucm(device)),
        "trouble": _read(lambda: str(Store(device.nvm / "policy" / "told").read().get("trouble", {}).get("error", ""))),
        "machine": _read(lambda: _machine(device)),
        "history": _read(lambda: _history(device)),
        "journal": _read(lambda: _tail_records(device.nvm / "journal", 2 * SHARES["journal"])),
        "boot_log": _read(lambda: _boot_log(device)),
        "logs": _read(lambda: _logs(device.logs)),
    }


def _ucm(device: "Device") -> Record:
    journal = device.journal
    return {
        "state": str(journal.state),
        "session": journal.session.id,
        "boots": device.boots.count(),
        "running": _read(device.boot.running),
        "starts_next": _read(device.boot.target),
    }


def _history(device: "Device") -> list[Record]:
    records = _tail_records(device.history.file.path, 2 * SHARES["history"])
    return [{name: value for name, value in record.items() if name != "key"} for record in records]


def _label(device: "Device", slot: str) -> Record:
    from otaflow.platform.labels import read_label

    return vars(read_label(device.slots.path(slot)))


def _machine(device: "Device") -> Record:
    import psutil  # slow to import, and rarely needed

    folders = {"root": device.root, "main": device.main, "nvm": device.nvm, "cache": device.cache}
    folders |= {"backups": device.backups.folder, "slots": device.config.path(device.config.slots.path)}
    return {
        "cpus": psutil.cpu_count(),
        "load": _read(lambda: [round(one, 2) for one in psutil.getloadavg()]),
        "started": _read(lambda: int(psutil.boot_time())),
        "memory": _read(lambda: psutil.virtual_memory()._asdict()),
        "swap": _read(lambda: psutil.swap_memory()._asdict()),
        "disks": {
            name: _read(lambda path=path: psutil.disk_usage(str(path))._asdict())  # type: ignore[misc]
            for name, path in folders.items()
        },
    }


def _logs(folder: Path) -> dict[str, str]:
    """The processing logs that were written last, the newest first."""
    files = (
        sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime_ns, reverse=True) if folder.is_dir() else []
    )
    return {path.name: _tail(path, 2 * SHARES["logs"]) for path in files[:LOGS]}


def _boot_log(device: "Device") -> str:
    """What the flight recorder kept of the last session's failed boot, or systemd's journal still has of it.

    "" where no machine restarted.
    """
    from otaflow.platform.flight_recorder import read_journal

    if kept := device.recorder.read(device.journal.session.id):
        return kept
    if device.config.boot.restart == "switch":
        return ""
    failed = device.journal.session.boots_at(State.ROLLING_BACK)
    if failed < 0:
        return ""
    return "\n".join(read_journal(min(0, failed - device.boots.count()), lines=BOOT_LINES))


def _strip_part(part: Any, secrets: list[str]) -> Any:
    try:
        return strip(part, secrets)
    except Exception as error:  # what cannot be stripped is not sent, not even in the error's text
        return {"error": f"it cannot be stripped: {type(error).__name__}"}


# --- bounds -----------------------------------------------------------------------------------------------------------


def _read(part: Callable[[], Any]) -> Any:
    """What `part` returns, or why it cannot be read."""
    try:
        return part()
    except Exception as error:  # of whatever kind: the other parts are worth having
        return {"error": f"{type(error).__name__}: {error}"}


def _tail(path: Path, size: int) -> str:
    """The last whole lines of a file, at most `size` bytes; "" where there is none."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            content = file.read(size)
    except FileNotFoundError:
        return ""
    if length > size:
        content = content.partition(b"\n")[2]
    return content.decode(errors="replace")


def _tail_records(path: Path, size: int) -> list[Record]:
    """The newest records of a file of `otaflow.records`; a damaged line is told as what it is."""
    lines = _tail(path, size).splitlines()
    return [decode(line.encode()) or {"damaged": line} for line in lines]


def _newest(name: str, entries: list[Any], size: int, cut: list[str]) -> list[Any]:
    """The last of `entries` that have room in `size` bytes of JSON, each shortened."""
    kept: list[Any] = []
    left = size - 2
    for entry in reversed(entries):
        short = _shorten(entry, LONGEST)
        left -= _size(short) + 1
        if left < 0:
            cut.append(f"{name}: the oldest {len(entries) - len(kept)} of {len(entries)} entries")
            break
        kept.append(short)
    return kept[::-1]


def _shorten(data: Any, longest: int) -> Any:
    """Texts in `data` of at most `longest` characters; what is cut off is said by `…`."""
    match data:
        case str() if len(data) > longest:
            return data[:longest] + "…"
        case dict():
            return {name[:200]: _shorten(value, longest) for name, value in data.items()}
        case list():
            return [_shorten(value, longest) for value in data]
    return data


def _size(data: Any) -> int:
    return len(json.dumps(data, separators=(",", ":")))
