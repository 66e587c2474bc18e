"""The contract, docs/spec/ucm-api.md, parsed: every method, field, error, code and HTTP status of it, for real."""

import re
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from otaflow import errors
from otaflow.api.app import make_app
from otaflow.api.beside import BESIDE as OUR_OWN
from otaflow.api.methods import METHODS, TRANSFER_DATA
from otaflow.client import Client
from otaflow.ucm.states import State

TEXT = (Path(__file__).parents[2] / "docs/spec/ucm-api.md").read_text()

SERVICE = {
    "TransferStart": "transfer_start",
    "TransferData": "transfer_data",
    "TransferExit": "transfer_exit",
    "DeleteTransfer": "delete_transfer",
    "GetSwProcessProgress": "progress",
    "GetSwClusterInfo": "clusters",
    "GetSwClusterChangeInfo": "cluster_changes",
    "GetSwPackages": "packages",
    "GetHistory": "history",
    "SetLogLevel": "set_log_level",
    "GetLog": "log",
}
"""The stub's name of a method, where it is not the method's own."""
BESIDE = {"ProcessSwPackage": ["unattended", "acceptIrreversible"]}
"""Fields that are ours, beside the contract; none of them is required."""
VALUES: dict[str, Any] = {"id": "x", "size": 10, "level": 4}


def read_table() -> dict[str, tuple[list[str], list[str], list[str]]]:
    """Method → fields taken, fields given, errors."""
    table = {}
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4 or cells[0] in ("method", "---"):
            continue
        names, takes, gives = (cells[0].split(" / "), cells[1].split(" / "), cells[2].split(" / "))
        for place, name in enumerate(names):
            taken = takes[place] if len(names) > 1 else cells[1]
            given = gives[place] if len(names) > 1 else cells[2]
            table[name] = (_fields(taken), _fields(given), re.findall(r"\w+", cells[3]))
    return table


def _fields(cell: str) -> list[str]:
    """The names in a cell, without what is in brackets of any kind."""
    cell = re.sub(r"\(.*?\)|\[.*?\]|\{.*?\}", "", cell).split(": those")[0].split(" that are")[0].split(", oldest")[0]
    if "?id=" in cell:
        return ["id", "blockCounter"]
    return re.findall(r"[A-Za-z]+", cell)


TABLE = read_table()
ERRORS = [(name, error) for name, (_, _, names) in TABLE.items() for error in names]
CODES = {name: int(code) for code, name in re.findall(r"(\d+) ([A-Z]\w+)", TEXT[TEXT.index("Codes:") :])}


def expected_status(error: str) -> int:
    """What the contract's paragraph on HTTP statuses says."""
    if error in ("OperationNotPermitted", "ServiceBusy", "CancelFailed") or error.startswith(("Nothing", "NotAble")):
        return 409
    special = {"InvalidTransferId": 404, "InsufficientMemory": 507, "AuthenticationFailed": 403}
    if error in special:
        return special[error]
    otherwise = {"GeneralReject", "ErrorDuringActivation", "ErrorNoValidProcessing", "ProcessSwPackageCancelled"}
    return 500 if error in otherwise else 422


@pytest.fixture
def http(server: Any) -> Any:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(server.socket)), base_url="http://ucm") as http:
        yield http


@pytest.fixture
def schema(http: httpx.Client) -> Any:
    return http.get("/openapi.json").json()


def ask(http: httpx.Client, method: str) -> httpx.Response:
    if method == "TransferData":
        return http.post("/ucm/TransferData", params={"id": "x", "blockCounter": 1}, content=b"block")
    return http.post(f"/ucm/{method}", json={name: VALUES[name] for name in TABLE[method][0] if name in VALUES})


def test_the_whole_table_was_read() -> None:
    assert len(TABLE) == 17
    assert len(ERRORS) == 43
    assert len(CODES) == 23
    assert TABLE["SetLogLevel"] == (["id", "level"], [], ["InvalidTransferId"])
    assert TABLE["GetLog"] == (["id"], ["log"], ["InvalidTransferId"])


