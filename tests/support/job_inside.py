"""Runs inside a machine: one job of otaflow's, without Prefect.

usage: job_inside.py '{"config": …, "do": …, "actions": […]}'. `do` is "install" (all actions in one session, as a
command does it), "process" (the first one), or a method of the UCM. Exits 1 with the error's words on stderr.
"""

import json
import sys
from pathlib import Path
from typing import Any

from otaflow.action import Action
from otaflow.cli.common import load_device, working
from otaflow.errors import OtaflowError, Restarting


def work(job: dict[str, Any]) -> None:
    with working(load_device(Path(job["config"])), prefect=False, view=False) as (ucm, _):
        actions = [Action(**one) for one in job["actions"]]
        match job["do"]:
            case "install":
                for action in actions:
                    ucm.process(action, unattended=True)
                ucm.go_on()
            case "process":
                for action in actions:
                    ucm.process(action)
            case method:
                getattr(ucm, method)()


def main(job: dict[str, Any]) -> None:
    """Do it; its end is told by the exit status."""
    try:
        work(job)
    except Restarting:
        print("restarting")
    except OtaflowError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
