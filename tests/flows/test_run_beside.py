"""What is done beside a flow run keeps Prefect's settings: it goes to the same API, and to no temporary server."""

from typing import Any

import pytest
from prefect import flow
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, get_current_settings

from otaflow.flows.clients import run_beside

seen: list[Any] = []


@flow(name="beside", persist_result=False)
def run() -> None:
    assert FlowRunContext.get() is not None
    run_beside(lambda: seen.append((get_current_settings().api.url, FlowRunContext.get())))


def test_it_has_the_settings_and_is_no_part_of_the_run(prefect_api: str) -> None:
    seen.clear()
    run()
    assert PREFECT_API_URL.value() == prefect_api
    assert seen == [(prefect_api, None)]


def test_what_fails_is_raised() -> None:
    def fail() -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        run_beside(fail)