def test_the_methods_are_those_of_the_contract(schema: Any) -> None:
    assert {method.name for method in (*METHODS, TRANSFER_DATA)} == set(TABLE)
    own = {method.path for method in OUR_OWN}
    assert len(own) == 12
    assert set(schema["paths"]) == {f"/ucm/{name}" for name in [*TABLE, "CurrentStatus"]} | own
    assert "/ucm/CurrentStatus/events" in schema["paths"]["/ucm/CurrentStatus"]["get"]["description"]


@pytest.mark.parametrize("method", TABLE)
def test_fields(method: str, schema: Any) -> None:
    takes, gives, _ = TABLE[method]
    operation = schema["paths"][f"/ucm/{method}"]["post"]
    if method == "TransferData":
        assert [parameter["name"] for parameter in operation["parameters"]] == takes
    else:
        taken = operation["requestBody"]["content"]["application/json"]["schema"]
        assert list(taken["properties"]) == takes + BESIDE.get(method, [])
        assert taken["additionalProperties"] is False
        optional = {"since", "until"}
        assert set(taken.get("required", [])) == set(takes) - optional
    given = resolve(schema, operation["responses"]["200"]["content"]["application/json"]["schema"])
    assert list(given.get("properties", [])) == gives


LISTS = [
    (line.split("|")[1].split("/")[-1].strip(), fields)
    for line in TEXT.splitlines()
    for fields in re.findall(r"\[\{(.*?)\}\]", line)
]


@pytest.mark.parametrize(("method", "fields"), LISTS, ids=[method for method, _ in LISTS])
def test_fields_of_lists(method: str, fields: str, schema: Any) -> None:
    answer = schema["paths"][f"/ucm/{method}"]["post"]["responses"]["200"]
    given = resolve(schema, answer["content"]["application/json"]["schema"])
    entry = resolve(schema, next(iter(given["properties"].values()))["items"])
    assert list(entry["properties"]) == [name.strip(" ?") for name in fields.split(",")]
    assert set(entry["required"]) == {name.strip() for name in fields.split(",") if "?" not in name}


@pytest.mark.parametrize(("method", "error"), ERRORS, ids=[f"{method}-{error}" for method, error in ERRORS])
def test_every_error_of_every_method(method: str, error: str, http: httpx.Client, stub: Any, schema: Any) -> None:
    stub.raises[SERVICE.get(method, method)] = getattr(errors, error)("cannot do it: no", hint="do something else")
    answer = ask(http, method)
    assert answer.json() == {"error": error, "code": CODES[error], "message": "cannot do it: no; do something else"}
    assert answer.status_code == expected_status(error)
    responses = schema["paths"][f"/ucm/{method}"]["post"]["responses"]
    assert error in responses[str(answer.status_code)]["description"]


WAITING = ["ProcessSwPackage", "Activate", "Rollback", "RevertProcessedSwPackages", "Finish", "Cancel"]


@pytest.mark.parametrize("method", WAITING)
def test_an_error_that_comes_later_is_the_same(method: str, http: httpx.Client, stub: Any) -> None:
    error = TABLE[method][2][-1]
    failed: Future[None] = Future()
    failed.set_exception(getattr(errors, error)("cannot do it: no"))
    stub._fire = lambda *_: failed
    assert ask(http, method).json()["error"] == error


