"""`otaflow ucm`, called as the command line calls it; and the transition table's page."""

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from otaflow.api.beside import BESIDE
from otaflow.api.methods import METHODS, TRANSFER_DATA
from otaflow.cli.ucm import app
from otaflow.errors import ConfigError, OperationNotPermitted, UcmError
from otaflow.ucm.listing import list_rows, render_markdown
from otaflow.ucm.states import State
from otaflow.ucm.table import CLIENT_EVENTS, TABLE

PAGE = Path(__file__).parents[2] / "docs/ucm-table.md"
Call = Callable[..., str]


@pytest.fixture
def plain(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: Any) -> str:
        capsys.readouterr()
        app([str(argument) for argument in arguments], result_action="return_value", exit_on_error=False)
        return capsys.readouterr().out

    return run


@pytest.fixture
def call(server: Any, folder: Path, plain: Call) -> Call:
    """A command of a device whose configuration says where its socket is."""
    path = folder / "otaflow.toml"
    path.write_text(f'[device]\nname = "d"\nmodel = "m"\nroot = "{folder}"\n')
    return lambda *arguments: plain(*arguments, "--config", path)


def test_there_is_a_command_for_each_method() -> None:
    for method in (*METHODS, *BESIDE, TRANSFER_DATA):
        name = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in method.name)[1:]
        assert app[name].help
    for name in ("current-status", "watch", "table", "transfer"):
        assert app[name].help


def test_a_transfer_by_hand(call: Call, stub: Any, tmp_path: Path) -> None:
    block = tmp_path / "block"
    block.write_bytes(b"x" * 600)
    started = json.loads(call("transfer-start", 1200, "--json"))
    assert started["blockSize"] == 1000
    assert call("transfer-data", started["id"], 1, block) == "600\n"
    assert json.loads(call("transfer-data", started["id"], 2, block, "--json")) == {"consecutiveBytesReceived": 1200}
    assert call("transfer-exit", started["id"]) == ""
    listed = json.loads(call("get-sw-packages", "--json"))
    assert listed["packages"][0]["state"] == "kTransferred"
    assert call("delete-transfer", started["id"]) == ""
    assert stub.sizes == {}


def test_a_whole_file(call: Call, stub: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 2500)
    id = call("transfer", tmp_path / "file").strip()
    assert id in stub.ended
    assert json.loads(call("transfer", tmp_path / "file", "--id", id, "--json")) == {"id": id}


@pytest.mark.parametrize(
    ("command", "method"),
    [
        (["process-sw-package", "x"], ("ProcessSwPackage", "x")),
        (["process-sw-package", "x", "--unattended"], ("ProcessSwPackage", "x", "unattended")),
        (["cancel", "x"], ("Cancel", "x")),
        (["activate"], ("Activate",)),
        (["rollback"], ("Rollback",)),
        (["revert-processed-sw-packages"], ("RevertProcessedSwPackages",)),
        (["finish"], ("Finish",)),
    ],
)
def test_what_changes_the_state(command: list[str], method: tuple[str, ...], call: Call, stub: Any) -> None:
    asked = []
    done: Future[None] = Future()
    done.set_result(None)
    stub._fire = lambda *arguments: asked.append(arguments) or done  # type: ignore[func-returns-value]
    assert call(*command) == ""
    assert call(*command, "--json") == "{}\n"
    assert asked == [method] * 2


def test_our_own_methods(call: Call, stub: Any) -> None:
    done: Future[None] = Future()
    done.set_result(None)
    stub._fire = lambda *_: done
    stub.sizes["x"] = 1
    assert call("go-back", "backup", "--backup", "0001", "--unattended") == ""
    assert call("go-back", "previous-slot", "--json") == "{}\n"
    assert call("uninstall", "x") == ""
    assert call("clean-up") == "0001-20260131T120000Z\n"
    assert stub.asked == [
        ("go_back", "backup", "0001", True),
        ("go_back", "previous-slot", None, False),
        ("uninstall", "x", False),
        ("clean_up",),
    ]


def test_reports(call: Call, stub: Any) -> None:
    stub.sizes["x"], stub.blocks["x"] = 5, []
    assert json.loads(call("current-status", "--json")) == {"status": "Idle", "session": None}
    assert call("current-status") == "Idle\n"
    assert call("get-sw-process-progress", "x") == "42 %\n"
    assert json.loads(call("get-sw-cluster-info", "--json"))["clusters"][0]["state"] == "kPresent"
    assert "kUpdating" in call("get-sw-cluster-change-info")
    assert len(json.loads(call("get-history", "--since", "2026-01-31T12:00:00Z", "--json"))["history"]) == 2
    assert stub.asked[-1] == ("history", "2026-01-31T12:00:00.000Z", None)
    assert call("set-log-level", "x", 6) == ""
    assert "grüß Gott" in call("get-log", "x")


def test_a_refusal(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OperationNotPermitted, match="cannot Activate"):
        call("activate", "--json")
    answered = json.loads(capsys.readouterr().out)
    assert (answered["error"], answered["code"]) == ("OperationNotPermitted", 5)
    with pytest.raises(UcmError):
        call("get-log", "gone")


def test_over_tls(serve: Any, pki: Any, plain: Call) -> None:
    server = serve(
        listen="127.0.0.1:0",
        certificate=pki.server[0],
        key=pki.server[1],
        token_file=pki.token_file,
        client_ca=pki.ca,
    )
    there = ["--url", server.url, "--ca", pki.ca]
    assert plain("current-status", *there, "--token-file", pki.token_file) == "Idle\n"
    assert plain("current-status", *there, "--certificate", pki.client[0], "--key", pki.client[1]) == "Idle\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--socket", "s", "--url", "https://x"],
        ["--socket", "s", "--token-file", "t"],
        ["--url", "https://x", "--key", "k"],
        ["--url", "http://x"],
        ["--config", "nowhere.toml"],
    ],
)
def test_places_that_make_no_sense(arguments: list[str], plain: Call) -> None:
    with pytest.raises(ConfigError, match="cannot"):
        plain("current-status", *arguments)


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_table_is_the_agents(plain: Call) -> None:
    rows = json.loads(plain("table", "--json"))
    assert rows == list_rows()
    assert {(row["state"], row["event"]) for row in rows} == {(str(state), event) for state, event in TABLE}
    calls = [row for row in rows if row["event"] in CLIENT_EVENTS]
    assert len(calls) == len(State) * 6
    assert {"state": "Idle", "event": "<Activate", "next": "Idle", "answer": "OperationNotPermitted"} in rows
    assert {"state": "Processing", "event": "<ProcessSwPackage", "next": "Processing", "answer": "ServiceBusy"} in rows
    depends = {"state": "Processing", "event": "!InvalidManifest", "next": ["Ready", "Idle"]}
    assert depends | {"answer": "InvalidManifest"} in rows


def test_the_page_is_up_to_date(plain: Call) -> None:
    assert plain("table", "--markdown") == render_markdown() == PAGE.read_text(), (
        "run `otaflow ucm table --markdown > docs/ucm-table.md`"
    )


def test_the_table_for_people(plain: Call) -> None:
    assert "RollingBackFailed" in plain("table")


def test_the_consent_to_diagnostic_data(call: Call, stub: Any) -> None:
    assert json.loads(call("get-diagnostics"))["consent"] == {"given": False, "time": None, "by": None}
    assert call("diagnostics-consent", "yes", "--by", "ann") == "yes\n"
    assert json.loads(call("diagnostics-consent", "no", "--json"))["removed"] == 0
    assert stub.policy.said == [(True, "ann"), (False, "somebody")]
