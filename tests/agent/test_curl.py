"""The examples for curl, on a btrfs device: an update in blocks and its end, and one that is rolled back."""

import subprocess
from pathlib import Path

import pytest
from agent_rig import Rig, Signed, running
from update_world import World

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(params=["directories", pytest.param("btrfs", marks=pytest.mark.btrfs)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(rig: Rig, script: str, *arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run one of the scripts; it has nothing of ours but the socket."""
    return subprocess.run(
        [EXAMPLES / script, rig.server.socket, *arguments],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_update_and_rollback(trusting: World, signed: Signed, quick: None) -> None:
    with running(trusting, signed) as rig:
        done = run(rig, "ucm-update.sh", signed.path("good"), BLOCK="400")
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[-4:] == [
            "processed: Ready",
            "verified: Activated",
            "finished: Idle",
            '{"clusters":[{"name":"demo-system","version":"1.2.0","state":"kPresent"}]}',
        ]
        assert lines[1].startswith("block 2: 800 of ")

        done = run(rig, "ucm-update.sh", signed.path("next"), FINISH="no")
        assert (done.returncode, done.stderr) == (0, "")
        assert rig.state == "Activated"
        done = run(rig, "ucm-rollback.sh")
        assert (done.returncode, done.stderr) == (0, "")
        assert '"status":"Rolled-back"' in done.stdout
        assert '"version":"1.2.0"' in done.stdout
        assert rig.state == "Idle"

        done = run(rig, "ucm-update.sh", signed.path("sick"))
        assert done.returncode == 1
        assert "rolled back: Idle" in done.stdout
        assert trusting.device().running_system().version == "1.2.0"


def test_refusals_are_told(trusting: World, signed: Signed, quick: None, tmp_path: Path) -> None:
    other = tmp_path / "unsigned.nsu"
    other.write_bytes(b"not signed by anybody")
    with running(trusting, signed) as rig:
        done = run(rig, "ucm-update.sh", other)
        assert done.returncode == 1
        assert "AuthenticationFailed" in done.stderr
        done = run(rig, "ucm-rollback.sh")
        assert done.returncode == 1
        assert "OperationNotPermitted" in done.stderr
        assert rig.state == "Idle"
