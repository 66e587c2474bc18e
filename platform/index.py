"""The index file and its counter: what is read and written, on one place for us and for the switch that starts slots.

INDEX is JSON, one key a line, because a shell script reads it, too (deployments/initrd/otaflow-switch):
{"format": 1, "boot": "b", "promise": "…", "checksum": "…"}, and where the slot is on trial "tries": 3 and
"fallback": "a" before the checksum. That is the sha256 of the others, as JSON in one line with sorted keys.

INDEX.tries is what the switch counts: "PROMISE COUNT", how often it has started that content. It is one more than
the tries when the switch has fallen back.
"""

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from otaflow.errors import OtaflowError
from otaflow.files import fsync_folder, write_atomic

FORMAT = 1


class Index(NamedTuple):
    """What an index file says; `tries` and `fallback` are None where the slot is trusted."""

    slot: str
    promise: str
    tries: int | None = None
    fallback: str | None = None


def read_index(path: Path, slots: Collection[str]) -> Index:
    """Read the file. OtaflowError: there is none, or it is damaged."""
    try:
        values = json.loads(path.read_bytes())
        checksum = values.pop("checksum")
        index = Index(values["boot"], values["promise"], values.get("tries"), values.get("fallback"))
        version = values["format"]
    except FileNotFoundError as error:
        raise OtaflowError(
            f"cannot read the index file {path}: there is none", hint="`otaflow device init` makes one"
        ) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(path, "it is no index") from error
    if version != FORMAT:
        raise _damaged(path, f"its format is {version!r}, not {FORMAT}")
    if checksum != _sum(values):
        raise _damaged(path, "its checksum is wrong")
    for slot in (index.slot, index.fallback):
        if slot is not None and slot not in slots:
            raise _damaged(path, f"it names the slot {slot!r}")
    return index


def write_index(path: Path, index: Index) -> None:
    """Replace the file atomically."""
    values: dict[str, object] = {"format": FORMAT, "boot": index.slot, "promise": index.promise}
    if index.tries is not None:
        values |= {"tries": index.tries, "fallback": index.fallback}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({**values, "checksum": _sum(values)}, indent=1).encode() + b"\n")


def read_count(path: Path, promise: str) -> int:
    """How often the content `promise` of the index file `path` was started on trial.

    A damaged counter, or one of another content, is none, as the switch takes it.
    """
    try:
        line = counter_of(path).read_bytes()
    except FileNotFoundError:
        return 0
    found = re.fullmatch(rb"(.*) (0|[1-9][0-9]{0,2})\n?", line)
    return int(found[2]) if found and found[1] == promise.encode() else 0


def write_count(path: Path, promise: str, count: int) -> None:
    """Replace the counter atomically."""
    write_atomic(counter_of(path), f"{promise} {count}\n".encode())


def forget_count(path: Path) -> None:
    """Remove the counter, durably."""
    if counter_of(path).exists():
        counter_of(path).unlink()
        fsync_folder(path.parent)


def counter_of(path: Path) -> Path:
    """Where the starts of the index file's slot are counted."""
    return path.with_name(f"{path.name}.tries")


def _damaged(path: Path, why: str) -> OtaflowError:
    return OtaflowError(
        f"cannot use the index file {path}: {why}",
        hint="it was damaged from outside; restore it, or name the slot with `otaflow rollback`",
    )


def _sum(values: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
