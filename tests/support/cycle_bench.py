"""Cycles of update, restart and verification in a row, every third one broken; and the rules about growth.

A cycle begins and ends with a device at rest. Good ones are in turns `otaflow update FILE`, the same through an agent,
and a system with an application whose data is migrated; broken ones are those of BROKEN, in turns.
"""

import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cycle_figures import Figures, measure, own_memory
from cycle_machine import CycleInside, until
from switch import counted_starts

from otaflow import history

UNIT = '"$OTAFLOW_SLOT/etc/systemd/system/'
SOON = f"""
mkdir -p {UNIT}otaflow-trial.timer.d"
printf '[Timer]\\nOnBootSec=\\nOnBootSec=1\\n' >{UNIT}otaflow-trial.timer.d/soon.conf"
"""
NO_LIBRARIES = 'rm -f "$OTAFLOW_SLOT/lib" "$OTAFLOW_SLOT/lib64"\n'
NO_OTAFLOW = f"""
for unit in otaflow-recover otaflow-resume; do
    mkdir -p {UNIT}$unit.service.d"
    printf '[Service]\\nEnvironment=PYTHONHOME=/nowhere\\n' >{UNIT}$unit.service.d/broken.conf"
done
"""
DAMAGED_ETC = """
for name in passwd group nsswitch.conf ld.so.cache otaflow.toml systemd/journald.conf; do
    head -c 500 /dev/urandom >"$OTAFLOW_SLOT/etc/$name"
done
rm "$OTAFLOW_SLOT/etc/systemd/system/default.target"
"""
FAILS = ': >"$OTAFLOW_ETC/it-fails"; exit 3\n'
HANGS = 'sync; : >"$OTAFLOW_ETC/it-hangs"; exec sleep 100000\n'
SICK = {"health": [{"name": "sick", "command": ["sh", "-c", "echo sick; exit 1"], "tries": 1}]}
SLOW = {"health": [{"name": "slow", "command": ["sleep", "100000"], "tries": 1, "timeout_seconds": 1}]}
STUCK = {"health": [{"name": "stuck", "command": ["sleep", "100000"], "tries": 1, "timeout_seconds": 86400}]}
MIGRATION = "UPDATE notes SET text = text || '.' WHERE id = 1 AND length(text) < 50; PRAGMA user_version = {};"
WRONG = MIGRATION + " INSERT INTO nowhere VALUES (1);"

AGENT = "otaflow-agent.service"
CLEANED = 6
"""After so many cycles, of which the last one was good, the cleaning-up of each day is made."""


@dataclass(frozen=True)
class Kind:
    """How a cycle is broken. `starts`: how often the machine starts until it is at rest again."""

    name: str
    program: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    application: dict[str, Any] = field(default_factory=dict)
    resolution: str = history.VERIFICATION_FAILED
    starts: int = 2
    act: str = ""


BROKEN = (
    Kind("does not start", NO_LIBRARIES, starts=5),
    Kind("is not healthy", metadata=SICK),
    Kind("its update program fails", FAILS, resolution=history.FAILED, starts=0),
    Kind("otaflow does not start in it", NO_OTAFLOW + SOON, starts=5),
    Kind("its migration fails", application={"sql": WRONG}),
    Kind("its update program hangs, the plug is pulled", HANGS, resolution=history.FAILED, starts=1, act="plug"),
    Kind("its /etc is damaged", DAMAGED_ETC + SOON, starts=5),
    Kind("its health check takes too long", metadata=SLOW),
    Kind("its application is not healthy", application={"sql": MIGRATION, **SICK}),
    Kind("it hangs in each start until the deadline", metadata=STUCK, starts=5, act="deadline"),
    Kind("is not healthy, through an agent", metadata=SICK, act="agent"),
    Kind("its update program fails, with an agent", FAILS, resolution=history.FAILED, starts=0, act="agent"),
)
BY_COMMAND, BY_AGENT, WITH_APPLICATION = Kind(""), Kind("", act="agent"), Kind("", application={"sql": MIGRATION})
GOOD = (BY_COMMAND, WITH_APPLICATION, BY_AGENT)


