"""Which runs the processes of a machine execute."""

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from otaflow.deployments.cut_off import find_executed

ONE, TWO = uuid4(), uuid4()
SLEEP = "import sys, time; print(flush=True); time.sleep(600)"


@pytest.mark.parametrize(
    ("words", "environment", "found"),
    [
        (["-m", "prefect.engine"], {"PREFECT__FLOW_RUN_ID": str(ONE)}, {ONE}),
        (["prefect", "flow-run", "execute", str(ONE)], {}, {ONE}),
        (["-m", "prefect.engine"], {}, set()),
        (["a program that a run has started"], {"PREFECT__FLOW_RUN_ID": str(ONE)}, set()),
    ],
    ids=["worker", "by hand", "another", "child"],
)
def test_a_process_that_executes_a_run(words: list[str], environment: dict[str, str], found: set[object]) -> None:
    command = [sys.executable, "-c", SLEEP, *words]
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert find_executed([ONE, TWO]) == found
        finally:
            process.kill()
    assert find_executed([ONE, TWO]) == set()


def test_a_process_that_tells_nothing_may_execute_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's: whoever is not root must not close its run."""
    for number, command in {"1": b"init", "20": b"python\0-m\0prefect.engine"}.items():
        (tmp_path / number).mkdir()
        (tmp_path / number / "cmdline").write_bytes(command)
        (tmp_path / number / "environ").write_bytes(b"")
    assert find_executed([ONE, TWO], tmp_path) == set()
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "environ":
            raise PermissionError
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert find_executed([ONE, TWO], tmp_path) == {ONE, TWO}
