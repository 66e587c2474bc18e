"""Downloads over a real server that cuts, lies and changes its mind."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from otaflow.config import Source
from otaflow.errors import InsufficientMemory, Offline, RepositoryRefused
from otaflow.repo.transport import Transport

CONTENT = bytes(range(256)) * 40 + b"end"
OTHER = bytes(reversed(CONTENT))


class Case:
    """A device that downloads CONTENT from the faulty server."""

    def __init__(self, faulty: Any, pki: Any, folder: Path) -> None:
        self.server, self.folder = faulty, folder
        self.server.content = CONTENT
        self.into = folder / "cache" / "demo.nsu"
        self.part = folder / "cache" / "demo.nsu.part"
        self.seen: list[int] = []
        self.way = Transport(Source(url=faulty.url, root=folder / "root.json", ca=pki.ca_file, timeout_seconds=60))

    def download(self, content: bytes = CONTENT) -> Path:
        hashes = {"sha256": hashlib.sha256(content).hexdigest(), "sha512": hashlib.sha512(content).hexdigest()}
        return self.way.download(self.way.url("demo.nsu"), self.into, len(content), hashes, self.seen.append)

    def check(self) -> None:
        assert self.into.read_bytes() == CONTENT
        assert os.listdir(self.into.parent) == [self.into.name]


@pytest.fixture
def case(faulty: Any, pki: Any, tmp_path: Path) -> Any:
    case = Case(faulty, pki, tmp_path)
    yield case
    case.way.close()


def test_download(case: Case) -> None:
    assert case.download() == case.into
    case.check()
    assert case.seen[-1] == len(CONTENT)
    case.download()
    assert len(case.server.asked) == 1, "what is there and right is not fetched again"


@pytest.mark.parametrize("at", [1, 2, 255, 4096, len(CONTENT) // 2, len(CONTENT) - 1])
def test_one_call_resumes_what_made_progress(case: Case, at: int) -> None:
    case.server.cuts = [at, at]
    case.download()
    case.check()
    assert case.server.asked[1] == (f"bytes={at}-", '"one"')
    assert case.server.sent == len(CONTENT), "no byte was sent twice"
    assert case.seen == sorted(case.seen)


def test_cut_at_every_place_and_a_new_process_each_time(case: Case) -> None:
    step = 1000
    case.server.cuts = [cut for _ in range(11) for cut in (step, 0)]  # some, then none: the call gives up
    for _ in range(20):
        try:
            case.download()
            break
        except Offline:
            assert not case.into.exists()
            assert case.part.stat().st_size % step == 0
    case.check()
    assert case.server.sent == len(CONTENT)


def test_cut_before_the_first_byte(case: Case) -> None:
    case.server.cuts = [0]
    with pytest.raises(Offline):
        case.download()
    case.download()
    case.check()


def test_server_without_ranges_starts_over(case: Case) -> None:
    case.server.ranges = False
    case.server.cuts = [5000, 6000]
    case.download()
    case.check()


def test_server_without_validator_resumes_by_range_alone(case: Case) -> None:
    case.server.etag = None
    case.server.cuts = [5000]
    case.download()
    case.check()
    assert case.server.asked[1] == ("bytes=5000-", None)


def test_changed_etag_starts_over(case: Case) -> None:
    case.server.cuts = [5000, 0]
    with pytest.raises(Offline):
        case.download()
    case.server.etag = '"two"'
    case.download()
    case.check()


def test_weak_validator_is_not_sent(case: Case) -> None:
    case.server.etag = 'W/"one"'
    case.server.cuts = [5000]
    case.download()
    case.check()
    assert case.server.asked[1] == ("bytes=5000-", None)


def test_mixture_of_two_files_is_noticed_and_fetched_whole(case: Case) -> None:
    case.server.etag = None
    case.server.content = OTHER
    case.server.cuts = [5000, 0]
    with pytest.raises(Offline):
        case.download()
    case.server.content = CONTENT
    case.download()
    case.check()


SHORT_NOTES = {
    "none": None,
    "no JSON": b"{",
    "not an object": b"[]",
    "of another file": json.dumps({"validator": '"one"', "hashes": {}}).encode(),
}


@pytest.mark.parametrize("note", SHORT_NOTES.values(), ids=SHORT_NOTES)
def test_what_an_unknown_try_left_is_not_used(case: Case, note: bytes | None) -> None:
    case.part.parent.mkdir()
    case.part.write_bytes(OTHER[:5000])
    if note is not None:
        case.part.with_name("demo.nsu.part.json").write_bytes(note)
    case.download()
    case.check()
    assert case.server.asked[0] == (None, None)


def test_range_that_the_server_cannot_satisfy(case: Case) -> None:
    case.server.cuts = [5000, 0]
    with pytest.raises(Offline):
        case.download()
    case.server.content = CONTENT[:5000]  # 416, then a file that is too short
    with pytest.raises(RepositoryRefused, match="5000 bytes"):
        case.download()
    case.server.content = CONTENT
    case.download()
    case.check()


def test_wrong_content_range_starts_over(case: Case) -> None:
    case.server.cuts = [5000, 0]
    with pytest.raises(Offline):
        case.download()

    def lie(handler: Any) -> None:
        case.server.answer = None
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 4000-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    case.server.answer = lie
    case.download()
    case.check()


def _say(handler: Any, body: bytes, length: int | None, kind: str = "text/html") -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    if length is None:
        handler.send_header("Transfer-Encoding", "chunked")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(body)


WRONG = {
    "a proxy's page": (lambda handler: _say(handler, b"<html>", 6), "6 bytes of text/html"),
    "a proxy's page in chunks": (lambda handler: _say(handler, b"<html>", None), "sent 6 bytes"),
    "too long": (lambda handler: _say(handler, CONTENT + b"x", len(CONTENT) + 1), "were signed"),
    "too long in chunks": (lambda handler: _say(handler, CONTENT + b"x", None), "more than the"),
    "the right length": (lambda handler: _say(handler, OTHER, len(OTHER)), "not the file that was signed"),
}


@pytest.mark.parametrize(("answer", "why"), WRONG.values(), ids=WRONG)
def test_another_file_is_refused_and_nothing_is_left(case: Case, answer: Any, why: str) -> None:
    case.server.answer = answer
    with pytest.raises(RepositoryRefused, match=why):
        case.download()
    assert not case.into.exists()
    assert not case.part.exists()
    case.server.answer = None
    case.download()
    case.check()


def test_old_file_of_that_name_stays_until_the_new_one_is_whole(case: Case) -> None:
    case.into.parent.mkdir()
    case.into.write_bytes(b"old")
    case.server.cuts = [5000, 0]
    with pytest.raises(Offline):
        case.download()
    assert case.into.read_bytes() == b"old"
    case.download()
    case.check()


def test_empty_file(case: Case) -> None:
    case.server.content = b""
    case.download(b"")
    assert case.into.read_bytes() == b""


def test_symbolic_link_in_the_cache_is_not_followed(case: Case, tmp_path: Path) -> None:
    case.part.parent.mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    case.server.cuts = [5000, 0]
    with pytest.raises(Offline):
        case.download()
    case.part.unlink()
    case.part.symlink_to(victim)
    with pytest.raises(Exception, match="cannot write"):
        case.download()
    assert victim.read_bytes() == b"mine"


def test_no_room_is_said_before_anything_is_fetched(case: Case) -> None:
    with pytest.raises(InsufficientMemory, match="bytes free"):
        case.way.download(case.way.url("x"), case.into, 2**60, {"sha256": "00"})
    assert case.server.asked == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_disk_that_fills_up(case: Case, tmp_path: Path) -> None:
    import subprocess

    small = tmp_path / "cache"
    small.mkdir()
    content = os.urandom(600_000)
    case.server.content = content
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=False).returncode:
        pytest.skip("no mounting here")
    try:

        def fill(done: int) -> None:
            if done and not (small / "other").exists():
                (small / "other").write_bytes(bytes(500_000))

        with pytest.raises(InsufficientMemory):
            case.way.download(
                case.way.url("x"), case.into, len(content), {"sha256": hashlib.sha256(content).hexdigest()}, fill
            )
        assert os.listdir(small) == ["other"], "the room is given back"
    finally:
        subprocess.run(["umount", small], check=True)
