"""An activation that failed, or that a power cut interrupted, is taken back to Ready: a client may activate again."""

from typing import Any

import pytest
from update_world import World

from otaflow.errors import ErrorDuringActivation
from otaflow.recovery import recover


@pytest.mark.parametrize("point", ["flip_slot.before", "flip_slot.acted"])
def test_after_a_failure(world: World, fault_points: Any, point: str) -> None:
    with world.ucm() as ucm:
        ucm.process(world.up())
        fault_points(point, "fail")
        with pytest.raises(ErrorDuringActivation):
            ucm.activate()
        fault_points("")
        assert ucm.state == "Ready"
        for call in (ucm.activate, ucm.verify, ucm.finish):
            call()
    assert world.resolutions()[1:] == [("1.2.0", "kActivated")]


def test_after_a_kill(world: World, zygote: Any) -> None:
    with world.ucm() as ucm:
        ucm.process(world.up())
    assert zygote.run(world, "activate", fault="flip_slot.acted:kill") == -9
    # the boot target was changed, and nobody had started from it: it is taken back
    with world.ucm() as ucm:
        recover(ucm)
        for call in {"Ready": (ucm.activate, ucm.verify, ucm.finish)}.get(ucm.state, (ucm.verify, ucm.finish)):
            if ucm.state != "Activated" or call == ucm.finish:
                call()
    assert world.resolutions()[1:] == [("1.2.0", "kActivated")]
