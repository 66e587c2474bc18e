"""What the tests of whole updates share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from app_world import LightWorld


@pytest.fixture
def light(tmp_path: Path) -> Iterator[LightWorld]:
    """A device with the light application at 1.0.0, which runs."""
    world = LightWorld(tmp_path / "w")
    try:
        world.install_light()
        yield world
    finally:
        world.close()
