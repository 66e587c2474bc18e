"""What every adapter promises (platform/protocols.py), on the real ones and on the fakes."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slot_kinds
from slot_kinds import make_slots, partitions, why_not

from otaflow.errors import OtaflowError
from otaflow.platform.btrfs import BtrfsTrees
from otaflow.platform.describe import describe, tree_digest
from otaflow.platform.directories import FolderTrees
from otaflow.platform.fake import FakeTrees
from otaflow.platform.lock import DeviceLock
from otaflow.platform.protocols import Slots, Trees

KINDS = ["fake", "directories", pytest.param("btrfs", marks=pytest.mark.btrfs)]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Trees]:
    """A folder, and trees that live in it."""
    if request.param == "btrfs":
        return request.getfixturevalue("btrfs_tmp"), BtrfsTrees()
    return tmp_path, FakeTrees() if request.param == "fake" else FolderTrees()


def make_tree(trees: Trees, path: Path, word: str = "one") -> Path:
    trees.create(path)
    return fill_tree(path, word)


def fill_tree(path: Path, word: str) -> Path:
    (path / "etc").mkdir()
    (path / "etc" / "file").write_text(word)
    (path / "etc" / "file").chmod(0o640)
    (path / "link").symlink_to("etc/file")
    return path


# --- trees --------------------------------------------------------------------------------------------------------


def test_create_twice_keeps_the_content(place: tuple[Path, Trees]) -> None:
    folder, trees = place
    tree = make_tree(trees, folder / "deep" / "tree")
    before = describe(tree)
    trees.create(tree)
    assert describe(tree) == before


def test_a_clone_is_equal_and_independent(place: tuple[Path, Trees]) -> None:
    folder, trees = place
    source = make_tree(trees, folder / "source")
    trees.clone(source, folder / "clone")
    assert describe(folder / "clone", times=True) == describe(source, times=True)
    (folder / "clone" / "etc" / "file").write_text("changed")
    assert (source / "etc" / "file").read_text() == "one"


@pytest.mark.parametrize("verb", ["clone", "freeze"])
def test_nothing_happens_where_the_target_is(place: tuple[Path, Trees], verb: str) -> None:
    folder, trees = place
    source, target = make_tree(trees, folder / "source"), make_tree(trees, folder / "target", "other")
    getattr(trees, verb)(source, target)
    assert (target / "etc" / "file").read_text() == "other"


@pytest.mark.parametrize("verb", ["clone", "freeze"])
def test_the_rest_of_a_cut_off_attempt_is_replaced(place: tuple[Path, Trees], verb: str) -> None:
    folder, trees = place
    source = make_tree(trees, folder / "source")
    make_tree(trees, folder / ".target.new", "rest")
    getattr(trees, verb)(source, folder / "target")
    assert tree_digest(folder / "target") == tree_digest(source)
    assert sorted(os.listdir(folder)) == ["source", "target"]


def test_a_picture_does_not_follow_its_source(place: tuple[Path, Trees]) -> None:
    folder, trees = place
    source = make_tree(trees, folder / "source")
    trees.freeze(source, folder / "one")
    before = describe(folder / "one", times=True)
    (source / "etc" / "file").write_text("two")
    (source / "more").write_text("x")
    trees.freeze(source, folder / "two", folder / "one")
    assert describe(folder / "one", times=True) == before
    assert describe(folder / "two", times=True) == describe(source, times=True)
    trees.remove(folder / "one")
    assert describe(folder / "two", times=True) == describe(source, times=True)


def test_a_missing_base_is_no_base(place: tuple[Path, Trees]) -> None:
    folder, trees = place
    source = make_tree(trees, folder / "source")
    trees.freeze(source, folder / "one", folder / "none")
    assert tree_digest(folder / "one") == tree_digest(source)


def test_a_picture_can_be_cloned_and_written(place: tuple[Path, Trees]) -> None:
    folder, trees = place
    source = make_tree(trees, folder / "source")
    trees.freeze(source, folder / "picture")
    trees.clone(folder / "picture", folder / "clone")
    (folder / "clone" / "new").write_text("x")


def test_remove(place: tuple[Path, Trees]) -> None:
    folder, trees = place
    source = make_tree(trees, folder / "source")
    trees.freeze(source, folder / "picture")
    for name in ("picture", "source", "source", "never"):
        trees.remove(folder / name)
    assert os.listdir(folder) == []


def test_sync(place: tuple[Path, Trees]) -> None:
    folder, trees = place
    trees.sync(make_tree(trees, folder / "tree"))


def test_a_missing_source_leaves_nothing(place: tuple[Path, Trees]) -> None:
    folder, trees = place
    with pytest.raises((OSError, OtaflowError)):
        trees.clone(folder / "none", folder / "clone")
    assert not (folder / "clone").exists()


# --- slots --------------------------------------------------------------------------------------------------------


SLOT_KINDS = [*KINDS, "partitions", "ostree"]


@pytest.fixture(params=SLOT_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def made(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Slots]]:
    """A folder, and two slots in it that hold nothing."""
    if why := why_not(kind):
        pytest.skip(why)
    if kind != "partitions":
        folder = request.getfixturevalue("btrfs_tmp") if kind == "btrfs" else tmp_path
        yield folder, make_slots(kind, folder)
        return
    with partitions(tmp_path):
        yield tmp_path, make_slots(kind, tmp_path)


@pytest.fixture(params=["with former content", "without"])
def slots(request: pytest.FixtureRequest, made: tuple[Path, Slots]) -> Slots:
    slots = made[1]
    fill_slot(slots, "a")
    if request.param != "without":
        fill_slot(slots, "b", "former")
    return slots


def fill_slot(slots: Slots, slot: str, word: str = "one") -> None:
    slots.create(slot)
    fill_tree(slots.path(slot), word)


def state(slots: Slots) -> list[dict[str, tuple[object, ...]]]:
    return [describe(slots.path(name), times=True) for name in slots.names]


def test_a_slot_with_something_in_it_is_not_made_anew(made: tuple[Path, Slots]) -> None:
    slots = made[1]
    slots.create("a")
    slots.create("a")
    fill_tree(slots.path("a"), "one")
    before = describe(slots.path("a"))
    with pytest.raises(OtaflowError, match=r"cannot make a device: slot a .* is there already"):
        slots.create("a")
    assert describe(slots.path("a")) == before


def test_the_place_of_a_slot(slots: Slots) -> None:
    assert [slots.place(name) for name in slots.names] == [slots.path(name) for name in slots.names]
    with pytest.raises(OtaflowError, match="cannot use the slot 'c'"):
        slots.place("c")


def test_copy_and_put_back(slots: Slots) -> None:
    before = state(slots)
    slots.copy("a", "b", "one")
    assert state(slots) == [before[0], before[0]]
    (slots.path("b") / "new").write_text("x")
    slots.sync("b")
    for _ in range(2):
        slots.put_back("b", "one")
        assert state(slots) == before
    assert slots.kept_names() == []


def test_copying_twice_keeps_the_first_content(slots: Slots) -> None:
    before = state(slots)
    slots.copy("a", "b", "one")
    slots.copy("a", "b", "one")
    assert slots.kept_names() == ["one"]
    slots.put_back("b", "one")
    assert state(slots) == before


def test_put_back_of_what_never_happened(slots: Slots) -> None:
    before = state(slots)
    slots.put_back("b", "one")
    assert state(slots) == before


def test_forget(slots: Slots) -> None:
    slots.copy("a", "b", "one")
    for _ in range(2):
        slots.forget("one")
    slots.put_back("b", "one")
    assert state(slots)[1] == state(slots)[0]
    assert slots.kept_names() == []


def test_two_copies_are_undone_backwards(slots: Slots) -> None:
    before = state(slots)
    slots.copy("a", "b", "one")
    (slots.path("b") / "new").write_text("x")
    between = state(slots)
    slots.copy("a", "b", "two")
    slots.put_back("b", "two")
    assert state(slots) == between
    slots.put_back("b", "one")
    assert state(slots) == before


def test_fill_from_a_picture(slots: Slots, made: tuple[Path, Slots], kind: str) -> None:
    folder, trees = made[0], BtrfsTrees() if kind == "btrfs" else FolderTrees()
    before = state(slots)
    trees.freeze(slots.path("a"), folder / "picture")
    slots.fill(folder / "picture", "b", "one")
    (slots.path("b") / "writable").write_text("x")
    slots.put_back("b", "one")
    assert state(slots) == before


@pytest.mark.parametrize("kept", ["", ".x", "a/b", "x.absent"])
def test_a_name_that_cannot_be_kept(slots: Slots, kept: str) -> None:
    before = state(slots)
    with pytest.raises(OtaflowError, match="cannot keep"):
        slots.copy("a", "b", kept)
    assert state(slots) == before


@pytest.mark.parametrize(("source", "target"), [("c", "b"), ("a", "c"), ("a", "../b")])
def test_slots_that_cannot_be_copied(slots: Slots, source: str, target: str) -> None:
    before = state(slots)
    with pytest.raises(OtaflowError, match="cannot"):
        slots.copy(source, target, "one")
    assert state(slots) == before


def test_a_slot_that_goes_on_from_what_it_is(slots: Slots) -> None:
    """The second package of a session: the first one's result is kept, and the slot is a copy of it."""
    slots.copy("a", "b", "first")
    (slots.path("b") / "by-the-first").write_text("1")
    between = describe(slots.path("b"))
    slots.copy("b", "b", "second")
    assert describe(slots.path("b")) == between
    (slots.path("b") / "by-the-second").write_text("2")
    slots.copy("b", "b", "second")
    assert (slots.path("b") / "by-the-second").exists()
    slots.put_back("b", "second")
    slots.put_back("b", "second")
    assert describe(slots.path("b")) == between


