"""The clients of Prefect's API: one for all steps, one for the phases, whose engine need not wait for its answers.

Prefect's engine asks the API's leave for each state of a flow run. A phase's run has no deployment, no limits and no
other who would run it, so that the leave is always given: here it is given at once, and the API is told behind the
engine's back, in order.
"""

import asyncio
import contextvars
import logging
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, nullcontext, suppress
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.objects import State as RunState
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus, StateAcceptDetails
from prefect.context import AsyncClientContext, SettingsContext, SyncClientContext
from prefect.settings import get_current_settings

from otaflow.patience import within

log = logging.getLogger("otaflow.runs")

REACH_SECONDS = 3.0
FIRST_SECONDS = 8.0
"""How long a server may take to answer who connects."""
READY_SECONDS = 15.0
"""How long a server may take to say that it is ready."""
BUSY_SECONDS = 0.02
"""How long a server rests that is busy; three times as long each time it is busy again."""

Told = Callable[[UUID, RunState[Any]], None]
"""Takes a state of a phase's run, to tell it to the API soon."""


def connect(opened: ExitStack) -> SyncPrefectClient:
    """A client that every step shares: making one of its own costs a step 45 ms (it reads all CAs).

    Raises RuntimeError when Prefect's own server, where none is named, does not come up in time.
    """
    try:
        if get_current_settings().api.url is not None:
            # the context asks as well, and would wait
            within(FIRST_SECONDS, lambda: get_client(sync_client=True).api_version())
        client = opened.enter_context(SyncClientContext.get_or_create()).client
    except Exception as error:
        if get_current_settings().api.url is None:
            # asked again, Prefect would start a second one, and forget to end the first
            raise RuntimeError(f"Prefect's own server does not start: {error}") from error
        # An API that is away may come back; what it should have seen is told it then.
        log.warning("cannot reach Prefect's API now: %s", error)
        client = opened.enter_context(get_client(sync_client=True))
    client._client.event_hooks["response"].append(rest_shortly)
    return client


def expect_api(client: SyncPrefectClient) -> None:
    """Raise ConnectionError at once while nobody answers: Prefect's client would try again for a minute."""
    url = client.api_url
    if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return  # only the proxy knows
    port = url.port or (443 if url.scheme == "https" else 80)
    socket.create_connection((url.host, port), timeout=REACH_SECONDS).close()


def is_away() -> bool:
    """Whether a Prefect API is named and cannot be used now, its database included.

    Where none is named, Prefect starts one of its own.
    """
    if get_current_settings().api.url is None:
        return False

    def ask() -> None:
        with get_client(sync_client=True) as client:
            expect_api(client)
            client.request("GET", "/ready")

    try:
        within(READY_SECONDS, ask)  # Prefect's client would ask again and again
    except Exception as error:
        log.warning("cannot reach Prefect's API now: %s", error)
        return True
    return False


def run_beside(work: Callable[[], None]) -> None:
    """Do `work` in a thread, outside of the flow run that goes on here, with its settings; raises what it raises."""
    settings = SettingsContext.get()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with settings.model_copy() if settings else nullcontext():
                work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="beside")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def is_api_trouble(error: BaseException) -> bool:
    """Whether Prefect's client or engine failed, and not the story."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "prefect", "websockets")


def rest_shortly(response: Any) -> None:
    """Say how long a busy server wants to rest, where it does not say so itself.

    With SQLite, Prefect's server refuses a writer at once, with a 503, while another one writes. That is over after
    milliseconds; its client, told nothing, would wait for 2 s, in nearly every phase.
    """
    if response.status_code == 503 and "Retry-After" not in response.headers:
        tries = response.request.extensions.setdefault("otaflow_tries", [])
        response.headers["Retry-After"] = str(BUSY_SECONDS * 3 ** len(tries))
        tries.append(response.status_code)


async def arest_shortly(response: Any) -> None:
    """The same for the client of the phases."""
    rest_shortly(response)


class PhaseLoop:
    """The event loop of the phases, one for all, so that they share one client with its connection.

    Not asyncio.run: there Ctrl-C would wait for the phase's end.
    """

    def __init__(self, context: contextvars.Context, told: Told) -> None:
        """`context` holds the client that steps use outside of the loop."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outer = context
        self._context = context.copy()
        self._client: AsyncClientContext | None = None
        self._told = told
        self._flow_run: FlowRun | None = None

    def run(self, flow_run: FlowRun, start: Callable[[], Any]) -> Any:
        """Run a phase to its end."""
        try:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._client = AsyncClientContext()
                self._wait(self._enter(self._client))
                self._stand_in(self._client.client)
            self._flow_run = flow_run
            return self._wait(start())
        except BaseException:
            # What was left waiting in the loop must not go on beside the next phase.
            self.close()
            raise

    def close(self) -> None:
        """Close the client and the loop; the next phase gets new ones. Never raises."""
        if self._loop is None:
            return
        loop = self._loop
        try:
            with suppress(Exception):
                if self._client:
                    self._wait(self._client.__aexit__(None, None, None))
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
            self._loop = self._client = None
            self._context = self._outer.copy()

    async def _enter(self, client: AsyncClientContext) -> None:
        """Raises TimeoutError: a client that the API's version is not known to asks for it."""
        async with asyncio.timeout(FIRST_SECONDS):
            await client.__aenter__()

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """All in one context: the client is found in it."""
        assert self._loop is not None
        return self._loop.run_until_complete(self._loop.create_task(work, context=self._context))

    # --- what the engine asks the API ------------------------------------------------------------------------------

    def _stand_in(self, client: PrefectClient) -> None:
        """Answer in the API's stead what the engine asks of a phase's run."""
        client._client.event_hooks["response"].append(arest_shortly)
        self._read = client.read_flow_run
        stand_ins = {
            "set_flow_run_state": self._set_state,
            "read_flow_run": self._read_run,
            "update_flow_run": self._update_run,
        }
        for name, function in stand_ins.items():
            setattr(client, name, function)

    async def _set_state(
        self, flow_run_id: UUID, state: RunState[Any], force: bool = False
    ) -> OrchestrationResult[Any]:
        """Accepted. The result stays here: only what is seen is told."""
        self._told(flow_run_id, RunState(type=state.type, name=state.name, message=state.message))
        return OrchestrationResult(state=state, status=SetStateStatus.ACCEPT, details=StateAcceptDetails())

    async def _read_run(self, flow_run_id: UUID) -> FlowRun:
        """The run as it is here, where it runs."""
        if self._flow_run and self._flow_run.id == flow_run_id:
            return self._flow_run
        return await self._read(flow_run_id)

    async def _update_run(self, flow_run_id: UUID, **facts: Any) -> None:
        """Version and policy were told when the run was made."""
