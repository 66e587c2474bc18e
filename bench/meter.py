"""What a piece of work costs: seconds, CPU seconds and the peak of resident memory, its children included."""

import os
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

SAMPLE_SECONDS = 0.01


@dataclass
class Cost:
    """Seconds and MB (10^6 bytes). `own_mb`: this process; `tree_mb`: with all its children, `apart` excepted."""

    seconds: float = 0.0
    cpu: float = 0.0
    own_mb: float = 0.0
    tree_mb: float = 0.0
    apart_cpu: float = 0.0
    start_mb: float = 0.0

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Meter:
    """`with Meter() as meter: …`, then `meter.cost`. `apart`: a child that is measured by itself (Prefect's server)."""

    apart: int | None = None
    cost: Cost = field(default_factory=Cost)

    def __enter__(self) -> "Meter":
        self._process = psutil.Process()
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self.cost.start_mb = self._process.memory_info().rss / 1e6
        self._apart_cpu = self._read_apart()
        self._cpu = os.times()
        self._sampler.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cost.seconds = time.perf_counter() - self._start
        cpu = os.times()
        self._over.set()
        self._sampler.join()
        self.cost.cpu = sum(cpu[:4]) - sum(self._cpu[:4])
        self.cost.apart_cpu = self._read_apart() - self._apart_cpu

    def _read_apart(self) -> float:
        if self.apart is None:
            return 0.0
        times = psutil.Process(self.apart).cpu_times()
        return float(times.user + times.system)

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            own = self._process.memory_info().rss / 1e6
            others = 0.0
            for child in self._process.children(recursive=True):
                try:
                    others += 0 if child.pid == self.apart else child.memory_info().rss / 1e6
                except psutil.Error:
                    continue
            self.cost.own_mb = max(self.cost.own_mb, own)
            self.cost.tree_mb = max(self.cost.tree_mb, own + others)
