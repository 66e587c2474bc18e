"""Sample trees and a way to run a piece of Python as another process or user."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otaflow.platform.btrfs import BtrfsTrees
from otaflow.platform.directories import FolderTrees
from otaflow.platform.protocols import Trees

NOBODY = 65534
# user::rw- user:77:r-- group::r-- mask::r-- other::---, as the kernel has it
ACL = struct.pack("<I" + 5 * "HHI", 2, 1, 6, NONE := 2**32 - 1, 2, 4, 77, 4, 4, NONE, 16, 4, NONE, 32, 0, NONE)


def fill_tree(root: Path) -> None:
    """A small system with everything that a tree can hold."""
    (root / "etc" / "empty").mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "bin" / "tool").write_bytes(b"#!/bin/sh\n")
    (root / "bin" / "tool").chmod(0o755)
    os.link(root / "bin" / "tool", root / "bin" / "same-tool")
    (root / "bin" / "link").symlink_to("tool")
    (root / "broken").symlink_to("/nowhere")
    (root / "etc" / "secret").write_text("x" * 5000)
    (root / "name with\nline end").write_text("y")
    with (root / "sparse").open("wb") as file:
        file.write(b"start")
        file.seek(1 << 20)
        file.write(b"end")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "etc" / "secret", "user.note", b"kept")
    (root / "etc" / "secret").chmod(0o400)
    (root / "etc" / "shared").write_text("s")
    os.setxattr(root / "etc" / "shared", "system.posix_acl_access", ACL)
    if os.geteuid() == 0:
        os.chown(root / "etc" / "secret", 12, 34)
        (root / "bin" / "tool").chmod(0o4755)
        os.setxattr(root / "name with\nline end", "trusted.note", b"kept")
        os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    (root / "etc" / "closed").mkdir()
    (root / "etc" / "closed" / "file").write_text("z")
    (root / "etc" / "closed").chmod(0o555)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, ns=(1, 1_600_000_000_123_456_789 + number), follow_symlinks=False)


@pytest.fixture(params=["directories", pytest.param("btrfs", marks=pytest.mark.btrfs)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Trees]:
    """A folder and the trees that live in it, of each kind."""
    if request.param == "btrfs":
        return request.getfixturevalue("btrfs_tmp"), BtrfsTrees()
    return tmp_path, FolderTrees()


@pytest.fixture
def sample(storage: tuple[Path, Trees]) -> Path:
    """A filled tree on the storage."""
    folder, trees = storage
    trees.create(folder / "sample")
    fill_tree(folder / "sample")
    return folder / "sample"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A filled plain folder."""
    (tmp_path / "plain").mkdir()
    fill_tree(tmp_path / "plain")
    return tmp_path / "plain"


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_python() -> Iterator[Start]:
    """start_python(code, *arguments) runs Python code as another process; killed at the test's end."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def nobody_tmp() -> Iterator[Path]:
    """A folder that belongs to the user nobody; needs root."""
    if os.geteuid() != 0:
        pytest.skip("another user can be tried by root only")
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="otaflow-nobody-"))
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)