def test_a_slot_that_is_absent_cannot_go_on(slots: Slots) -> None:
    slots.copy("a", "b", "first")
    slots.put_back("b", "first")
    if slots.path("b").exists():
        return
    before = state(slots)
    with pytest.raises(OtaflowError, match="cannot"):
        slots.copy("b", "b", "second")
    assert state(slots) == before


COPY_FOR_EVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[5])
from slot_kinds import make_slots
from otaflow.platform.lock import DeviceLock
DeviceLock(Path(sys.argv[4])).acquire()
slots = make_slots(sys.argv[2], Path(sys.argv[1]))
print("go", flush=True)
while True:
    slots.copy("a", "b", "one")
    if sys.argv[3] == "undo":
        slots.put_back("b", "one")
"""
SLOW = {"ostree": 3.0}


@pytest.mark.parametrize("moment", range(12))
@pytest.mark.parametrize("kind", SLOT_KINDS[1:])
def test_killed_at_any_moment_put_back_restores(
    moment: int, kind: str, made: tuple[Path, Slots], plain: Path, tmp_path: Path, start_python
) -> None:
    """The lock is taken before putting back: a killed process' programs may still be inside the kernel."""
    folder, slots = made
    slots.fill(plain, "a", "first")
    slots.forget("first")
    if moment % 3:
        fill_slot(slots, "b", "former")
    before = state(slots)
    undo, lock = "undo" if moment % 2 else "", tmp_path / "lock"
    process = start_python(COPY_FOR_EVER, folder, kind, undo, lock, Path(slot_kinds.__file__).parent)
    assert process.stdout.readline() == "go\n"
    time.sleep(moment * 0.0043 * SLOW.get(kind, 1))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with DeviceLock(lock):
        for _ in range(2):
            slots.put_back("b", "one")
            assert state(slots) == before
    left = set(os.listdir(folder / "slots")) - {".kept", ".ostree"}
    assert left == {name for name in slots.names if slots.path(name).exists()}
    assert slots.kept_names() == []
