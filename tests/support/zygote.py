"""A process that has otaflow loaded and forks a child for each job, so that a killed otaflow costs milliseconds.

Each line of stdin is a job, {"config", "do", "actions", "fault", "log"}; each is answered by the child's exit status
(minus the signal that ended it). The children are real processes with locks and children of their own; Prefect is not
loaded here.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from otaflow import fault
from otaflow.action import Action
from otaflow.cli.common import load_device, working
from otaflow.cli.update import recover
from otaflow.cli.view import View
from otaflow.errors import OtaflowError
from otaflow.platform.sandbox import enforced
from otaflow.tasks.step import STEPS

LOADED = (View, enforced())


def main() -> None:
    """Do the jobs until stdin ends."""
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _do(job)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _do(job: dict[str, Any]) -> None:
    """Do one job as a process of its own; exits 0, or 1 with the error in the log."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for step in STEPS.values():
        retries = step.limits()[0] if step.name != "connect" else 0
        step.limits = lambda retries=retries: (retries, 0)  # type: ignore[misc]
    fault.arm(*job["fault"].rsplit(":", 1) if job["fault"] else ("", ""))
    code = 0
    try:
        _work(job)
    except OtaflowError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _work(job: dict[str, Any]) -> None:
    config = Path(job["config"])
    if job["do"] == "recover":
        recover(config=config, json=True)
        return
    with working(load_device(config), prefect=False, view=False) as (ucm, _):
        match job["do"]:
            case "install":
                for action in job["actions"]:
                    ucm.process(Action(**action), unattended=True)
                ucm.go_on()
            case "process":
                ucm.process(Action(**job["actions"][0]))
            case method:
                getattr(ucm, method)()


if __name__ == "__main__":
    main()
