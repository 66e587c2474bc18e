"""The disks that power cuts leave of a virtual machine, from the log of its writes, and what must hold on each of them.

    written = WriteLog(log)
    flip = find_flip(written)
    for cut in make_cuts(written, flip, base, folder, seed=1, count=150):
        look_at(cut.image, folder)      # raises Violation

The planted bugs (BUGS) are logs of a machine that writes in a wrong order: it is what the check must find.
"""

import hashlib
import io
import random
import re
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vm_disk import DEVICE_AT, LOADER_AT, SLOTS_AT, kind_of, mounted
from write_log import Write, WriteLog

from otaflow.errors import OtaflowError
from otaflow.platform import grubenv
from otaflow.platform.labels import read_label
from otaflow.records import read

AROUND = 25
"""So many entries of the log before the flip, and after its end, belong to it."""
VERSIONS = {"a": "1.0.0", "b": "1.1.0"}
VERSION, FILLING = "etc/version", "opt/filling"
"""What the update changes in its slot."""
LOADER = range(LOADER_AT, DEVICE_AT)


class Violation(AssertionError):
    """A power cut has left what must not be."""


class Flip(NamedTuple):
    """The log's entries around the change of the boot target: the first one with the new target, and the end."""

    first: int
    end: int


class Cut(NamedTuple):
    """A disk after a power cut before the entry `moment` of the log."""

    number: int
    moment: int
    image: Path


def find_flip(written: WriteLog) -> Flip:
    there = [number for number, entry in enumerate(written.entries) if entry.length and entry.offset in LOADER]
    first = next(number for number in there if b"otaflow_target=b" in written.data(written.entries[number]))
    near = [number for number in there if number < first + 40]
    return Flip(first, min(max(near) + AROUND, len(written.entries)))


def make_cuts(written: WriteLog, flip: Flip, base: Path, folder: Path, *, seed: int, count: int) -> Iterator[Cut]:
    """Disks after `count` power cuts; each is gone when the next one is asked for. `base`: as the log began."""
    moments = sorted(random.Random(seed).choices(range(max(flip.first - AROUND, 0), flip.end), k=count))
    durable, done = clone(base, folder / "durable"), 0
    for number, moment in enumerate(moments):
        flushed = written.last_flush(moment)
        written.apply(durable, done, flushed)
        done = max(done, flushed)
        image = clone(durable, folder / "cut")
        written.apply_some(image, done, moment, random.Random(f"{seed} {number}"))
        yield Cut(number, moment, image)


def clone(source: Path, target: Path) -> Path:
    target.unlink(missing_ok=True)
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", source, target], check=True)
    return target


# --- what must hold ---------------------------------------------------------------------------------------------------


def look_at(image: Path, folder: Path) -> str:
    """Check what a power cut left; how Linux finds the boot target, and GRUB. Raises Violation."""
    seen = what_grub_sees(image)
    loaded = {place: _debug(image, f"cat {place}", SLOTS_AT["b"]) for place in (FILLING, VERSION)}
    try:
        with mounted(image, folder) as (loader, top):
            environment = grubenv.read_block((loader / "grub/grubenv").read_bytes())
            target, by_grub = environment["otaflow_target"], seen.get("otaflow_target", "")
            _check_slot(top, target, environment["otaflow_promise"])
            _check_slot(top, by_grub or "a")
            if by_grub == "b" and kind_of(image) == "partitions":
                wrong = [
                    place for place, content in loaded.items() if content != (top / "slots/b" / place).read_bytes()
                ]
                _require(not wrong, f"in slot b GRUB, which reads no journal, does not find {wrong}")
            _require(by_grub in (target, "a", ""), f"the target is {target}, and GRUB sees {by_grub}")
            flipped = _flip_is_done(top)
            if flipped:
                _require(
                    (target, by_grub) == ("b", "b"),
                    f"the flip is journalled as done: the target is {target}, GRUB sees {by_grub or 'none'}",
                )
    except (AssertionError, KeyError, OSError, OtaflowError, grubenv.BadBlock) as error:
        raise Violation(f"{type(error).__name__}: {error}") from error
    done = ", and that is journalled" if flipped else ""
    return f"the target is {target}, GRUB sees {by_grub or 'none'}{done}"


def what_grub_sees(image: Path) -> dict[str, str]:
    """The environment read without the journal of its ext4; nothing where GRUB would find none, or a damaged one."""
    try:
        return grubenv.read_block(_debug(image, "cat /grub/grubenv"))
    except grubenv.BadBlock:
        return {}


def note_filling(top: Path) -> None:
    """Beside the slots: what the update's file is, from its package."""
    (top / "filling.sha256").write_text(hashlib.sha256(read_filling(top)).hexdigest())


