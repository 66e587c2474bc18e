"""Services in memory, for quick tests of flows: no process is started."""

from pathlib import Path

from otaflow.errors import ServiceFailed
from otaflow.platform.protocols import ServiceState
from otaflow.platform.unit_file import check_name


class FakeServices:
    """Services by name. `did` lists what was asked, in order: `start notes.service`, `link /…/services`.

    A service in `failing` does not start. One in `flapping` starts, and was started anew each time one looks. One in
    `deaf` cannot be reloaded. `lines` is what `read_log` reads.
    """

    def __init__(self) -> None:
        self.did: list[str] = []
        self.failing: set[str] = set()
        self.flapping: set[str] = set()
        self.deaf: set[str] = set()
        self.lines: dict[str, list[str]] = {}
        self.linked: dict[str, Path] = {}
        self.held: set[str] = set()
        self.stopped: set[str] = set()
        self.running: set[str] = set()
        self._starts: dict[str, int] = {}

    def check(self, name: str, folder: Path | None = None) -> None:
        check_name(name)
        if not (folder is not None and (folder / name).exists()) and name not in self.linked:
            raise ServiceFailed(f"cannot use {name}: there is no such service")

    def link(self, folder: Path) -> None:
        self.did.append(f"link {folder}")
        self.linked |= {path.name: path for path in folder.glob("*.service")}

    def unlink(self, folder: Path, but: Path | None = None) -> None:
        self.did.append(f"unlink {folder}")
        gone = {path.name for path in folder.glob("*.service")}
        gone |= {name for name, path in self.linked.items() if path.parent == folder}
        for name in gone - ({path.name for path in but.glob("*.service")} if but is not None else set()):
            self.linked.pop(name, None)
            self.stopped.discard(name)

    def arrange(self, folders: list[Path], held: list[str]) -> None:
        self.did.append("arrange")

    def start(self, name: str) -> None:
        self.check(name)
        self.did.append(f"start {name}")
        if name in self.held:
            raise ServiceFailed(f"cannot start {name}: it is held")
        if name in self.failing:
            self._count(name)
            raise ServiceFailed(f"cannot start {name}: exit status 1: {' / '.join(self.lines.get(name, []))}")
        self.stopped.discard(name)
        if name not in self.running:
            self.running.add(name)
            self._count(name)

    def start_all(self) -> dict[str, ServiceFailed]:
        """What a boot does."""
        failed = {}
        for name in sorted(self.linked.keys() - self.held - self.stopped):
            try:
                self.start(name)
            except ServiceFailed as error:
                failed[name] = error
        return failed

    def crash(self) -> None:
        """The machine goes down: nothing runs; what is durable stays."""
        self.running.clear()

    def stop(self, name: str) -> None:
        check_name(name)
        self.did.append(f"stop {name}")
        if name in self.linked:
            self.stopped.add(name)
        self.running.discard(name)

    def reload(self, name: str) -> None:
        if name not in self.running:
            self.start(name)
            return
        self.did.append(f"reload {name}")
        if name in self.deaf:
            raise ServiceFailed(f"cannot reload {name}: exit status 1")

    def state(self, name: str) -> ServiceState:
        check_name(name)
        if name not in self.linked and name not in self.running:
            return ServiceState(active=False, words="not there")
        if name in self.running and name in self.flapping:
            self._count(name)
        active, count = name in self.running, self._starts.get(name, 0)
        failed = not active and name in self.failing and count > 0
        words = "active (running)" if active else "failed (exit status 1)" if failed else "inactive"
        return ServiceState(active, failed, (1000 + count,) if active else (), str(count), words)

    def hold(self, name: str) -> None:
        check_name(name)
        self.did.append(f"hold {name}")
        self.held.add(name)

    def release(self, name: str) -> None:
        check_name(name)
        self.did.append(f"release {name}")
        self.held.discard(name)

    def read_log(self, name: str, lines: int) -> list[str]:
        check_name(name)
        return self.lines.get(name, [])[-lines:] if lines > 0 else []

    def _count(self, name: str) -> None:
        self._starts[name] = self._starts.get(name, 0) + 1
