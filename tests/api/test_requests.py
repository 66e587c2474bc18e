"""What is no request of the interface is refused before anything happens; what is one blocks nobody else."""

import json
import random
import socket
import string
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from otaflow.api.methods import METHODS
from otaflow.client import Client
from otaflow.errors import GeneralReject, IncorrectSize, InvalidTransferId, OperationNotPermitted
from otaflow.ucm.states import State

MALFORMED = 10_000


@pytest.fixture
def http(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(server.socket)), base_url="http://ucm") as http:
        yield http


def is_refused(answer: httpx.Response, status: int = 422) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json()["error"] == "GeneralReject"
    assert answer.json()["code"] == 10
    assert answer.json()["message"].startswith("cannot ")


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("TransferStart", b""),
        ("TransferStart", b"{}"),
        ("TransferStart", b"[]"),
        ("TransferStart", b"null"),
        ("TransferStart", b"{"),
        ("TransferStart", b'{"size": "5"}'),
        ("TransferStart", b'{"size": 5.5}'),
        ("TransferStart", b'{"size": true}'),
        ("TransferStart", b'{"size": 0}'),
        ("TransferStart", b'{"size": -1}'),
        ("TransferStart", b'{"size": NaN}'),
        ("TransferStart", b'{"size": 5, "more": 1}'),
        ("TransferStart", b'{"size": ' + b"9" * 5000 + b"}"),
        ("TransferStart", b"\xff\xfe"),
        ("TransferStart", b"[" * 10_000),
        ("TransferStart", b'{"size": 5, "x": "' + b"x" * 70_000 + b'"}'),
        ("Activate", b'{"force": true}'),
        ("ProcessSwPackage", b'{"id": null}'),
        ("ProcessSwPackage", b'{"id": 7}'),
        ("ProcessSwPackage", b'{"id": "\\ud800"}'),
        ("ProcessSwPackage", b'{"id": "' + b"x" * 256 + b'"}'),
        ("SetLogLevel", b'{"id": "x", "level": 7}'),
        ("SetLogLevel", b'{"id": "x", "level": "4"}'),
        ("GetHistory", b'{"since": "yesterday"}'),
        ("GetHistory", b'{"since": "2026-01-31"}'),
        ("GetHistory", b'{"since": "2026-01-31T12:00:00"}'),
        ("GetHistory", b'{"since": "2026-02-31T12:00:00Z"}'),
        ("GetHistory", b'{"until": "2026-W05-1T12:00:00Z"}'),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:30].decode("latin-1"),
)
def test_bodies_that_are_refused(method: str, body: bytes, http: httpx.Client, stub: Any) -> None:
    stub.state = State.READY
    is_refused(http.post(f"/ucm/{method}", content=body))
    assert stub.asked == []


@pytest.mark.parametrize(
    "query",
    ["", "id=x", "blockCounter=1", "id=x&blockCounter=one", "id=x&blockCounter=1&more=1", "id=x&id=y&blockCounter=1",
     "id=x&blockCounter=1.5", "id=x&blockCounter="],
)  # fmt: skip
def test_queries_that_are_refused(query: str, http: httpx.Client, stub: Any) -> None:
    is_refused(http.post(f"/ucm/TransferData?{query}", content=b"block"))
    assert stub.asked == []


@pytest.mark.parametrize("path", ["/ucm/Activate?force=1", "/ucm/Finish?a=b"])
def test_a_query_where_none_belongs(path: str, http: httpx.Client, stub: Any) -> None:
    is_refused(http.post(path))
    assert stub.asked == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/ucm/Activate", 405),
        ("DELETE", "/ucm/CurrentStatus", 405),
        ("POST", "/ucm/CurrentStatus", 405),
        ("POST", "/ucm/Activate/", 404),
        ("POST", "/ucm/activate", 404),
        ("POST", "/UCM/Activate", 404),
        ("GET", "/", 404),
        ("GET", "/ucm/../../etc/passwd", 404),
    ],
)
def test_what_is_not_there(method: str, path: str, status: int, http: httpx.Client, stub: Any) -> None:
    stub.state = State.READY
    answer = http.request(method, path)
    is_refused(answer, status)
    assert status != 405 or answer.headers["allow"] in ("GET", "POST")
    assert stub.asked == []


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31t12:00:00.123456z", "2026-01-31T12:00:00.123Z"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00.000Z"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.000Z"),
        ("0000-01-01T00:00:00+23:59", "0001-01-01T00:00:00.000Z"),
        ("9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59.000Z"),
    ],
)
def test_times_are_passed_on_in_utc(given: str, passed: str, client: Client, stub: Any) -> None:
    client.get_history(since=given)
    assert stub.asked == [("history", passed, None)]


def test_bodies_that_are_taken(http: httpx.Client, stub: Any) -> None:
    for body in (b"", b"{}", b" { } "):
        assert http.post("/ucm/GetHistory", content=body).status_code == 200
    assert http.post("/ucm/TransferStart", content=b'{"size": 7.0}').status_code == 200
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d says
    assert http.post("/ucm/TransferStart", content=b'{"size": 7}', headers=form).status_code == 200


