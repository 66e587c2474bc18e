"""platform/partitions.py and partition.py on real ext4 images, beyond the contract: what is wrong with a partition."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slot_kinds
from recording_disk import Log, Rest, copy_sparse, recording, what_is_missing
from slot_kinds import IMAGE_BYTES, NAMES, images, make_slots, partitions, why_not
from without_journal import CHECKPOINTS, read_slots, read_tree

from otaflow.config import load
from otaflow.errors import ConfigError, InsufficientMemory, OtaflowError
from otaflow.platform import ext4
from otaflow.platform import partitions as module
from otaflow.platform.describe import describe
from otaflow.platform.directories import FolderTrees
from otaflow.platform.labels import FILE_NAME, Label, read_label, write_label
from otaflow.platform.mirror import mirror
from otaflow.platform.partition import _find_loops
from otaflow.platform.partitions import PartitionSlots


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Two empty partitions, `slots` not mounted yet."""
    if why := why_not("partitions"):
        pytest.skip(why)
    with partitions(tmp_path / "p"):
        yield tmp_path / "p"


@pytest.fixture
def slots(folder: Path) -> PartitionSlots:
    """Slot a has the system one, slot b the system two."""
    made = make_slots("partitions", folder)
    assert isinstance(made, PartitionSlots)
    for name, version in zip(NAMES, ("2.0.0", "1.0.0"), strict=True):
        made.create(name)
        (made.path(name) / "bin").mkdir()
        (made.path(name) / "bin" / "tool").write_text(version)
        (made.path(name) / "bin" / "same").write_text("the same in both")
        os.utime(made.path(name) / "bin" / "same", (1, 1))
        write_label(made.path(name), Label("system", version, 1, f"generation of {version}"))
    return made


def damage(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(1024)
        file.write(b"\0\xff" * 28 + b"\x53\xef" + b"\xff" * 200)  # the magic number, and nonsense around it


def make_fat(image: Path) -> None:
    image.write_bytes(b"\xeb\x3c\x90mkfs.fat" + b"\0" * 10**6)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda image: image.unlink(), "there is no such device or file"),
        (lambda image: image.write_bytes(b""), "holds no ext4"),
        (make_fat, "holds no ext4"),
        (damage, "cannot be mounted"),
        (lambda image: os.truncate(image, IMAGE_BYTES // 3), "cannot be mounted"),
        (lambda image: (image.unlink(), image.mkdir()), "Is a directory"),
    ],
    ids=["missing", "empty", "another file system", "damaged", "cut off", "a folder"],
)
def test_a_partition_that_cannot_be_used(folder: Path, spoil: Callable[[Path], object], words: str) -> None:
    image = images(folder)[1]
    spoil(image)
    slots = make_slots("partitions", folder)
    with pytest.raises(OtaflowError, match=f"cannot use the partition .*b.img of slot b: .*{words}"):
        slots.copy("a", "b", "one")
    assert slots.place("b") == folder / "slots" / "b"
    assert list(slots.place("b").iterdir()) == []
    assert slots.path("a").is_mount()
    assert slots.kept_names() == []
    slots.put_back("b", "one")
    if image.is_dir():
        image.rmdir()


def test_nothing_is_written_into_a_mount_point(slots: PartitionSlots) -> None:
    """Unmounted from outside, it is mounted again before anything is written."""
    subprocess.run(["umount", slots.path("b")], check=True)
    slots.copy("a", "b", "one")
    subprocess.run(["umount", slots.path("b")], check=True)
    assert list(slots.place("b").parent.joinpath(".kept").iterdir()) != []
    slots.put_back("b", "one")
    assert read_label(slots.path("b")).version == "1.0.0"


def test_files_in_a_mount_point_are_not_hidden(folder: Path) -> None:
    (folder / "slots" / "a").mkdir(parents=True)
    (folder / "slots" / "a" / "file").write_text("x")
    with pytest.raises(OtaflowError, match="holds files while nothing is mounted there"):
        make_slots("partitions", folder).path("a")


def test_another_file_system_in_its_place(folder: Path) -> None:
    (folder / "slots" / "a").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", folder / "slots" / "a"], check=True)
    with pytest.raises(OtaflowError, match="something else is mounted on"):
        make_slots("partitions", folder).path("a")


def test_the_partitions_are_not_taken_for_each_other(slots: PartitionSlots, folder: Path) -> None:
    swapped = PartitionSlots(folder / "slots", NAMES, images(folder)[::-1], FolderTrees())
    with pytest.raises(OtaflowError, match="something else is mounted on"):
        swapped.path("a")


def test_two_mounts_are_one_file_system(slots: PartitionSlots, folder: Path) -> None:
    """As where the running slot is the root file system: two loop devices of an image would destroy it."""
    elsewhere = PartitionSlots(folder / "elsewhere", NAMES, images(folder), FolderTrees())
    (slots.path("a") / "new").write_text("x")
    assert (elsewhere.path("a") / "new").read_text() == "x"
    assert [len(_find_loops(image)) for image in images(folder)] == [1, 1]
    elsewhere.close()
    assert not (folder / "elsewhere" / "a").is_mount()
    assert slots.path("a").is_mount()


