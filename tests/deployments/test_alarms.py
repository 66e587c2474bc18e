"""The automations of `otaflow up`, on its real server: an update that is rolled back, and polls that stay away."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from up_rig import Up, operated

pytestmark = pytest.mark.btrfs


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with operated(tmp_path / "site", ["1.1.0", "1.2.0"], minutes=0.1, more="\n[policy]\nask = false\n") as up:
        yield up


def alarms(up: Up, words: str) -> list[dict[str, Any]]:
    """The reports that ended as an alarm of these words."""
    return [run for run in up.runs("report") if run["state_name"] == "Alarm" and words in run["state"]["message"]]


def is_paused(up: Up) -> bool:
    """Take the schedule away; whether it is gone."""
    deployment = up.ask("deployments/name/check/demo")
    if not deployment:
        return False
    up.ask(f"deployments/{deployment['id']}/pause_deployment", {})
    return bool((up.ask(f"deployments/{deployment['id']}") or {}).get("paused"))


def test_the_alarms(up: Up) -> None:
    # the sick system is rolled back, and told of
    up.wait(lambda: alarms(up, "1.2.0"), "the rollback is an alarm")
    assert up.device.running_system().version == "1.1.0"
    # its schedule is taken away, and it is silent
    up.wait_for_run("check", "Not now")
    up.wait(lambda: is_paused(up), "its schedule is taken away")
    up.wait(lambda: alarms(up, "demo does not look for updates any more"), "the silence is an alarm")
    # a person's own action stays when the device starts again; nothing is made twice
    named = {"automations": {"name": {"any_": ["demo: no poll"]}}}
    [silence] = up.wait(lambda: up.ask("automations/filter", named), "it answers")
    mine = {"actions": [*silence["actions"], {"type": "do-nothing"}], "trigger": {**silence["trigger"], "within": 99}}
    kept = {key: silence[key] for key in ("name", "description", "enabled")}
    up.wait(lambda: up.ask(f"automations/{silence['id']}", {**kept, **mine}, "PUT") is not None, "it is changed")
    up.stop()
    up.start()

    def is_up_to_date() -> bool:
        found = up.ask("automations/filter", named)
        return [(one["trigger"]["within"], len(one["actions"])) for one in found or []] == [(18.0, 2)]

    up.wait(is_up_to_date, "the trigger is the configuration's again, the actions are the person's")
    assert len(up.wait(lambda: up.ask("automations/filter", {}), "it answers")) == 2
