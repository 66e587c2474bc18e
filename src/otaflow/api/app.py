"""The interface as an ASGI application: requests in, calls of the service, answers out.

Nothing of a request reaches the service before all of it was checked. No body is read further than it may be long.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse

from otaflow import __version__
from otaflow.api import models
from otaflow.api.beside import BESIDE
from otaflow.api.blocks import Buffers, TooLong, read_block
from otaflow.api.events import EventStream, Watchers
from otaflow.api.guard import GUARDED, Credentials, Guard
from otaflow.api.methods import METHODS, TRANSFER_DATA, Method, http_status
from otaflow.api.openapi import describe, describe_status
from otaflow.api.page import render_page
from otaflow.api.service import UcmService
from otaflow.errors import GeneralReject, IncorrectSize, OtaflowError, UcmError

log = logging.getLogger("otaflow.api")

BLOCK_BYTES = 16 * 2**20
BLOCKS = 4  # that are in memory at once, whoever sends them: with BLOCK_BYTES, 64 MiB
JSON_BYTES = 64 * 1024
LOOK = 0.5  # seconds between two looks for new messages
THREADS = 8  # for calls that are answered in a moment, and as many again for blocks and the checking of packages

T = TypeVar("T")
Answer = Callable[[Request], Awaitable[Response]]


class Malformed(Exception):
    """The request is not one of the interface; nothing was done."""


class Interface:
    """The methods as endpoints. `close` ends the streams and the threads."""

    def __init__(self, service: UcmService, block_size: int) -> None:
        self.service = service
        self._blocks = Buffers(block_size, BLOCKS)
        self.watchers = Watchers(service)
        self._closed = False
        self._moments = ThreadPoolExecutor(THREADS, "ucm-call")
        self._long = ThreadPoolExecutor(THREADS, "ucm-transfer")

    def end_streams(self) -> None:
        """Let every stream of events end."""
        self._closed = True
        self.watchers.close()

    def close(self) -> None:
        self.end_streams()
        self._moments.shutdown(wait=False, cancel_futures=True)
        self._long.shutdown(wait=False, cancel_futures=True)

    def endpoint(self, method: Method) -> Answer:
        """POST /ucm/<Method> with a JSON object."""

        async def answer(request: Request) -> Response:
            take_query(request, models.Nothing)
            taken = take_json(await read_body(request, JSON_BYTES), method.takes)
            result = await self._call(method.long, method.call, self.service, taken)
            if isinstance(result, Future):
                result = await wait_for(result)
            return _Json(result or {})

        return answering(answer, method)

    async def transfer_data(self, request: Request) -> Response:
        """POST /ucm/TransferData with a raw block."""
        taken = take_query(request, models.TransferDataIn)
        async with self._blocks.take() as buffer:
            try:
                size = await read_block(request, buffer)
            except TooLong as error:
                raise IncorrectSize(f"cannot take block {taken.blockCounter}: {error}") from error
            except TimeoutError as error:
                raise IncorrectSize(f"cannot take block {taken.blockCounter}: the client stopped sending") from error
            call = self.service.transfer_data
            count = await self._call(True, call, taken.id, taken.blockCounter, buffer[:size])
        return _Json({"consecutiveBytesReceived": count})

    async def status(self, request: Request) -> Response:
        """GET /ucm/CurrentStatus."""
        take_query(request, models.Nothing)
        return _Json(await self._call(False, self.service.status))

    async def events(self, request: Request) -> Response:
        """GET /ucm/CurrentStatus/events."""
        taken = take_query(request, models.EventsIn)
        return EventStream(await self.watchers.watch(current=taken.current))

    async def messages(self, request: Request) -> Response:
        """GET /otaflow/GetMessages/events."""
        taken = take_query(request, models.MessagesIn)
        return EventStream(self._read(taken.reader or "", taken.after))

    async def _read(self, reader: str, after: int) -> AsyncGenerator[bytes]:
        """Each message as a server-sent event, a comment when it is quiet."""
        yield b": reading\n\n"
        seen: object = None
        quiet = 0.0
        while not self._closed:
            mark = self.service.policy.mark()
            if mark != seen:
                seen = mark
                for message in await self._call(False, self.service.policy.messages, reader, after):
                    after = message["id"]
                    yield f"id: {after}\ndata: {json.dumps(message)}\n\n".encode()
            await asyncio.sleep(LOOK)
            quiet += LOOK
            if quiet >= self.watchers.heartbeat:
                quiet = 0.0
                yield b": still there\n\n"

    async def _call(self, long: bool, function: Callable[..., T], *arguments: Any) -> T:
        pool = self._long if long else self._moments
        return await asyncio.get_running_loop().run_in_executor(pool, partial(function, *arguments))


def make_app(service: UcmService, *, credentials: Credentials | None = None, block_size: int = BLOCK_BYTES) -> FastAPI:
    """The application. With `credentials` all that comes over TCP needs them; without, nothing does.

    `block_size`: the largest block that any transfer of `service` takes, in bytes.
    """
    app = FastAPI(title="otaflow UCM", version=__version__, openapi_url=None, docs_url=None, redirect_slashes=False)
    app.state.credentials = credentials
    app.state.interface = interface = Interface(service, block_size)
    for method in (*METHODS, *BESIDE):
        _add(app, method.path, interface.endpoint(method), **describe(method))
    take = answering(interface.transfer_data, TRANSFER_DATA)
    _add(app, "/ucm/TransferData", take, **describe(TRANSFER_DATA, block_size))
    _add(app, "/ucm/CurrentStatus", answering(interface.status), **describe_status())
    _add(app, "/ucm/CurrentStatus/events", answering(interface.events), include_in_schema=False)
    _add(app, "/otaflow/GetMessages/events", answering(interface.messages), include_in_schema=False)
    schema = app.openapi()
    page = render_page()

    async def openapi(request: Request) -> Response:
        guarded = request.scope.get("state", {}).get(GUARDED) and credentials
        return _Json(schema | _security(credentials, schema) if guarded and credentials else schema)

    async def docs(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    app.add_api_route("/openapi.json", openapi, include_in_schema=False)
    app.add_api_route("/docs", docs, include_in_schema=False)
    app.add_exception_handler(HTTPException, _no_such_path)
    if credentials is not None:
        app.add_middleware(Guard, credentials=credentials)
    return app


def answering(answer: Answer, method: Method | None = None) -> Answer:
    """`answer`, with every error as the interface's JSON; a status that `method` does not document becomes 500."""
    documented = {http_status(kind) for kind in method.errors} if method else set[int]()

    async def answer_all(request: Request) -> Response:
        try:
            return await answer(request)
        except Malformed as error:
            return _refuse(422, GeneralReject(f"cannot answer {request.url.path[:100]}: {error}"))
        except UcmError as error:
            status = http_status(type(error))
            return _refuse(status if status in documented | {422, 500} else 500, error)
        except ClientDisconnect:
            return Response(status_code=422)  # nobody reads it
        except OtaflowError as error:
            log.warning("%s: %s", request.url.path, error)
            return _refuse(500, GeneralReject(str(error), hint=error.hint))
        except Exception as error:
            log.exception("cannot answer %s", request.url.path)
            return _refuse(500, GeneralReject(f"cannot answer: {type(error).__name__}: {error}"))

    return answer_all


