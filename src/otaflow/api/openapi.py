"""The OpenAPI of the interface: every answer that there can be, from the same table that the application runs on."""

from typing import Any

from otaflow.api import models
from otaflow.api.methods import Method, http_status

_ALWAYS = {
    401: "No valid credentials (TCP only).",
    422: "GeneralReject: the request is malformed.",
    500: "GeneralReject: something failed that has no name of its own.",
}

# The stream is no operation of the document: OpenAPI 3.1 cannot say that an answer does not end, and what is generated
# from the document would wait for its end.
_EVENTS = (
    "`GET /ucm/CurrentStatus/events` streams each change as a server-sent event (`text/event-stream`), whose data is "
    "the same object; with `?current=true` the present status comes first."
)


def describe(method: Method, block_size: int = 0) -> dict[str, Any]:
    """What FastAPI is told about a method; with `block_size` its body is a raw block and its parameters the query's."""
    schema = method.takes.model_json_schema()
    if block_size:
        extra: dict[str, Any] = {
            "parameters": _parameters(method.takes),
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {
                        "schema": {"type": "string", "format": "binary", "maxLength": block_size},
                    }
                },
            },
        }
    else:
        required = bool(schema.get("required"))
        extra = {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}
    return {
        "methods": ["POST"],
        "operation_id": method.name,
        "summary": method.about,
        "response_model": method.gives,
        "responses": _answers(method),
        "openapi_extra": extra,
    }


def describe_status() -> dict[str, Any]:
    """The field CurrentStatus."""
    return {
        "methods": ["GET"],
        "operation_id": "CurrentStatus",
        "summary": "The UCM's state, and the session it is in.",
        "description": _EVENTS,
        "response_model": models.Status,
        "responses": _answers(None),
    }


def _answers(method: Method | None) -> dict[int | str, dict[str, Any]]:
    names: dict[int, list[str]] = {}
    for kind in method.errors if method else ():
        names.setdefault(http_status(kind), []).append(f"{kind.__name__} ({kind.code})")
    told = {status: ", ".join(them) + "." for status, them in names.items()}
    for status, text in _ALWAYS.items():
        told[status] = f"{told[status]} {text}" if status in told else text
    return {status: {"model": models.Error, "description": told[status]} for status in sorted(told)}


def _parameters(model: type[models.Taken]) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": {**field}}
        for name, field in schema["properties"].items()
    ]
