"""Facts about Prefect that the design rests on; when one no longer holds, a decision may be made anew."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CANARIES = """
import asyncio, json, os
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.transactions import transaction

told = []

@task
def first():
    told.append("first")

@first.on_rollback
def undo_first(_):
    told.append("undo first")

tries = []

@task(retries=1, retry_delay_seconds=0)
def second():
    tries.append(1)
    if len(tries) == 1:
        raise ValueError("not yet")
    told.append("second")

@flow
async def in_a_transaction():
    with transaction():
        first()
        second()

def make(result):
    @task(persist_result=True)
    def made(x):
        return result
    return made

@flow
async def factory():
    return [make("X")(1), make("Y")(1)]

def make_uncached(result):
    @task(cache_policy=NO_CACHE)
    def made(x):
        return result
    return made

@flow
async def factory_without_cache():
    return [make_uncached("X")(1), make_uncached("Y")(1)]

hooked = []

def keyword_hook(flow, flow_run, state):
    hooked.append(type(state).__name__)

@flow(on_failure=[keyword_hook])
async def failing():
    raise ValueError("it fails")

@flow(on_failure=[lambda flow, flow_run, state: 1 / 0])
async def failing_hook():
    raise ValueError("it fails")

state = asyncio.run(in_a_transaction(return_state=True))
answers = {"transaction": state.name, "told": told}
answers["factory"] = asyncio.run(factory())
answers["no cache"] = asyncio.run(factory_without_cache())
asyncio.run(failing(return_state=True))
answers["hooked"] = hooked
answers["hook fails"] = asyncio.run(failing_hook(return_state=True)).name
print("ANSWERS", json.dumps(answers))
"""


def ask(folder: Path) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    environment |= {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300"}
    done = subprocess.run(
        [sys.executable, "-c", CANARIES], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert "ANSWERS " in done.stdout, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout.partition("ANSWERS ")[2])
    return answers


def test_the_facts_still_hold(tmp_path: Path) -> None:
    answers = ask(tmp_path)
    # a retried task inside a transaction takes back what came before it, and the flow ends well: hence the journal
    assert answers["transaction"] == "Completed"
    assert answers["told"] == ["first", "undo first", "second"]
    # tasks made by a factory share a cache key: hence NO_CACHE
    assert answers["factory"] == ["X", "X"]
    assert answers["no cache"] == ["X", "Y"]
    # an error of a hook is lost: hence UndoFailed in the journal
    assert answers["hooked"] == ["State"]
    assert answers["hook fails"] == "Failed"