def read_filling(top: Path) -> bytes:
    """The update's file, from its package."""
    with tarfile.open(top / "updates" / "good.nsr") as repository:
        package = next(member for member in repository.getmembers() if member.name.endswith(".nsu"))
        file = repository.extractfile(package)
        assert file is not None
        with tarfile.open(fileobj=io.BytesIO(file.read())) as archive:
            filling = archive.extractfile("assets/filling")
            assert filling is not None
            return filling.read()


def _check_slot(top: Path, slot: str, promise: str | None = None) -> None:
    """It holds all of its version; what is promised, too."""
    tree = top / "slots" / slot
    version = (tree / VERSION).read_text().strip()
    label = read_label(tree)
    _require((version, label.version) == (VERSIONS[slot], VERSIONS[slot]), f"slot {slot}: {version}, {label}")
    _require(promise in (None, label.generation), f"slot {slot} is not the promised one")
    if slot == "b":
        known = (top / "filling.sha256").read_text()
        found = hashlib.sha256((tree / FILLING).read_bytes()).hexdigest()
        _require(found == known, "slot b is not whole: the update's file is another one")


def _flip_is_done(top: Path) -> bool:
    """Whether the journal says that the boot target has been changed."""
    records, _ = read(top / "nvm" / "journal")
    return any(record["kind"] == "done" and "flip_slot" in record["id"] for record in records)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise Violation(what)


def _debug(image: Path, request: str, place: int = LOADER_AT) -> bytes:
    """What debugfs finds in the ext4 at that place of the disk, which it does not change."""
    look = ["debugfs", "-R", request, f"{image}?offset={place}"]
    return subprocess.run(look, capture_output=True, check=False).stdout


# --- planted bugs: a log in which the machine has written otherwise ---------------------------------------------------


def lie_about_flushes(written: WriteLog, flip: Flip, base: Path) -> Flip:
    """The disk says that it has flushed the new slot, and has not."""
    for number in range(_first_of_update(written, flip, base), len(written.entries)):
        written.entries[number] = written.entries[number]._replace(flushes=False, durable=False)
    return flip


def flip_before_sync(written: WriteLog, flip: Flip, base: Path) -> Flip:
    """The boot target names the new slot before that is on the disk."""
    begin = _first_of_update(written, flip, base)
    moved = [entry for entry in written.entries[flip.first - AROUND : flip.end] if _is_of_loader(entry)]
    rest = [entry for entry in written.entries[begin:] if entry not in moved]
    flush = Write(0, 0, 0, flushes=True, durable=False)
    written.entries[begin:] = [*moved, flush, *rest]
    return Flip(begin + len(moved) + 1 + AROUND, flip.first)


def leave_out_the_checkpoint(written: WriteLog, flip: Flip, base: Path) -> Flip:
    """The new environment is in the journal of its ext4, and not yet in its place: GRUB does not read the journal."""
    journal, in_place = _place_of_journal(base), False
    for number in range(flip.first, flip.end):
        entry = written.entries[number]
        if not _is_of_loader(entry) or b"otaflow_" in written.data(entry):
            continue
        in_place = in_place or entry.offset not in journal
        # its superblock, which then says that nothing in it is needed any more
        if entry.offset not in journal or (in_place and entry.offset == journal.start):
            written.entries[number] = entry._replace(length=0)
    return flip


class Bug(NamedTuple):
    """Changes the log, and returns where to cut; a pattern of what the check has to say then."""

    plant: Callable[[WriteLog, Flip, Path], Flip]
    pattern: str


BUGS = {
    "a disk that lies": Bug(lie_about_flushes, "."),
    "flip before the sync": Bug(flip_before_sync, "slot b|/slots/b"),
    "no checkpoint": Bug(leave_out_the_checkpoint, "journalled as done: the target is b, GRUB sees (a|none)"),
}


def _is_of_loader(entry: Write) -> bool:
    return bool(entry.length) and entry.offset in LOADER


def _first_of_update(written: WriteLog, flip: Flip, base: Path) -> int:
    """The first entry with the update's own file."""
    with mounted(base, base.parent) as (_, top):
        start = read_filling(top)[:4096]
    return next(number for number in range(flip.first) if start in written.data(written.entries[number]))


def _place_of_journal(base: Path) -> range:
    """Where on the disk the journal of the boot loader's ext4 is."""
    with base.open("rb") as disk:
        disk.seek(LOADER_AT + 1024 + 24)
        size = 1024 << struct.unpack("<I", disk.read(4))[0]
    blocks = [int(number) for number in re.findall(rb"\d+", _debug(base, "blocks <8>"))]
    return range(LOADER_AT + min(blocks) * size, LOADER_AT + (max(blocks) + 1) * size)
