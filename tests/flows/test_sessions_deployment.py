"""The deployment that the sessions' runs belong to, where a person presses what means nothing."""

import time
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType

from otaflow.agent.runner import Runner
from otaflow.flows.telling import deploy_sessions

SECONDS = 180.0
END = State(type=StateType.COMPLETED, name="Idle", message="nothing is going on")


def test_run_and_retry_are_put_back(prefect_api: str) -> None:
    with get_client(sync_client=True) as client:
        deployment = deploy_sessions(client, "a device")
        assert deploy_sessions(client, "a device") == deployment
        over: Any = client.create_flow_run_from_deployment(deployment, state=State(type=StateType.RUNNING))
        client.set_flow_run_state(over.id, END, force=True)
        retry = State(type=StateType.SCHEDULED, name="AwaitingRetry")
        client.set_flow_run_state(over.id, retry, force=True)
        pressed = client.create_flow_run_from_deployment(deployment)
        runner = Runner([], look_seconds=0.1, device="a device")
        runner.start()
        try:
            end = time.monotonic() + SECONDS
            wanted = [("Idle", StateType.COMPLETED), ("Cancelled", StateType.CANCELLED)]
            found: list[Any] = []
            while found != wanted:
                assert time.monotonic() < end, found
                states = [client.read_flow_run(run.id).state for run in (over, pressed)]
                found = [(state.name, state.type) for state in states if state]
                time.sleep(0.1)
        finally:
            runner.stop()
