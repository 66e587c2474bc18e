"""platform/run.py against real programs."""

import logging
import os
import threading
import time
from pathlib import Path

import pytest
from processes import wait_ended

from otaflow.errors import CommandFailed
from otaflow.platform import run as module
from otaflow.platform.run import CANCELLED, KEPT_OUTPUT, TIMED_OUT, run


def test_output_and_status() -> None:
    done = run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=120, check=False)
    assert done == (3, "out\nerr\n")


def test_a_bad_end_is_an_error_with_the_last_words() -> None:
    with pytest.raises(CommandFailed, match=r"cannot run `sh -c .*exit status 3: the reason") as caught:
        run(["sh", "-c", "echo first; echo the reason; exit 3"], timeout=120)
    assert caught.value.returncode == 3
    assert caught.value.output == "first\nthe reason\n"


def test_a_signal_is_named() -> None:
    with pytest.raises(CommandFailed, match="killed by SIGSEGV"):
        run(["sh", "-c", "kill -SEGV $$"], timeout=120)


@pytest.mark.parametrize(
    ("name", "package"), [("btrfs", "btrfs-progs"), ("cp", "coreutils"), ("unshare", "util-linux")], ids=str
)
def test_a_missing_program_names_its_package(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "setpriv").symlink_to("/usr/bin/setpriv")
    monkeypatch.setattr(module, "DEFAULT_PATH", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandFailed, match=f"cannot run {name}: there is no such program") as caught:
        run([name], timeout=120)
    assert caught.value.hint == f"apt-get install {package}"


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    names = {line.partition("=")[0] for line in run(["env"], timeout=120, env={"MINE": "1"}).output.splitlines()}
    assert names <= {"PATH", "LANG", "MINE", "PWD", "_"}
    assert "MINE" in names


def test_stdin_is_closed_and_the_session_its_own() -> None:
    assert run(["cat"], timeout=120).output == ""
    assert run(["sh", "-c", "ps -o sid= -p $$"], timeout=120).output.strip() != str(os.getsid(0))


def test_it_is_logged_as_a_shell_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "otaflow.run"):
        run(["echo", "a b"], timeout=120)
    assert "echo 'a b'" in caplog.text


def test_memory_is_bounded_and_every_line_is_heard() -> None:
    heard = []
    done = run(["sh", "-c", "seq 100000; printf end"], timeout=120, output=heard.append)
    assert len(done.output) == KEPT_OUTPUT
    assert done.output.endswith("100000\nend")
    assert heard == [*map(str, range(1, 100001)), "end"]


def test_a_time_limit_ends_the_whole_session(tmp_path: Path) -> None:
    script = f"trap '' TERM; setsid sleep 1000 & echo $! > {tmp_path}/pid; sleep 1000 & echo $! > {tmp_path}/pid2; wait"
    paths = [tmp_path / name for name in ("pid", "pid2")]
    for seconds in (3, 15, 75):  # how long it takes to get so far is the machine's affair
        with pytest.raises(CommandFailed, match=rf"did not end within {seconds} s") as caught:
            run(["sh", "-c", script], timeout=seconds)
        assert caught.value.returncode == TIMED_OUT
        if all(path.exists() and path.read_text() for path in paths):
            break
    assert all(wait_ended(int(path.read_text())) for path in paths)


def test_it_can_be_cancelled() -> None:
    asked = threading.Event()
    with pytest.raises(CommandFailed, match="it was cancelled") as caught:
        run(["sh", "-c", "echo on; sleep 1000"], timeout=60, output=lambda _: asked.set(), cancelled=asked.is_set)
    assert caught.value.returncode == CANCELLED
    assert caught.value.output == "on\n"


def test_a_listener_that_fails_ends_the_program(tmp_path: Path) -> None:
    def fail(line: str) -> None:
        raise ValueError(line)

    with pytest.raises(ValueError):
        run(["sh", "-c", f"echo $$ > {tmp_path}/pid; echo x; sleep 1000"], timeout=60, output=fail)
    assert wait_ended(int((tmp_path / "pid").read_text()))


def test_a_descendant_that_keeps_the_pipe_is_not_waited_for(tmp_path: Path) -> None:
    done = run(["sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/pid; echo done"], timeout=60)
    assert done.output == "done\n"
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_children_die_with_us(start_python, tmp_path: Path) -> None:
    code = """
import sys
from otaflow.platform.run import run
run(["sh", "-c", "trap '' TERM; echo $$ > " + sys.argv[1] + "; exec sleep 1000"], timeout=60)
"""
    process = start_python(code, tmp_path / "pid")
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip()):
        time.sleep(0.01)
    process.kill()
    assert wait_ended(int((tmp_path / "pid").read_text()))