async def read_body(request: Request, limit: int) -> bytes:
    """The body, of which no more than `limit` bytes are ever kept. Raises Malformed, ClientDisconnect."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise Malformed(f"the body has {length} bytes, and {limit} is the most")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise Malformed(f"the body has more than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def take_json(body: bytes, model: type[models.Taken]) -> models.Taken:
    """The JSON object of a body; an empty one is `{}`. Raises Malformed."""
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise Malformed(models.describe_refusal(error.errors(include_url=False))) from error


Taken = TypeVar("Taken", bound=models.Taken)


def take_query(request: Request, model: type[Taken]) -> Taken:
    """The parameters of the query, each at most once. Raises Malformed."""
    given = request.query_params.multi_items()
    if len({name for name, _ in given}) < len(given):
        raise Malformed("a parameter is there twice")
    try:
        return model.model_validate_strings(dict(given))
    except ValidationError as error:
        raise Malformed(models.describe_refusal(error.errors(include_url=False))) from error


async def wait_for(future: Future[T]) -> T:
    """Its result, waited for without blocking others; to stop (a client is gone, the server ends) changes nothing."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(wake)
    await done.wait()
    try:
        return future.result()
    except CancelledError as error:
        raise GeneralReject("cannot answer: the agent gave the call up") from error


class _Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=str).encode(errors="replace")


def _refuse(status: int, error: UcmError) -> Response:
    message = f"{error}; {error.hint}" if error.hint else str(error)
    return _Json({"error": error.name, "code": error.code, "message": message}, status)


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = _refuse(
        error.status_code,
        GeneralReject(
            f"cannot answer {request.method[:20]} {request.url.path[:100]}: {error.detail}", hint="see /docs"
        ),
    )
    answer.headers.update(error.headers or {})
    return answer


def _add(app: FastAPI, path: str, answer: Answer, **description: Any) -> None:
    app.add_api_route(path, answer, **description)


def _security(credentials: Credentials, schema: dict[str, Any]) -> dict[str, Any]:
    schemes: dict[str, Any] = {}
    if credentials.token:
        schemes["bearer"] = {"type": "http", "scheme": "bearer"}
    if credentials.certificates:
        schemes["certificate"] = {"type": "mutualTLS"}
    components = schema["components"] | {"securitySchemes": schemes}
    return {"components": components, "security": [{name: []} for name in schemes]}