@pytest.mark.parametrize("method", TABLE)
def test_every_answer_is_as_documented(method: str, http: httpx.Client, stub: Any, schema: Any) -> None:
    stub.sizes["x"], stub.blocks["x"] = 5, [] if method == "TransferData" else [b"block"]
    done: Future[None] = Future()
    done.set_result(None)
    stub._fire = lambda *_: done
    answer = ask(http, method)
    assert answer.status_code == 200, answer.text
    responses = schema["paths"][f"/ucm/{method}"]["post"]["responses"]
    form = responses["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), {**form, "components": schema["components"]})


OWN_BODIES: dict[str, dict[str, Any]] = {"GoBack": {"to": "snapshot"}, "Uninstall": {"id": "x"}, "CleanUp": {}}
OWN_ERRORS = [(method, kind) for method in OUR_OWN if method.name in OWN_BODIES for kind in method.errors]


@pytest.mark.parametrize(("method", "kind"), OWN_ERRORS, ids=[f"{m.name}-{k.__name__}" for m, k in OWN_ERRORS])
def test_our_own_methods_refuse_as_the_contracts_do(
    method: Any, kind: Any, http: httpx.Client, stub: Any, schema: Any
) -> None:
    name = {"GoBack": "go_back", "Uninstall": "uninstall", "CleanUp": "clean_up"}[method.name]
    stub.raises[name] = kind("cannot do it: no", hint="do something else")
    answer = http.post(method.path, json=OWN_BODIES[method.name])
    code = CODES[kind.__name__]
    assert answer.json() == {"error": kind.__name__, "code": code, "message": "cannot do it: no; do something else"}
    assert answer.status_code == expected_status(kind.__name__)
    described = schema["paths"][method.path]["post"]["responses"][str(answer.status_code)]["description"]
    assert kind.__name__ in described


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("GoBack", {}),
        ("GoBack", {"to": "home"}),
        ("GoBack", {"to": "backup", "backup": 1}),
        ("GoBack", {"to": "backup", "unattended": "yes"}),
        ("GoBack", {"to": "backup", "more": 1}),
        ("Uninstall", {}),
        ("Uninstall", {"id": "x" * 300}),
        ("CleanUp", {"id": "x"}),
    ],
)
def test_our_own_methods_are_as_strict(path: str, body: Any, http: httpx.Client, stub: Any) -> None:
    answer = http.post(f"/otaflow/{path}", json=body)
    assert (answer.status_code, answer.json()["error"]) == (422, "GeneralReject")
    assert stub.asked == []


def test_clean_up_answers_what_it_removed(http: httpx.Client, schema: Any) -> None:
    answer = http.post("/otaflow/CleanUp")
    assert answer.json() == {"removed": ["0001-20260131T120000Z"]}
    form = schema["paths"]["/otaflow/CleanUp"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), {**form, "components": schema["components"]})


@pytest.mark.parametrize("name", CODES)
def test_codes(name: str) -> None:
    assert getattr(errors, name).code == CODES[name]


def test_every_error_class_is_in_the_contract() -> None:
    assert {kind.__name__ for kind in errors.UcmError.__subclasses__()} == set(CODES)


def test_status_words(schema: Any) -> None:
    line = re.search(r"Status words: `(.*?)`, and\s+`(\w+)`", TEXT, re.DOTALL)
    assert line
    assert [*line[1].split(), line[2]] == [str(state) for state in State]
    assert schema["components"]["schemas"]["State"]["enum"] == [str(state) for state in State]


@pytest.mark.parametrize("words", re.findall(r"(k[A-Z]\w+(?:, k[A-Z]\w+)+)", TEXT))
def test_words_of_states_and_resolutions(words: str, schema: Any) -> None:
    enums = [
        field["enum"]
        for component in schema["components"]["schemas"].values()
        for field in component.get("properties", {}).values()
        if "enum" in field
    ]
    assert words.split(", ") in enums


def test_the_status_is_the_field(http: httpx.Client) -> None:
    assert http.get("/ucm/CurrentStatus").json() == {"status": "Idle", "session": None}


def test_the_client_has_every_method() -> None:
    for method in TABLE:
        assert callable(getattr(Client, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method).lower()))


def test_the_page_is_readable_without_internet(http: httpx.Client) -> None:
    page = http.get("/docs").text
    for method in [*TABLE, *(own.name for own in OUR_OWN)]:
        assert f'id="{method}"' in page
    assert not re.search(r"(src|href)=.?(https?:)?//|@import|<script|url\(", page)


def test_the_openapi_is_valid(schema: Any) -> None:
    assert schema["openapi"].startswith("3.1")
    ids = [operation["operationId"] for path in schema["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)) == 18 + len(OUR_OWN)
    for path in schema["paths"].values():
        for operation in path.values():
            assert {"401", "422", "500"} < set(operation["responses"])


def test_it_is_made_without_a_server(stub: Any) -> None:
    assert make_app(stub).openapi()["info"]["title"] == "otaflow UCM"


def resolve(schema: Any, part: Any) -> Any:
    if "$ref" in part:
        return schema["components"]["schemas"][part["$ref"].rpartition("/")[2]]
    return part
