"""Which processes have a file open, as /proc tells."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def find_users(paths: list[Path], *, writing: bool = False) -> list[str]:
    """The processes that have one of the files open (`writing`: to write): `name (pid)`; without root, only our own."""
    wanted = set()
    for path in paths:
        with suppress(OSError):
            seen = path.lstat()
            wanted.add((seen.st_dev, seen.st_ino))
    pids = sorted(filter(str.isdigit, os.listdir("/proc")), key=int)
    return [name for pid in pids for name in _uses(pid, wanted, writing)]


def _uses(pid: str, wanted: set[tuple[int, int]], writing: bool) -> Iterator[str]:
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd") if wanted else ():
            with suppress(OSError):
                seen = os.stat(f"/proc/{pid}/fd/{fd}")
                if (seen.st_dev, seen.st_ino) in wanted and (not writing or _is_writing(pid, fd)):
                    yield f"{Path(f'/proc/{pid}/comm').read_text().strip()} ({pid})"
                    return


def _is_writing(pid: str, fd: str) -> bool:
    for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "flags":
            return int(value, 8) & os.O_ACCMODE != os.O_RDONLY
    return True
