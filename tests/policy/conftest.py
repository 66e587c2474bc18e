"""Fixtures of the policy's tests."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from otaflow.policy.consent import Consents
from otaflow.policy.failures import Failures
from otaflow.policy.inbox import Inbox
from otaflow.policy.offer import Offer


@pytest.fixture
def offer() -> Offer:
    return Offer("base", "1.1.0", "c1" * 32, update_number=7, bytes=4_200_000, description="Fixes the clock.")


@pytest.fixture
def now() -> datetime:
    return datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


@pytest.fixture
def consents(tmp_path: Path) -> Consents:
    return Consents(tmp_path / "policy" / "consent")


@pytest.fixture
def failures(tmp_path: Path) -> Failures:
    return Failures(tmp_path / "policy" / "failures")


@pytest.fixture
def make_inbox(tmp_path: Path) -> Callable[..., Inbox]:
    def make(size: int = 10) -> Inbox:
        return Inbox(tmp_path / "policy" / "inbox", size)

    return make


@pytest.fixture
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The device's time zone is UTC, wherever the tests run."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
