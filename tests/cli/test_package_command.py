"""`otaflow package`, called as the command line calls it."""

import json
from pathlib import Path
from typing import Any

import pytest

from otaflow.cli.package import app
from otaflow.errors import PackageInconsistent


def call(*arguments: Any) -> None:
    app([str(argument) for argument in arguments], result_action="return_value", exit_on_error=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "assets").mkdir(parents=True)
    (folder / "metadata").write_text(
        "format: 1\nname: system\nkind: system\nversion: 1.1.0\nupdate_number: 2\n"
        'description: "steers \\e[2J[bold]nothing[/bold]"\n'
        "health: [{name: web, command: [curl, http://localhost]}]\n"
    )
    (folder / "update").write_text("#!/bin/sh\n")
    (folder / "update").chmod(0o755)
    return folder


def test_build_and_show(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("build", source, "-o", tmp_path / "a.nsu")
    assert "system 1.1.0" in capsys.readouterr().out
    call("show", tmp_path / "a.nsu")
    shown = capsys.readouterr().out
    assert "curl http://localhost" in shown
    assert "[bold]nothing" in shown
    assert "\x1b[2J" not in shown
    call("show", tmp_path / "a.nsu", "--json")
    values = json.loads(capsys.readouterr().out)
    assert values["version"] == "1.1.0"
    assert values["files"]["assets"]["mode"].startswith("0")
    assert values["package_bytes"] == (tmp_path / "a.nsu").stat().st_size


def test_build_as_json(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("build", source, "--output", tmp_path / "a.nsu", "--json")
    assert json.loads(capsys.readouterr().out)["size"]["files"] == 2


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    call("schema")
    assert json.loads(capsys.readouterr().out)["title"] == "otaflow package metadata"


def test_error_is_raised_for_main(tmp_path: Path) -> None:
    with pytest.raises(PackageInconsistent):
        call("show", tmp_path / "none.nsu")