@pytest.mark.parametrize("length", [0, 1001, 2000])
def test_a_block_of_the_wrong_size_is_the_services_to_refuse(length: int, client: Client, stub: Any) -> None:
    id, _ = client.transfer_start(5000)
    with pytest.raises(IncorrectSize):
        client.transfer_data(id, 1, b"x" * length)
    assert client.transfer_data(id, 1, b"x" * 1000) == 1000


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_long_is_not_read(chunked: bool, http: httpx.Client, client: Client, stub: Any) -> None:
    id, _ = client.transfer_start(5000)
    pieces = (b"x" * 10_000 for _ in range(2000))
    body: Any = pieces if chunked else b"".join(pieces)
    answer = http.post("/ucm/TransferData", params={"id": id, "blockCounter": 1}, content=body)
    assert (answer.status_code, answer.json()["error"]) == (422, "IncorrectSize")
    assert stub.asked == [("transfer_start", 5000)]
    assert client.transfer_data(id, 1, b"x" * 1000) == 1000


def test_a_client_that_goes_away_in_a_block_changes_nothing(server: Any, client: Client, stub: Any) -> None:
    id, _ = client.transfer_start(5000)
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(str(server.socket))
        head = f"POST /ucm/TransferData?id={id}&blockCounter=1 HTTP/1.1\r\nHost: ucm\r\nContent-Length: 1000\r\n\r\n"
        plain.sendall(head.encode() + b"x" * 500)
    assert client.get_sw_packages()[0]["consecutiveBytesReceived"] == 0
    assert client.transfer_data(id, 1, b"x" * 1000) == 1000


@pytest.mark.parametrize("pieces", [[1000], [1, 999], [500, 499, 1], [1] * 1000, [999, 2], [300, 701]], ids=len)
def test_a_body_in_pieces_and_a_request_behind_it(pieces: list[int], server: Any, client: Client, stub: Any) -> None:
    """Whatever the pieces are in which a block comes, it is the block; the next request begins behind it."""
    block = random.Random(2).randbytes(1000)
    id, _ = client.transfer_start(5000)
    head = f"POST /ucm/TransferData?id={id}&blockCounter=1 HTTP/1.1\r\nHost: ucm\r\nContent-Length: 1000\r\n\r\n"
    behind = b"GET /ucm/CurrentStatus HTTP/1.1\r\nHost: ucm\r\nConnection: close\r\n\r\n"
    sent = block + behind
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(str(server.socket))
        plain.sendall(head.encode())
        for length in pieces:
            plain.sendall(sent[:length])
            sent = sent[length:]
            time.sleep(0.001)
        plain.sendall(sent)
        answer = b"".join(iter(lambda: plain.recv(4096), b"")).decode()
    assert stub.blocks[id] == [block]
    assert answer.count("HTTP/1.1 200 OK") == 2
    assert '{"consecutiveBytesReceived":1000}' in answer
    assert answer.endswith('{"status":"Idle","session":null}')


def test_what_is_not_http_is_answered_as_json(server: Any, client: Client) -> None:
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(str(server.socket))
        plain.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = b"".join(iter(lambda: plain.recv(4096), b"")).decode()
    assert answer.startswith("HTTP/1.1 400 ")
    assert json.loads(answer.partition("\r\n\r\n")[2])["error"] == "GeneralReject"
    assert client.current_status()["status"] == "Idle"


@pytest.mark.parametrize("error", [RuntimeError("boom"), OSError(28, "No space left on device")])
def test_an_unexpected_failure_is_a_general_reject(error: Exception, http: httpx.Client, stub: Any) -> None:
    stub.raises["packages"] = error
    is_refused(http.post("/ucm/GetSwPackages"), 500)


def test_an_error_that_the_method_does_not_name_keeps_its_name(http: httpx.Client, stub: Any) -> None:
    stub.raises["packages"] = InvalidTransferId("cannot")
    answer = http.post("/ucm/GetSwPackages")
    assert (answer.status_code, answer.json()["error"]) == (500, "InvalidTransferId")


def test_a_call_that_the_service_gives_up(http: httpx.Client, stub: Any) -> None:
    stub.state = State.READY
    with ThreadPoolExecutor() as pool:
        pending = pool.submit(http.post, "/ucm/Activate")
        wait_until(lambda: stub.held)
        stub.held[0][1].cancel()
        is_refused(pending.result(), 500)


# --- nobody waits for somebody else -------------------------------------------------------------------------------


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_calls_are_refused_and_reports_answered_while_others_are_pending(
    server: Any, client: Client, stub: Any
) -> None:
    id, _ = client.transfer_start(10)
    with ThreadPoolExecutor() as pool:
        pending = pool.submit(client.process_sw_package, id)
        wait_until(lambda: stub.held)
        with Client(socket=server.socket) as other:
            assert other.current_status() == {"status": "Processing", "session": "session-1"}
            with pytest.raises(OperationNotPermitted, match="Processing"):
                other.activate()
            assert other.get_sw_process_progress(id) == 42
            assert len(other.get_history()) == 2
        assert not pending.done()
        stub.answer("ProcessSwPackage", State.READY)
        assert pending.result() is None


