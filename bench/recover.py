"""`otaflow recover` at a boot with nothing to do, beside Python itself and beside `import prefect`.

python -m bench.recover [--rounds 10]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

CONFIG = '[device]\nname = "bench"\nmodel = "bench"\nroot = "device"\n'
RECOVER = "import sys; sys.argv = ['otaflow', 'recover']; from otaflow.cli import main; main()"
HEAVY = ("prefect", "tuf", "httpx", "rich", "psutil", "fastapi", "sqlalchemy")
SHOWN = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="otaflow-bench-") as folder:
        config = Path(folder) / "otaflow.toml"
        config.write_text(CONFIG)
        environment = os.environ | {"OTAFLOW_CONFIG": str(config)}
        program = str(Path(sys.executable).with_name("otaflow"))
        subprocess.run([program, "device", "init"], env=environment, check=True, stdout=subprocess.DEVNULL)
        ways = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "otaflow recover": [program, "recover"],
            "otaflow recover --json": [program, "recover", "--json"],
            "python -c 'import prefect'": [sys.executable, "-c", "import prefect"],
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(chosen.rounds):
            for name, command in ways.items():
                taken[name].append(_measure(command, environment))
        print(f"### nothing to recover, median of {chosen.rounds}\n\n| process | s | CPU s | slowest, s |")
        print("| --- | --- | --- | --- |")
        for name, figures in taken.items():
            walls, cpus = zip(*figures, strict=True)
            print(f"| `{name}` | {median(walls):.3f} | {median(cpus):.3f} | {max(walls):.3f} |")
        print("\n" + _profile(environment))


def _measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a process."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, os.times()
    return seconds, after.children_user + after.children_system - before.children_user - before.children_system


def _profile(environment: dict[str, str]) -> str:
    """What it imports: how many modules, which took longest by themselves, and none of the heavy ones."""
    command = [sys.executable, "-X", "importtime", "-c", RECOVER]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stderr
    rows = [line.removeprefix("import time:").split("|") for line in said.splitlines() if "|" in line][1:]
    own = sorted(((int(row[0]), row[2].strip()) for row in rows), reverse=True)
    heavy = sorted({name.partition(".")[0] for _, name in own} & set(HEAVY))
    slowest = ", ".join(f"{name} {microseconds / 1000:.1f}" for microseconds, name in own[:SHOWN])
    return f"{len(own)} modules; heavy ones: {', '.join(heavy) or 'none'}; slowest by themselves, ms: {slowest}"


if __name__ == "__main__":
    main()
