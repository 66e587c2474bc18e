"""`otaflow resume` at nearly every boot: nothing is to be done, and Prefect, which takes seconds, is not loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from otaflow.config import load
from otaflow.platform.device import Device

CONFIG = '[device]\nname = "one"\nmodel = "m"\nroot = "device"\n'
PROGRAM = """
import sys
from otaflow.cli.commands import app
app(sys.argv[1:], exit_on_error=False, result_action="return_value")
print("loaded" if "prefect" in sys.modules else "not loaded")
"""


def otaflow(config: Path, *words: str) -> str:
    nobody = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(config.parent)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **nobody, "OTAFLOW_CONFIG": str(config)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("cut_off", "loaded"), [(False, "not loaded"), (True, "loaded")], ids=["idle", "cut off run"])
def test_prefect_is_loaded_where_it_is_told_something(tmp_path: Path, cut_off: bool, loaded: str) -> None:
    config = tmp_path / "otaflow.toml"
    config.write_text(CONFIG)
    otaflow(config, "device", "init")
    if cut_off:
        device = Device(load(config))
        with device.lock:
            device.journal.note(phase_run="c0ffee00-0000-4000-8000-000000000000")
    said = otaflow(config, "resume").splitlines()
    assert (said[0].endswith(", Idle"), said[-1]) == (True, loaded)
