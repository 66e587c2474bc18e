"""A person goes back while a slow network brings an update: `otaflow up` on btrfs, 2 kB/s, and the rollback button."""

import random
import shutil
from pathlib import Path

import pytest
from bad_wire import SOUND, Line, Wire
from up_rig import Up, operated

from otaflow.package.build import build
from otaflow.repo import admin

pytestmark = pytest.mark.btrfs

SLOW = Line(rate=2_000)


def publish_large(up: Up) -> None:
    """An update whose download takes a quarter of an hour at 2 kB/s."""
    source = up.site.folder / "packages/large"
    shutil.copytree(up.site.folder / "packages/demo-system/1.1.0", source)
    text = (source / "metadata").read_text()
    for old, new in (("version: 1.1.0", "version: 1.5.0"), ("number: 1", "number: 5"), (">=1.0.0,<1.1.0", "<1.5.0")):
        assert old in text
        text = text.replace(old, new)
    (source / "metadata").write_text(text)
    (source / "assets/large").write_bytes(random.Random(1).randbytes(2_000_000))
    build(source, source.with_suffix(".nsu"))
    admin.publish(up.site.repository, [source.with_suffix(".nsu")])


def state_of(up: Up, run: str) -> str | None:
    """None while Prefect does not answer."""
    return (up.ask(f"flow_runs/{run}") or {}).get("state_type")


def running_tasks(up: Up, run: str) -> list[str]:
    body = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
    return [one["name"] for one in up.ask("task_runs/filter", body) or []]


def test_going_back_does_not_wait_for_a_download(tmp_path: Path) -> None:
    with operated(tmp_path / "site", ["1.1.0"], minutes=60, more="\n[policy]\nask = false\n") as up:
        up.wait_for_run("check", "Installed")
        line = SOUND
        with Wire(up.site.record["port"], lambda: line) as wire:
            up.stop()
            text = up.site.config.read_text()
            up.site.config.write_text(text.replace(f":{up.site.record['port']}", f":{wire.port}"))
            up.start()
            up.wait_for_run("check", "Up to date")
            publish_large(up)
            line = SLOW
            check = up.start_run("check")
            waiting = up.start_run("check")
            up.wait(lambda: running_tasks(up, check) == ["download package"], "it downloads")
            back = up.start_run("roll back", way="previous slot")
            up.wait(lambda: state_of(up, back) == "COMPLETED", "it goes back meanwhile")
            assert up.device.running_system().version == "1.0.0"
            up.wait(lambda: running_tasks(up, check) == ["download package"], "it still downloads")
            up.wait(lambda: state_of(up, waiting) == "SCHEDULED", "the other search waits")
        # the wire is gone, and the download with it
        up.wait(lambda: state_of(up, check) == "FAILED", "the poll fails")
        assert up.device.running_system().version == "1.0.0"
