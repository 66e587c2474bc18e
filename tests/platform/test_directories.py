"""Pictures by hard links, copies with everything, and removal, without root too."""

import os
from pathlib import Path

import pytest

from otaflow.platform.describe import describe
from otaflow.platform.directories import FolderTrees

trees = FolderTrees()


def inode(path: Path) -> int:
    return path.lstat().st_ino


def test_everything_is_kept(plain: Path, tmp_path: Path) -> None:
    trees.clone(plain, tmp_path / "clone")
    trees.freeze(plain, tmp_path / "one")
    trees.freeze(plain, tmp_path / "two", tmp_path / "one")
    (tmp_path / "nothing").mkdir()
    trees.freeze(plain, tmp_path / "three", tmp_path / "nothing")
    for name in ("clone", "one", "two", "three"):
        assert describe(tmp_path / name, times=True) == describe(plain, times=True), name


def test_holes_stay_holes(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    trees.freeze(plain, tmp_path / "one", tmp_path / "nothing")
    assert (tmp_path / "one" / "sparse").stat().st_blocks * 512 < 1 << 19


def test_unchanged_files_are_the_base_s_never_the_source_s(plain: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    trees.freeze(plain, one)
    (plain / "bin" / "tool").write_text("changed")
    trees.freeze(plain, two, one)
    assert inode(two / "etc" / "secret") == inode(one / "etc" / "secret")
    assert inode(two / "bin" / "tool") != inode(one / "bin" / "tool")
    ours = {inode(path) for path in plain.rglob("*")}
    assert not ours & {inode(path) for path in (*one.rglob("*"), *two.rglob("*"))}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_text("y" * 5000), id="content alone, same size and time"),
        pytest.param(lambda path: path.chmod(0o644), id="mode"),
        pytest.param(lambda path: os.setxattr(path, "user.note", b"new"), id="attribute"),
        pytest.param(lambda path: os.removexattr(path, "user.note"), id="attribute gone"),
        pytest.param(lambda path: os.utime(path, ns=(1, 5)), id="time"),
        pytest.param(lambda path: (path.unlink(), path.symlink_to("x")), id="another type"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="a folder now"),
        pytest.param(lambda path: path.unlink(), id="removed"),
    ],
)
def test_any_change_is_in_the_next_picture(plain: Path, tmp_path: Path, change) -> None:
    trees.freeze(plain, tmp_path / "one")
    before = describe(tmp_path / "one", times=True)
    secret = plain / "etc" / "secret"
    times = secret.stat()
    secret.chmod(0o600)
    change(secret)
    if secret.is_file() and secret.stat().st_mode & 0o777 == 0o600:
        secret.chmod(0o400)
        if secret.read_text()[0] == "y":
            os.utime(secret, ns=(times.st_atime_ns, times.st_mtime_ns))
    trees.freeze(plain, tmp_path / "two", tmp_path / "one")
    assert describe(tmp_path / "two", times=True) == describe(plain, times=True)
    assert describe(tmp_path / "one", times=True) == before


def test_files_that_were_links_of_each_other_are_not_any_more(plain: Path, tmp_path: Path) -> None:
    trees.freeze(plain, tmp_path / "one")
    tool, same = plain / "bin" / "tool", plain / "bin" / "same-tool"
    seen = tool.stat()
    same.unlink()
    same.write_bytes(tool.read_bytes())
    os.chmod(same, seen.st_mode & 0o7777)
    os.utime(same, ns=(1, seen.st_mtime_ns))
    trees.freeze(plain, tmp_path / "two", tmp_path / "one")
    assert inode(tmp_path / "two" / "bin" / "tool") != inode(tmp_path / "two" / "bin" / "same-tool")


def test_a_picture_with_a_base_leaves_sockets_out(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.chdir(plain)  # the address may be 108 bytes long only
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    trees.freeze(plain, tmp_path / "one", plain)
    assert not (tmp_path / "one" / "socket").exists()


def test_removal_goes_on_where_it_was_cut_off(plain: Path) -> None:
    plain.rename(plain.with_name(".tree.gone"))
    plain.with_name(".tree.new").mkdir()
    trees.remove(plain.with_name("tree"))
    assert os.listdir(plain.parent) == []


def test_a_mounted_file_system_is_not_emptied(tmp_path: Path) -> None:
    """The mount is in /proc/self/mountinfo only; a real one would need root."""
    from otaflow.platform import copying

    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = next(mount for mount in mounts if mount.count("/") > 1)
    with pytest.raises(OSError, match="a file system is mounted"):
        copying.refuse_mounts(Path(inside).parent)


WITHOUT_ROOT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from conftest import fill_tree
from otaflow.platform.describe import describe
from otaflow.platform.directories import FolderTrees
from otaflow.platform.mirror import mirror
# now, with everything imported: the interpreter may be in a folder that others cannot read
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
folder, trees = Path(sys.argv[2]), FolderTrees()
(folder / "plain").mkdir()
fill_tree(folder / "plain")
before = describe(folder / "plain", times=True)
trees.clone(folder / "plain", folder / "clone")
trees.freeze(folder / "plain", folder / "one")
trees.freeze(folder / "plain", folder / "two", folder / "one")
(folder / "mirrored" / "extra").mkdir(parents=True)
(folder / "mirrored" / "extra").chmod(0o555)
mirror(folder / "plain", folder / "mirrored")
mirror(folder / "plain", folder / "mirrored")
for name in ("clone", "one", "two", "mirrored"):
    assert describe(folder / name, times=True) == before, name
for name in ("clone", "one", "two", "mirrored", "plain"):
    trees.remove(folder / name)
assert not list(folder.iterdir())
print("fine")
"""


def test_without_root(nobody_tmp: Path, start_python) -> None:
    process = start_python(WITHOUT_ROOT, Path(__file__).parent, nobody_tmp)
    assert process.communicate(timeout=60)[0] == "fine\n"