def test_fifty_pending_calls_do_not_use_the_threads_up(server: Any, client: Client, stub: Any) -> None:
    stub.state = State.PROCESSING
    with ThreadPoolExecutor(50) as pool:
        pending = [pool.submit(client.cancel, "x") for _ in range(50)]
        wait_until(lambda: len(stub.held) == 50)
        with pytest.raises(OperationNotPermitted):
            client.finish()
        for _ in range(50):
            stub.answer("Cancel", State.PROCESSING)
        assert [call.result() for call in pending] == [None] * 50


def test_blocks_that_wait_for_the_disk_do_not_hold_up_a_refusal(client: Client, stub: Any) -> None:
    disk = threading.Event()
    stub.transfer_data = lambda *_: disk.wait(120) and 5
    with ThreadPoolExecutor(40) as pool:
        pending = [pool.submit(client.transfer_data, "x", 1, b"block") for _ in range(40)]
        with pytest.raises(OperationNotPermitted):
            client.activate()
        disk.set()
        assert [call.result() for call in pending] == [5] * 40


def test_a_client_that_goes_away_does_not_stop_the_work(server: Any, client: Client, stub: Any) -> None:
    stub.state = State.READY
    with pytest.raises(httpx.ReadTimeout), httpx.Client(transport=httpx.HTTPTransport(uds=str(server.socket))) as http:
        http.post("http://ucm/ucm/Activate", timeout=0.3)
    wait_until(lambda: stub.held)
    assert not stub.held[0][1].cancelled()
    stub.answer("Activate", State.VERIFYING)
    assert client.current_status()["status"] == "Verifying"


def test_a_stop_lets_a_call_end_and_gives_up_waiting_for_others(
    serve: Any, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otaflow.api.serve.GRACE", 60.0)
    server = serve()
    stub.state = State.READY
    with ThreadPoolExecutor() as pool, Client(socket=server.socket) as client:
        pending = pool.submit(client.activate)
        wait_until(lambda: stub.held)
        stopping = pool.submit(server.stop)
        time.sleep(0.3)
        stub.answer("Activate", State.VERIFYING)
        assert pending.result() is None
        stopping.result()
    assert not server.socket.exists()


# --- ten thousand malformed requests ------------------------------------------------------------------------------


def make_malformed(luck: random.Random) -> bytes:
    """A request that no state permits and no method takes, as bytes on the wire."""
    method = luck.choice([method.name for method in METHODS])
    body = luck.choice(
        [
            luck.randbytes(luck.randrange(1, 300)),
            b'{"' + luck.choice(string.ascii_letters).encode() * 3 + b'": 1}',
            json.dumps([luck.random() for _ in range(luck.randrange(5))]).encode(),
            json.dumps(
                {"id": luck.choice([None, 1, [], {}, True]), "size": luck.choice(["x", None, -1, 1.5])}
            ).encode(),
            b'{"id": "x"' * luck.randrange(1, 5),
            b'{"id": "' + b"y" * luck.randrange(256, 5000) + b'"}',
        ]
    )
    path = f"/ucm/{method}"
    match luck.randrange(8):
        case 0:
            path += "?" + luck.choice(["a=b", "id=x", "%00=%ff", "=", "size=5"]) + "&z"
        case 1:
            path = "/" + "".join(luck.choices(string.ascii_letters + "/._%-", k=luck.randrange(60)))
        case 2:
            query = luck.choice(["id=x", "id=x&blockCounter=x", "blockCounter=1", "id=x&blockCounter=1&blockCounter=2"])
            path = f"/ucm/TransferData?{query}"
        case 3:
            return luck.randbytes(luck.randrange(1, 200)) + b"\r\n\r\n"
        case 4:
            verb = luck.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"])
            return f"{verb} {path} HTTP/1.1\r\nHost: ucm\r\nConnection: close\r\n\r\n".encode()
    length = max(len(body) + luck.choice([0, 0, 0, 0, 0, 50, -1]), 1)  # an empty body would be an empty object
    head = f"POST {path} HTTP/1.1\r\nHost: ucm\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


def ask_raw(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(120)
        plain.connect(str(path))
        with suppress(BrokenPipeError, ConnectionResetError):
            plain.sendall(request)
            plain.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):
            while piece := plain.recv(65536):
                answer += piece
    return answer


def test_ten_thousand_malformed_requests(server: Any, client: Client, stub: Any) -> None:
    stub.state = State.READY
    luck = random.Random(1)
    statuses: dict[bytes, int] = {}
    for _ in range(MALFORMED):
        request = make_malformed(luck)
        answer = ask_raw(server.socket, request)
        status = answer[9:12]
        statuses[status] = statuses.get(status, 0) + 1
        assert status in (b"", b"400", b"404", b"405", b"422"), (request, answer)
    assert stub.asked == []
    assert client.current_status() == {"status": "Ready", "session": "session-1"}
    assert statuses[b"422"] > MALFORMED / 3


def test_general_reject_comes_back_as_its_class(client: Client) -> None:
    with pytest.raises(GeneralReject, match="size"):
        client.call("TransferStart", size="many")
