"""platform/lock.py with real processes."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from processes import wait_ended

from otaflow.errors import Locked
from otaflow.platform.lock import DeviceLock, end_left_over
from otaflow.platform.run import INHERITED, run

HOLD = """
import sys, time
from pathlib import Path
from otaflow.platform.lock import DeviceLock
DeviceLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(1000)
"""
# its grandchild ignores SIGTERM and lives on when the owner is killed
HOLD_WITH_CHILD = """
import sys
from pathlib import Path
from otaflow.platform.lock import DeviceLock
from otaflow.platform.run import run
DeviceLock(Path(sys.argv[1])).acquire()
script = "trap '' TERM; (trap '' TERM; while :; do sleep 0.1; done) & echo $! > " + sys.argv[2] + "; echo held; wait"
run(["sh", "-c", script], timeout=1000, output=lambda line: print(line, flush=True))
"""


def test_it_is_exclusive_and_names_the_owner(tmp_path: Path, start_python) -> None:
    owner = start_python(HOLD, tmp_path / "lock")
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(Locked, match=f"process {owner.pid} is at work"):
        DeviceLock(tmp_path / "lock").acquire()
    assert owner.poll() is None


def test_twice_in_one_process(tmp_path: Path) -> None:
    with DeviceLock(tmp_path / "lock") as lock:
        lock.acquire()
        with pytest.raises(Locked, match=f"process {os.getpid()}"):
            DeviceLock(tmp_path / "lock").acquire()
    assert not lock.held
    assert not INHERITED
    lock.release()
    with DeviceLock(tmp_path / "lock"):
        pass


def test_waiting_then_taking(tmp_path: Path, start_python) -> None:
    owner = start_python(HOLD.replace("1000", "0.3"), tmp_path / "lock")
    assert owner.stdout.readline() == "held\n"
    lock = DeviceLock(tmp_path / "lock")
    lock.acquire(wait=30)
    lock.release()


def test_left_over_children_of_a_dead_owner_are_ended(tmp_path: Path, start_python) -> None:
    owner = start_python(HOLD_WITH_CHILD, tmp_path / "lock", tmp_path / "pid")
    assert owner.stdout.readline() == "held\n"
    child = psutil.Process(int((tmp_path / "pid").read_text()))
    waiter = (tmp_path / "lock").open()  # has the file open, but not the lock: must live
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert child.is_running()
    with DeviceLock(tmp_path / "lock"):
        assert wait_ended(child.pid)
    waiter.close()


def test_a_dead_owner_whose_status_nobody_took(tmp_path: Path, start_python) -> None:
    owner = start_python(HOLD_WITH_CHILD, tmp_path / "lock", tmp_path / "pid")
    assert owner.stdout.readline() == "held\n"
    os.kill(owner.pid, signal.SIGKILL)
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # a zombie from now on
    with DeviceLock(tmp_path / "lock"):
        pass


def test_a_new_owner_is_not_taken_for_the_dead_one_of_the_record(tmp_path: Path, start_python) -> None:
    owner = start_python(HOLD, tmp_path / "lock")
    assert owner.stdout.readline() == "held\n"
    (tmp_path / "lock").write_text("4194304 1\n")  # the moment before the new owner wrote its name
    with pytest.raises(Locked, match=f"process {owner.pid}"):
        DeviceLock(tmp_path / "lock").acquire()
    assert owner.poll() is None


def test_our_own_left_over_children_are_ended(tmp_path: Path) -> None:
    with DeviceLock(tmp_path / "lock") as lock:
        run(["sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/pid"], timeout=120)
        child = psutil.Process(int((tmp_path / "pid").read_text()))
        end_left_over(tmp_path / "lock")
        assert wait_ended(child.pid)
        assert lock.held


def test_a_living_owner_is_left_alone(tmp_path: Path, start_python) -> None:
    owner = start_python(HOLD, tmp_path / "lock")
    assert owner.stdout.readline() == "held\n"
    end_left_over(tmp_path / "lock")
    time.sleep(0.1)
    assert owner.poll() is None
