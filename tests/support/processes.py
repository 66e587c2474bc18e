"""Whether a process has ended: when its parent takes its exit status is the machine's affair, not the test's."""

import time

import psutil

SECONDS = 60


def has_ended(pid: int) -> bool:
    """Whether it runs no more; its exit status may still wait to be taken."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def wait_ended(pid: int) -> bool:
    """Whether it ends within a minute."""
    deadline = time.monotonic() + SECONDS
    while not has_ended(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