def test_only_what_it_mounted_is_unmounted(slots: PartitionSlots, folder: Path) -> None:
    other = make_slots("partitions", folder)
    assert isinstance(other, PartitionSlots)
    other.path("a")
    other.close()
    assert (folder / "slots" / "a").is_mount()
    slots.close()
    assert not (folder / "slots" / "a").is_mount()


def test_a_read_only_partition_is_not_filled(slots: PartitionSlots) -> None:
    subprocess.run(["mount", "-o", "remount,ro", slots.path("b")], check=True)
    with pytest.raises(OtaflowError, match="it is mounted read-only"):
        slots.copy("a", "b", "one")
    assert read_label(slots.path("b")).version == "1.0.0"
    assert slots.kept_names() == []


def test_a_system_that_is_too_large_changes_nothing(slots: PartitionSlots, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    for number in range(IMAGE_BYTES >> 20):
        (tmp_path / "large" / f"{number}").write_bytes(os.urandom(2**20))
    before = describe(slots.path("b"), times=True)
    with pytest.raises(InsufficientMemory, match=r"cannot fill slot b: it takes 2\d\.\d MB more, and .* 2\d\.\d MB"):
        slots.fill(tmp_path / "large", "b", "one")
    slots.put_back("b", "one")
    assert describe(slots.path("b"), times=True) == before


def test_too_many_files_change_nothing(slots: PartitionSlots, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(os.statvfs(slots.path("b")).f_files + 10):
        (tmp_path / "many" / f"{number}").touch()
    with pytest.raises(InsufficientMemory, match=r"it takes \d+ files more"):
        slots.fill(tmp_path / "many", "b", "one")
    slots.put_back("b", "one")
    assert read_label(slots.path("b")).version == "1.0.0"


def test_what_goes_gives_room(slots: PartitionSlots) -> None:
    """Two systems that fill more than half of the partition each."""
    size = IMAGE_BYTES // 5 * 3
    (slots.path("a") / "bin" / "new").write_bytes(os.urandom(size))
    (slots.path("b") / "zz").mkdir()
    (slots.path("b") / "zz" / "former").write_bytes(os.urandom(size))
    before = describe(slots.path("b"), times=True)
    slots.copy("a", "b", "one")
    assert describe(slots.path("b"), times=True) == describe(slots.path("a"), times=True)
    slots.put_back("b", "one")
    assert describe(slots.path("b"), times=True) == before


def test_no_room_for_what_is_kept(slots: PartitionSlots, folder: Path) -> None:
    (slots.path("b") / "big").write_bytes(os.urandom(3 << 20))
    before = describe(slots.path("b"), times=True)
    (folder / "slots" / ".kept").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder / "slots" / ".kept"], check=True)
    with pytest.raises(InsufficientMemory, match="cannot keep the former content of slot b"):
        slots.copy("a", "b", "one")
    slots.put_back("b", "one")
    assert describe(slots.path("b"), times=True) == before


def test_what_a_backup_has_is_not_kept_twice(slots: PartitionSlots, folder: Path) -> None:
    FolderTrees().freeze(slots.path("b"), folder / "backup")
    (slots.path("b") / "bin" / "tool").write_text("changed since")
    with_backup = PartitionSlots(folder / "slots", NAMES, images(folder), FolderTrees(), lambda _: folder / "backup")
    with_backup.copy("a", "b", "one")
    kept = folder / "slots" / ".kept" / "one"
    assert os.path.samefile(kept / "bin" / "same", folder / "backup" / "bin" / "same")
    assert (kept / "bin" / "tool").read_text() == "changed since"
    with_backup.put_back("b", "one")
    assert (with_backup.path("b") / "bin" / "tool").read_text() == "changed since"
    assert (folder / "backup" / "bin" / "tool").read_text() == "1.0.0"


def test_what_is_the_same_is_not_written(slots: PartitionSlots) -> None:
    before = {name: (slots.path("b") / "bin" / name).stat().st_ino for name in ("same", "tool")}
    slots.copy("a", "b", "one")
    assert (slots.path("b") / "bin" / "same").stat().st_ino == before["same"]
    assert (slots.path("b") / "bin" / "tool").stat().st_ino != before["tool"]


