"""The examples are packages that build, and programs that do what their pages say."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otaflow.package.build import build
from otaflow.package.extract import extract

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "demo-system"
VERSIONS = ["1.1.0", "1.2.0"]
NOTES = ROOT / "examples" / "notes"
NOTES_SCHEMA = {"1.0.0": 1, "1.1.0": 2, "1.2.0": 3}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_package_is_built_and_extracted(version: str, tmp_path: Path) -> None:
    metadata = build(EXAMPLE / version, tmp_path / "package.nsu")
    assert (metadata.name, metadata.version) == ("demo-system", version)
    extract(tmp_path / "package.nsu", tmp_path / "extracted")
    assert (tmp_path / "extracted" / "update").stat().st_mode & 0o111


def run_update(version: str, direction: str, folder: Path) -> None:
    """Run the example's program on `folder`/slot as a device does."""
    environment = {
        "PATH": os.environ["PATH"],
        "OTAFLOW_SLOT": str(folder / "slot"),
        "OTAFLOW_ASSETS": str(EXAMPLE / version / "assets"),
        "OTAFLOW_ETC": str(folder / "etc"),
        "OTAFLOW_HISTORY": str(folder / "history.json"),
        "OTAFLOW_SNAPSHOTS": str(folder / "snapshots"),
        "OTAFLOW_VERSION_FROM": "from",
        "OTAFLOW_VERSION_TO": "to",
    }
    subprocess.run([EXAMPLE / version / "update", direction], cwd=EXAMPLE / version, env=environment, check=True)


def picture(folder: Path) -> dict[str, str]:
    """The texts of the slot and the configuration."""
    files = [*(folder / "slot").rglob("*"), *(folder / "etc").rglob("*")]
    return {str(file.relative_to(folder)): file.read_text() for file in files if file.is_file()}


def test_up_and_down_are_each_others_undo(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE / "1.0.0" / "system", tmp_path / "slot")
    shutil.copytree(EXAMPLE / "1.0.0" / "etc", tmp_path / "etc")
    shutil.copytree(tmp_path / "slot", tmp_path / "snapshots" / "0000-first")
    history = [{"version": "1.0.0", "snapshot": "0000-first"}]
    (tmp_path / "history.json").write_text(json.dumps(history, indent=1))
    first = picture(tmp_path)
    assert say_hello(tmp_path) == (0, "demo-system 1.0.0: hello\n")

    run_update("1.1.0", "up", tmp_path)
    assert say_hello(tmp_path) == (0, "demo-system 1.1.0: hello, and good morning\n")

    run_update("1.1.0", "down", tmp_path)
    assert picture(tmp_path) == first


def test_the_sick_one_is_sick(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE / "1.0.0" / "system", tmp_path / "slot")
    shutil.copytree(EXAMPLE / "1.0.0" / "etc", tmp_path / "etc")
    run_update("1.2.0", "up", tmp_path)
    assert say_hello(tmp_path) == (1, "hello: cannot read share/words\n")


def say_hello(folder: Path) -> tuple[int, str]:
    """How the system's program ends and what it says."""
    done = subprocess.run([folder / "slot" / "bin" / "hello"], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


# --- the application --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [*NOTES_SCHEMA, "1.3.0"])
def test_the_applications_package_is_built_and_extracted(version: str, tmp_path: Path) -> None:
    metadata = build(NOTES / version, tmp_path / "package.nua")
    assert (metadata.name, metadata.version, metadata.kind) == ("notes", version, "application")
    extract(tmp_path / "package.nua", tmp_path / "extracted")
    for program in (tmp_path / "extracted/files/bin").iterdir():
        compile(program.read_text(), program.name, "exec")
        assert program.stat().st_mode & 0o111


@contextlib.contextmanager
def serving(version: str, data: Path) -> Iterator[http.client.HTTPConnection]:
    """The service of `version` on the folder `data`, and a client of it."""
    data.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (data / "port").write_text(str(port))
    service = subprocess.Popen([NOTES / version / "files/bin/notes", data], stderr=subprocess.PIPE, text=True)
    try:
        while service.poll() is None:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        if service.poll() is not None:
            assert service.stderr is not None
            raise RuntimeError(service.stderr.read())
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        yield client
        client.close()
    finally:
        service.kill()
        service.communicate()


def ask(client: http.client.HTTPConnection, method: str = "GET", path: str = "/", body: str | None = None) -> Any:
    client.request(method, path, body)
    return json.loads(client.getresponse().read())


@pytest.mark.parametrize(("version", "schema"), NOTES_SCHEMA.items())
def test_the_service_keeps_notes(version: str, schema: int, tmp_path: Path) -> None:
    with serving(version, tmp_path) as client:
        assert ask(client, "POST", "/notes", "Buy milk") == {"id": 1}
        answer = ask(client)
        assert (answer["version"], answer["schema"], len(answer["notes"])) == (version, schema, 1)
        check = [NOTES / "1.0.0/files/bin/check", version]
        environment = {"PATH": os.environ["PATH"], "OTAFLOW_DATA": str(tmp_path)}
        assert subprocess.run(check, env=environment, check=False).returncode == 0
        wrong = subprocess.run([check[0], "0.9.0"], env=environment, capture_output=True, text=True, check=False)
        assert (wrong.returncode, wrong.stderr) == (1, f"version {version} answers\n")


def test_the_next_service_needs_the_migration(tmp_path: Path) -> None:
    with serving("1.0.0", tmp_path) as client:
        ask(client, "POST", "/notes", "Buy milk")
    with pytest.raises(RuntimeError, match="knows schema 2, the database has 1"), serving("1.1.0", tmp_path):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "notes.db")) as database:
        database.executescript((NOTES / "1.1.0/files/migrations/2.sql").read_text())
    with serving("1.1.0", tmp_path) as client:
        assert ask(client) == {"version": "1.1.0", "schema": 2, "notes": ["unknown: Buy milk"]}


def test_the_sick_ones_are_sick(tmp_path: Path) -> None:
    with serving("1.1.0", tmp_path) as client:
        ask(client, "POST", "/notes", "Buy milk")
    with contextlib.closing(sqlite3.connect(tmp_path / "notes.db")) as database:
        script = (NOTES / "1.2.0/files/migrations/3.sql").read_text()
        with pytest.raises(sqlite3.OperationalError, match="no such column: author"):
            database.executescript(script)
        assert "author_name" in str(database.execute("SELECT sql FROM sqlite_master").fetchall())  # half-way
    with pytest.raises(RuntimeError, match=r"notes 1\.3\.0 cannot start"), serving("1.3.0", tmp_path):
        pass


def test_a_wheel_takes_the_examples_along() -> None:
    """`otaflow demo` works where only the wheel is installed."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["otaflow"]
    taken = {path for pattern in data for path in (ROOT / "src" / "otaflow").glob(pattern)}
    files = [path for example in (EXAMPLE, NOTES) for path in example.rglob("*/**/*") if path.is_file()]
    wanted = {ROOT / "src" / "otaflow" / path.relative_to(ROOT) for path in files}
    assert wanted <= taken
