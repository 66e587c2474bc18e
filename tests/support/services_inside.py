"""Runs inside a machine: one call of SystemdServices, told by JSON.

usage: services_inside.py '[{"units": …, "timeout": …}, METHOD, [ARGUMENT, …]]'; a text with a `/` in front is a path.
Prints a line of JSON: {"result": …} or {"error": words, "hint": words}.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from otaflow.errors import ServiceFailed
from otaflow.platform.systemd import SystemdServices


def decode(value: Any) -> Any:
    if isinstance(value, list):
        return [decode(one) for one in value]
    return Path(value) if isinstance(value, str) and value.startswith("/") else value


def call(settings: dict[str, Any], method: str, arguments: list[Any]) -> dict[str, Any]:
    services = SystemdServices(**{key: decode(value) for key, value in settings.items()})
    try:
        result = getattr(services, method)(*map(decode, arguments))
    except ServiceFailed as error:
        return {"error": str(error), "hint": error.hint}
    return {"result": dataclasses.asdict(result) if dataclasses.is_dataclass(result) else result}  # type: ignore[arg-type]


if __name__ == "__main__":
    print(json.dumps(call(*json.loads(sys.argv[1]))))
