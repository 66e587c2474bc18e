"""The services of a machine, called from outside."""

import json
from pathlib import Path
from typing import Any

from machine import PROJECT, Machine

from otaflow.errors import ServiceFailed
from otaflow.platform.protocols import ServiceState

SCRIPT = PROJECT / "tests" / "support" / "services_inside.py"


class ServicesInside:
    """SystemdServices in a machine, called from outside; implements the protocol Services."""

    def __init__(self, machine: Machine, **settings: Any) -> None:
        self.machine = machine
        self.settings = settings

    def _call(self, method: str, *arguments: Any) -> Any:
        call = json.dumps([self.settings, method, arguments], default=str)
        status, output = self.machine.python(SCRIPT, call, timeout=120)
        assert status == 0, output
        answer = json.loads(output.splitlines()[-1])
        if "error" in answer:
            raise ServiceFailed(answer["error"], hint=answer["hint"])
        return answer["result"]

    def check(self, name: str, folder: Path | None = None) -> None:
        self._call("check", name, folder)

    def link(self, folder: Path) -> None:
        self._call("link", folder)

    def unlink(self, folder: Path, but: Path | None = None) -> None:
        self._call("unlink", folder, but)

    def arrange(self, folders: list[Path], held: list[str]) -> None:
        self._call("arrange", folders, held)

    def start(self, name: str) -> None:
        self._call("start", name)

    def stop(self, name: str) -> None:
        self._call("stop", name)

    def reload(self, name: str) -> None:
        self._call("reload", name)

    def state(self, name: str) -> ServiceState:
        state = self._call("state", name)
        return ServiceState(**{**state, "pids": tuple(state["pids"])})

    def hold(self, name: str) -> None:
        self._call("hold", name)

    def release(self, name: str) -> None:
        self._call("release", name)

    def read_log(self, name: str, lines: int) -> list[str]:
        result: list[str] = self._call("read_log", name, lines)
        return result
