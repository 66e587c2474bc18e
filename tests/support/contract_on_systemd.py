"""The contract of Services (tests/platform/test_services_contract.py) for systemd; pytest runs it in a machine."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otaflow.platform.protocols import Services
from otaflow.platform.systemd import SystemdServices

CONTRACT = Path(__file__).parents[1] / "platform" / "test_services_contract.py"
_spec = importlib.util.spec_from_file_location("services_contract", CONTRACT)
assert _spec is not None
assert _spec.loader is not None
contract: Any = importlib.util.module_from_spec(_spec)
sys.modules["services_contract"] = contract
_spec.loader.exec_module(contract)
globals().update({name: value for name, value in vars(contract).items() if name.startswith("test_")})


def make_systemd(folder: Path) -> Services:
    return SystemdServices(timeout=60)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Any]:
    yield from contract.rig_of(make_systemd, tmp_path)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Any]:
    yield from contract.rig_of(make_systemd, tmp_path)