@pytest.mark.parametrize("verb", ["copy", "put back"])
def test_the_label_goes_first_and_comes_last(slots: PartitionSlots, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """Where the writing is cut off, nothing can be taken for a system; afterwards both ways are open."""
    before = describe(slots.path("b"), times=True)
    if verb == "put back":
        slots.copy("a", "b", "one")

    def cut_off(source: Path, target: Path, **_: object) -> None:
        assert not (target / FILE_NAME).exists()
        raise OSError("the power went")

    monkeypatch.setattr(module, "mirror", cut_off)
    with pytest.raises(OSError, match="the power went"):
        slots.copy("a", "b", "one") if verb == "copy" else slots.put_back("b", "one")
    with pytest.raises(OtaflowError, match="label"):
        read_label(slots.path("b"))
    monkeypatch.setattr(module, "mirror", mirror)
    with pytest.raises(OtaflowError, match="half written, and what was in it is kept as 'one'"):
        slots.copy("a", "b", "two")
    slots.copy("a", "b", "one")
    assert describe(slots.path("b"), times=True) == describe(slots.path("a"), times=True)
    slots.put_back("b", "one")
    assert describe(slots.path("b"), times=True) == before


def test_a_given_up_mixture_can_be_filled_anew(slots: PartitionSlots, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise OSError("the power went")

    monkeypatch.setattr(module, "mirror", cut_off)
    with pytest.raises(OSError, match="the power went"):
        slots.copy("a", "b", "one")
    slots.forget("one")
    monkeypatch.setattr(module, "mirror", mirror)
    assert slots.kept_names() == []
    slots.copy("a", "b", "two")
    assert read_label(slots.path("b")).version == "2.0.0"


def test_a_block_device(folder: Path) -> None:
    """As on a real device; here a loop device stands for it."""
    made = subprocess.run(
        ["losetup", "--find", "--show", images(folder)[0]], check=True, capture_output=True, text=True
    )
    loop = Path(made.stdout.strip())
    try:
        slots = PartitionSlots(folder / "slots", NAMES, (loop, images(folder)[1]), FolderTrees())
        slots.create("a")
        (slots.path("a") / "file").write_text("x")
        slots.copy("a", "b", "one")
        assert (slots.path("b") / "file").read_text() == "x"
        slots.close()
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_an_ext4_without_lost_and_found_is_empty_too(folder: Path) -> None:
    slots = make_slots("partitions", folder)
    (slots.path("a") / "lost+found").rmdir()
    slots.create("a")


MOUNT_AT_ONCE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from slot_kinds import make_slots
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
make_slots("partitions", Path(sys.argv[1])).path("a")
"""


def test_processes_that_mount_at_once_mount_once(folder: Path) -> None:
    command = [sys.executable, "-c", MOUNT_AT_ONCE, folder, Path(slot_kinds.__file__).parent]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait() for process in started] == [0, 0, 0, 0]
    for process in started:
        process.communicate()
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    assert points.count(str((folder / "slots" / "a").resolve())) == 1
    assert len(_find_loops(images(folder)[0])) == 1


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ('kind = "partitions"', "needs devices, one for each name"),
        ('kind = "directories"\ndevices = ["/dev/x", "/dev/y"]', "has no devices"),
        ('kind = "partitions"\ndevices = ["/dev/x", "/dev/x"]', "two different ones"),
        ('kind = "partitions"\ndevices = ["/dev/x"]', "devices"),
    ],
    ids=["none", "of folders", "the same", "one"],
)
def test_a_configuration_that_cannot_be_meant(tmp_path: Path, slots: str, words: str) -> None:
    (tmp_path / "otaflow.toml").write_text(f'[device]\nname = "d"\nmodel = "m"\nroot = "d"\n[slots]\n{slots}\n')
    with pytest.raises(ConfigError, match=words):
        load(tmp_path / "otaflow.toml")


def test_an_image_of_the_same_name_in_another_mount_namespace(folder: Path) -> None:
    """A container has its own files, but not its own loop devices."""
    image = images(folder)[0]
    script = 'mount -t tmpfs tmpfs "$1" && truncate -s 1M "$2" && losetup -f --show "$2" && read -r end'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", folder, image]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        loop = other.stdout.readline().strip()
        try:
            assert Path("/sys/block", Path(loop).name, "loop/backing_file").read_text().strip() == str(image)
            assert _find_loops(image) == []
        finally:
            subprocess.run(["losetup", "--detach", loop], check=True)
            other.communicate("end\n")


@pytest.mark.parametrize("ioctl", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_boot_loader_finds_what_is_synced(folder: Path, ioctl: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the partition without its journal, whatever the disk loses that it was not told to flush.

    After a syncfs alone, which ext4 ends with writes that it does not flush, some of it is missing.
    """
    if missing := what_is_missing():
        pytest.skip(missing)
    monkeypatch.setattr(ext4, "EXT4_IOC_CHECKPOINT", ioctl)
    image = images(folder)[1]
    live, log = folder / "live.img", folder / "log"
    copy_sparse(image, live)
    log.touch()
    with recording(live, log, folder) as disk:
        slots = PartitionSlots(folder / "slots", NAMES, (images(folder)[0], Path(disk)), FolderTrees())
        (folder / "system").mkdir()
        slots.fill(folder / "system", "b", "new")
        for number in range(50):  # as an update's program does
            (slots.path("b") / f"folder {number}").mkdir()
            (slots.path("b") / f"folder {number}" / "file").write_text(f"content {number}")
        slots.sync("b")
        content = read_tree(slots.path("b"))
        written = Log(log)
        slots.close()
    durable = Rest(image, written, folder).cut(written.flushes[-1] + 1, random.Random(1))
    seen = read_slots(durable, [(0, IMAGE_BYTES)], ("b",), folder)["b"]
    assert seen == content
