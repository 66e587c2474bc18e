"""The examples are packages that build, and programs that do what their pages say."""

import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from otaflow.package.build import build
from otaflow.package.extract import extract

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "demo-system"
VERSIONS = ["1.1.0", "1.2.0"]


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


def test_a_wheel_takes_the_examples_along() -> None:
    """`otaflow demo` works where only the wheel is installed."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["otaflow"]
    taken = {path for pattern in data for path in (ROOT / "src" / "otaflow").glob(pattern)}
    wanted = {ROOT / "src" / "otaflow" / path.relative_to(ROOT) for path in EXAMPLE.rglob("*") if path.is_file()}
    assert wanted <= taken
