"""The demo: what it shows is true, and nothing of it is left, however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from otaflow.cli.demo import ENDS, _find_unexpected
from otaflow.cli.demo_notes import FIRST_ANSWER, GOOD_ANSWER, Story
from otaflow.cli.demo_site import Site
from otaflow.config import load
from otaflow.errors import OtaflowError
from otaflow.platform.device import Device

PROGRAM = [sys.executable, "-c", "from otaflow.cli import main; main()"]
SECONDS = 600
"""No test is about how fast the machine is: the demo takes 25 s where nothing else happens."""


def left_in(folder: Path) -> list[str]:
    """What a demo in `folder` left: mounts, loop devices, processes, files."""
    left = [line for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line]
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # another test's device goes meanwhile
            if str(folder) in file.read_text():
                left.append(str(file))
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(f"{folder}/otaflow-demo" in word for word in words):
            left.append(f"process {process.pid}")
    return left + [str(path) for path in folder.iterdir()]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which the demo's folder is in the test's."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "tmp").mkdir()
    values = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "OTAFLOW_"))}
    values |= {"HOME": str(home), "TMPDIR": str(tmp_path / "tmp")}
    yield values
    deadline = time.monotonic() + 60  # the kernel lets go of a loop device, a process ends, a moment later
    while (left := left_in(tmp_path / "tmp")) and time.monotonic() < deadline:
        time.sleep(0.1)
    remove_demos(values)  # a test that fails leaves no mount and no process behind either
    assert not (home / ".prefect").exists()
    assert left == []


def remove_demos(environment: dict[str, str]) -> None:
    for folder in Path(environment["TMPDIR"]).glob("otaflow-demo-*"):
        subprocess.run([*PROGRAM, "demo", "--remove", folder], env=environment, timeout=SECONDS, check=False)


def end(process: subprocess.Popen[str]) -> None:
    """By SIGTERM, so that it takes everything away. One that does not hear is killed; the fixture removes the rest."""
    if process.poll() is None:
        process.terminate()
        try:
            process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_demo(environment: dict[str, str], *options: str) -> dict[str, Any]:
    """Run the demo to its end; its JSON answer."""
    process = subprocess.Popen(
        [*PROGRAM, "demo", "--json", *options],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said, problem = process.communicate(timeout=SECONDS)
    finally:
        end(process)
    assert process.returncode == 0, problem
    answer: dict[str, Any] = json.loads(said)
    return answer


def test_the_story_on_directories(environment: dict[str, str]) -> None:
    answer = run_demo(environment, "--directories")
    assert answer["unexpected"] == []
    assert answer["storage"].startswith("directories")
    assert (answer["installed"], answer["status"]["system_version"]) == (["1.1.0"], "1.1.0")
    assert "cannot read share/words" in answer["refused"]
    assert [(one["name"], one["action"], one["version"], one["resolution"]) for one in answer["history"]] == ENDS
    steps = answer["application"]["steps"]
    assert [one["version"] for one in steps] == ["1.0.0", "1.1.0", "1.2.0", "1.3.0"]
    assert [one["answer"] for one in steps] == [FIRST_ANSWER, GOOD_ANSWER, GOOD_ANSWER, GOOD_ANSWER]
    assert [one["taken_back"] for one in steps[:2]] == ["", ""]
    assert "no such column: author" in steps[2]["taken_back"]
    assert "notes.service" in steps[3]["taken_back"]


@pytest.mark.btrfs
def test_kept_on_btrfs_then_removed(environment: dict[str, str], btrfs_top: Path) -> None:
    answer = run_demo(environment, "--keep")
    folder = Path(answer["folder"])
    try:
        assert answer["storage"] == "btrfs on a loop file"
        ui = answer["prefect"].removesuffix("/api")
        with urllib.request.urlopen(ui, timeout=120) as page:
            assert b"<html" in page.read().lower()
        with urllib.request.urlopen(f"{ui}/ui-settings", timeout=120) as settings:
            assert json.load(settings)["api_url"] == answer["prefect"]
        states = []
        for run in answer["runs"]:
            with urllib.request.urlopen(f"{answer['prefect']}/flow_runs/{run}", timeout=120) as value:
                state = json.load(value)["state"]
                states.append((state["name"], state["type"]))
        kept_and_taken_back = [("Idle", "COMPLETED"), ("Idle", "FAILED")]
        assert states == [*kept_and_taken_back, ("Idle", "COMPLETED"), *kept_and_taken_back, ("Idle", "FAILED")]
        with urllib.request.urlopen(answer["application"]["url"], timeout=120) as notes:
            assert json.load(notes) == GOOD_ANSWER
        kept = {**environment, "OTAFLOW_CONFIG": answer["config"], "PREFECT_API_URL": answer["prefect"]}
        kept["PREFECT_HOME"] = str(folder / "prefect")
        checked = subprocess.run(
            [*PROGRAM, "check", "--json"], env=kept, capture_output=True, text=True, timeout=SECONDS, check=True
        )
        new = [(one["name"], one["version"]) for one in json.loads(checked.stdout)["new"]]
        assert new == [("demo-system", "1.2.0"), ("notes", "1.3.0")]
    finally:
        subprocess.run([*PROGRAM, "demo", "--remove", folder], env=environment, timeout=SECONDS, check=True)


def test_a_stage_to_go_on_from(environment: dict[str, str], tmp_path: Path) -> None:
    made = run_demo(environment, "--stage", "--directories")
    try:
        config = load(Path(made["config"]))
        assert (config.poll.interval_minutes, Device(config).running_system().version) == (1.0, "1.0.0")
        with_it = {**environment, "OTAFLOW_CONFIG": made["config"], "PREFECT_HOME": str(tmp_path / "prefect")}
        for published in (["1.1.0"], ["1.1.0", "1.2.0"]):
            checked = subprocess.run(
                [*PROGRAM, "check", "--json"], env=with_it, capture_output=True, text=True, timeout=SECONDS, check=True
            )
            assert [one["version"] for one in json.loads(checked.stdout)["new"]] == published
            sick = Path(made["folder"]) / "packages" / "demo-system-1.2.0.nsu"
            if published == ["1.1.0"]:
                publish = [*PROGRAM, "repo", "publish", str(Path(made["folder"]) / "repository"), str(sick)]
                subprocess.run(publish, env=environment, capture_output=True, timeout=SECONDS, check=True)
        install = [*PROGRAM, "app", "install", "notes", "--version", "1.0.0"]
        subprocess.run(install, env=with_it, capture_output=True, timeout=SECONDS, check=True)
        with urllib.request.urlopen(made["notes"], timeout=120) as notes:
            assert json.load(notes)["version"] == "1.0.0"
        checked = subprocess.run(
            [*PROGRAM, "check", "--json"], env=with_it, capture_output=True, text=True, timeout=SECONDS, check=True
        )
        new = [(one["name"], one["version"]) for one in json.loads(checked.stdout)["new"]]
        assert ("notes", "1.1.0") in new
        assert ("notes", "1.2.0") not in new
    finally:
        subprocess.run([*PROGRAM, "demo", "--remove", made["folder"]], env=environment, timeout=SECONDS, check=True)


def stop_at(environment: dict[str, str], words: str, number: int, *options: str) -> None:
    """Ctrl-C when the demo has said a line with `words` for the `number`th time."""
    process = subprocess.Popen(
        [*PROGRAM, "demo", *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if sum(words in one for one in said) == number:
                break
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=SECONDS)
    finally:
        end(process)
    assert process.returncode == 130, "".join([*said, rest])


@pytest.mark.btrfs
def test_stopped_in_the_middle(environment: dict[str, str], btrfs_top: Path) -> None:
    stop_at(environment, "copy active slot", 1)


@pytest.mark.parametrize(
    ("words", "number"),
    [("start services", 1), ("backup migration data", 1), ("answers, schema 2", 1), ("start services", 3)],
    ids=["the service just runs", "a migration begins", "between two updates", "a new version just runs"],
)
def test_stopped_while_the_application_is_worked_on(environment: dict[str, str], words: str, number: int) -> None:
    """Its service, which no process of the demo waits for, ends as well."""
    stop_at(environment, words, number, "--directories")


def test_an_outcome_that_was_not_promised_is_told(tmp_path: Path) -> None:
    site = Site(tmp_path / "demo")
    site.folder.mkdir()
    site.make_storage("a test")
    site.record["port"] = 1
    site.make_device()
    told = list(_find_unexpected(Device(load(site.config))))
    assert told[0] == "1.0.0 runs, Idle"
    assert told[-1] == "the history is []"
    assert any("bin/hello" in one for one in told)


def test_an_answer_that_was_not_promised_is_told() -> None:
    story = Story("http://127.0.0.1:1/")
    story.keep("1.0.0", FIRST_ANSWER, FIRST_ANSWER)
    story.keep("1.2.0", FIRST_ANSWER, GOOD_ANSWER)
    assert [one.partition(" {")[0] for one in story.unexpected] == [
        "after notes 1.2.0 the service answers",
        "notes 1.2.0 was kept",
    ]


@pytest.mark.parametrize("option", ["--folder", "--remove"])
def test_a_folder_that_is_no_place_for_it(option: str, tmp_path: Path) -> None:
    from otaflow.cli.demo import demo

    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OtaflowError, match=r"cannot (make|remove) the demo in"):
        demo(**{option[2:]: tmp_path})
    assert (tmp_path / "mine").read_text() == "mine"