@dataclass
class Cycles:
    """The cycles made on one device."""

    world: CycleInside
    version: str = "1.0.0"
    application: str = "1.0.0"
    schema: int = 1
    good: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    starts: Counter[str] = field(default_factory=Counter)
    figures: list[Figures] = field(default_factory=list)
    """At the start, and after each cycle."""
    began: float = field(default_factory=time.monotonic)
    _agent: int = 0

    def __post_init__(self) -> None:
        self.figures.append(measure(self.world))

    @property
    def count(self) -> int:
        return self.good + self.broken.total()

    def kind_of(self, number: int) -> Kind:
        """Of cycle `number`, from 1: every third one is broken."""
        if number % 3 == 0:
            return BROKEN[(number // 3 - 1) % len(BROKEN)]
        return GOOD[(number - number // 3 - 1) % len(GOOD)]

    def make(self, number: int, broken: Kind | None = None, bug: str = "") -> Kind:
        """One cycle, its kind by its number, or `broken`; AssertionError says what is wrong after it."""
        world, kind = self.world, broken or self.kind_of(number)
        world.number = number
        before, content = world.starts_made, world.system_content()
        known = len(world.device().history.read())
        world.boots_at_begin = counted_starts(world.device())
        self._agent = 0
        self._begin(kind, number, bug)
        world.settle(self._at_start(kind))
        if kind.act == "agent":
            self._end_agent()
        self._judge(kind, number, known, content, world.starts_made - before)
        if number % CLEANED == 1:
            world.clean_up()
            left = [path.name for path in (world.root / "cache/packages").glob("*")]
            assert not left, f"cycle {number}: packages that are of no use: {left}"
        world.forget_packages()
        self.figures.append(measure(world, self._agent))
        return kind

    def _begin(self, kind: Kind, number: int, bug: str) -> None:
        world, version = self.world, f"1.{number}.0"
        package = world.make_system(version, kind.program, **kind.metadata)
        if kind.application:
            changes = dict(kind.application)
            changes["sql"] = changes["sql"].format(self.schema + 1)
            application = world.build_light(version, before=self.application, **changes, update_number=number)
            world.begin_job(world.up(package, version), world.action(version, application))
            return
        if bug:
            world.begin_job(world.up(package, version), bug=bug)
            return
        if kind.act == "agent":
            self._start_agent()
        world.begin_update(world.offer(package))
        if kind.act == "plug":
            until((world.root / "main/etc/sys/it-hangs").exists, world.whole_story())
            world.machine.kill()

    def _at_start(self, kind: Kind) -> Callable[[], None]:
        """What the bench does after each start: where a trial hangs, its deadline comes, without waiting for it."""
        world = self.world

        def end_trial() -> None:
            device = world.device()
            if world.is_off or world.machine.root.name != device.boot.target() or device.boot.tries_left() is None:
                return
            until(lambda: world.is_off or self._is_verifying(), world.whole_story())
            if not world.is_off:
                world.machine.run(["systemctl", "start", "--no-block", "otaflow-trial.service"])
                until(lambda: world.is_off, world.whole_story())

        return end_trial if kind.act == "deadline" else lambda: None

    def _is_verifying(self) -> bool:
        """The health check of this boot has begun."""
        device = self.world.device()
        trial = device.journal.session.notes.get("trial", {})
        return bool(trial.get("begun")) and trial.get("boot") == counted_starts(device)

    def _start_agent(self) -> None:
        """Start it as at boot, and measure it as soon as it answers."""
        world = self.world
        world.machine.check(["systemctl", "start", AGENT], timeout=600)
        until(lambda: _answers(world.root / "run/ucm.sock"), f"no agent: {world.log(AGENT)}")
        self._agent = own_memory(world.main_process(AGENT))

    def _end_agent(self) -> None:
        """Stop it, when it has put away what it knows to be over."""
        world = self.world
        if world.show(AGENT, "ActiveState") != "active":
            self._start_agent()
        until(lambda: not any((world.root / "cache/transfers").iterdir()), "the agent keeps a transfer that is over")
        world.machine.check(["systemctl", "stop", AGENT], timeout=600)

    def _judge(self, kind: Kind, number: int, known: int, content: dict[str, Any], starts: int) -> None:
        """What has become of the cycle: counted, or an AssertionError."""
        world, version = self.world, f"1.{number}.0"
        records = world.device().history.read()[known:]
        wanted = history.ACTIVATED
        if kind in GOOD:
            self.good += 1
            self.version = version
            if kind.application:
                self.application, self.schema = version, self.schema + 1
        else:
            self.broken[kind.name] += 1
            wanted = kind.resolution
        self.starts[kind.name] += starts
        wrong = world.find_wrong(self.version, self.application, self.schema)
        ends = [record["resolution"] for record in records]
        if ends != [wanted] * (2 if kind.application else 1):
            wrong.append(f"history: {records}")
        allowed = starts == (1 if kind in GOOD else kind.starts)
        if not allowed:
            wrong.append(f"starts: {starts}")
        backups = len(list(world.device().backups))
        if backups != self.good:
            wrong.append(f"left over: backups: {backups} of {self.good} good updates")
        if kind not in GOOD and (now := world.system_content()) != content:
            names = sorted(name for name in content.keys() | now.keys() if content.get(name) != now.get(name))
            wrong.append(f"the system is not the one of before: {names[:20]}")
        assert not wrong, "\n".join([f"cycle {number}, {kind.name or 'good'}:", *wrong, world.whole_story()])


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(str(path))
        return True
    return False
