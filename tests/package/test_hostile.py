"""Archives that must be refused, each by its name; and that nothing is left of them."""

import hashlib
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otaflow.errors import InvalidManifest, OtaflowError, PackageInconsistent
from otaflow.package.extract import Limits, extract, read_metadata

Change = Callable[[Any], object]


def listed(content: bytes = b"", mode: str = "0644") -> dict[str, Any]:
    return {"mode": mode, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def add(name: str, entry: Any = None, **header: Any) -> Change:
    """Add a member of this name, listed in the metadata where `entry` is given."""
    return lambda forge: forge.add(type(forge.items[0])(name, **header), entry)


def both(name: str, content: bytes = b"x", **header: Any) -> Change:
    """Add a file that the metadata lists, too."""
    return add(name, listed(content), content=content, **header)


def link(name: str, target: str) -> Change:
    """Add a symbolic link that the metadata lists, too."""
    return add(name, {"link": target}, type=tarfile.SYMTYPE, link=target)


def raw_header(name: bytes, kind: bytes, *, magic: bytes = b"ustar\x0000", size: bytes = b"0000000\0") -> bytes:
    """A header block, written by hand, with a good checksum."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    block[124 : 124 + len(size)] = size
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = magic
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def raw(*blocks: bytes) -> Change:
    return lambda forge: forge.add(type(forge.items[0])("raw", raw=b"".join(blocks)))


def pax(text: bytes) -> Change:
    """Add a pax header with this text, before a file."""
    header = raw_header(b"pax", b"x", size=b"%011o\0" % len(text))
    return raw(header, text, bytes(-len(text) % 512), raw_header(b"assets/p", b"0"))


def first(name: str) -> Change:
    return lambda forge: forge.first.append(type(forge.items[0])(name, b"x"))


def item(name: str, **changes: Any) -> Change:
    """Change the header of a member."""

    def change(forge: Any) -> None:
        member = next(member for member in forge.items if member.name == name)
        for key, value in changes.items():
            setattr(member, key, value)

    return change


def setting(**changes: Any) -> Change:
    return lambda forge: [setattr(forge, key, value) for key, value in changes.items()]


def files(name: str, value: Any) -> Change:
    return lambda forge: forge.files.update({name: value})


ARCHIVE = {
    "hard link": (add("assets/h", type=tarfile.LNKTYPE, link="assets/a"), "a hard link"),
    "hard link to /etc/passwd": (add("assets/h", type=tarfile.LNKTYPE, link="/etc/passwd"), "a hard link"),
    "hard link, listed as a file": (add("assets/h", listed(), type=tarfile.LNKTYPE, link="update"), "a hard link"),
    "character device": (add("assets/d", type=tarfile.CHRTYPE), "a device"),
    "block device": (add("assets/d", type=tarfile.BLKTYPE), "a device"),
    "FIFO": (add("assets/f", listed(), type=tarfile.FIFOTYPE), "a FIFO"),
    "contiguous file": (add("assets/c", listed(), type=tarfile.CONTTYPE), "unknown type"),
    "old type of file": (raw(raw_header(b"assets/o", b"\0")), "unknown type"),
    "absolute name": (add("/etc/passwd"), "absolute"),
    "absolute name, by pax": (add("x", pax={"path": "/etc/passwd"}), "absolute"),
    "name with ..": (add("assets/../../x"), "`..` part"),
    "name that is ..": (add(".."), "`..` part"),
    "name with . in front": (add("./assets/x"), "`.`"),
    "name with //": (add("assets//x"), "empty"),
    "empty name": (raw(raw_header(b"", b"0")), "empty"),
    "name with a newline": (add("assets/a\nb"), "control"),
    "name with an escape": (add("assets/\x1b[2J"), "control"),
    "name with NUL, by pax": (pax(b"22 path=assets/a\x00bcde\n"), "control"),
    "name that is not UTF-8": (raw(raw_header(b"assets/\xff", b"0")), "damaged"),
    "name that is not UTF-8, by pax": (pax(b"17 path=assets/\xff\n"), "not UTF-8"),
    "name of 1,001 bytes": (add("assets/" + "a/" * 28 + "b" * 938), "longer"),
    "part of 256 bytes": (add("assets/" + "b" * 256), "longer"),
    "name of 65 parts": (add("assets" + "/a" * 64), "longer"),
    "duplicate file": (add("assets/a", content=b"alpha"), "twice"),
    "duplicate folder": (add("assets", type=tarfile.DIRTYPE, mode=0o755), "twice"),
    "second metadata": (add("metadata", content=b"x"), "twice"),
    "file where a folder was": (add("assets/sub", content=b"x"), "twice"),
    "file that is not listed": (add("assets/x"), "not in the metadata"),
    "folder that is not listed": (add("assets/x", type=tarfile.DIRTYPE), "not in the metadata"),
    "link that is not listed": (add("assets/x", type=tarfile.SYMTYPE, link="a"), "not in the metadata"),
    "absolute link": (add("assets/x", type=tarfile.SYMTYPE, link="/etc"), "the link is absolute"),
    "link to the outside": (add("assets/x", type=tarfile.SYMTYPE, link="../../etc"), "outside"),
    "link that leads elsewhere": (item("assets/link", link="a"), "leads to"),
    "link in the place of a file": (item("assets/a", type=tarfile.SYMTYPE, link="x", content=b""), "is a link"),
    "file in the place of a link": (item("assets/link", type=tarfile.REGTYPE), "is a file"),
    "file in the place of a folder": (item("assets/sub", type=tarfile.REGTYPE), "is a file"),
    "listed file that is missing": (files("assets/x", listed()), "not in the archive"),
    "listed folder that is missing": (files("assets/x", {"mode": "0755"}), "not in the archive"),
    "file before its folder": (lambda forge: forge.items.insert(1, forge.items.pop()), "before the folder"),
    "wrong size": (item("assets/a", content=b"alphabet"), "has 8 bytes"),
    "wrong content": (item("assets/a", content=b"ALPHA"), "SHA-256"),
    "wrong mode": (item("assets/a", mode=0o666), "has mode 0666"),
    "setuid": (item("assets/a", mode=0o4755), "has mode 4755"),
    "setgid on a folder": (item("assets/sub", mode=0o2500), "has mode 2500"),
    "sticky": (item("assets/sub", mode=0o1500), "has mode 1500"),
    "folder with a content": (item("assets/sub", size=1024), "impossible size"),
    "link with a content": (item("assets/link", size=512), "impossible size"),
    "negative size": (raw(raw_header(b"assets/n", b"0", size=b"\xff" * 12)), "impossible size"),
    "size of 8 EiB": (
        raw(raw_header(b"assets/n", b"0", size=b"\x80" + b"\0" * 3 + b"\x7f" * 8)),
        "not in the metadata",
    ),
    "GNU sparse file": (raw(raw_header(b"assets/s", b"S")), "a sparse file"),
    "pax sparse file, 0.1": (add("assets/s", pax={"GNU.sparse.map": "0,1"}), "GNU.sparse.map"),
    "pax sparse file, 1.0": (add("assets/s", pax={"GNU.sparse.major": "1"}), "GNU.sparse.major"),
    "pax that overrides a size": (add("assets/s", pax={"size": "1"}), "sets 'size'"),
    "pax that sets an owner": (add("assets/s", pax={"uid": "0"}), "sets 'uid'"),
    "pax with extended attributes": (add("assets/s", pax={"SCHILY.xattr.user.a": "b"}), "SCHILY"),
    "pax with a name twice": (pax(b"12 path=a/b\n" * 2), "sets 'path'"),
    "pax without an end": (pax(b"99 path=a\n"), "pax header is damaged"),
    "pax of length 0": (pax(b"0 path=a\n"), "pax header is damaged"),
    "pax that is no record": (pax(b"garbage"), "pax header is damaged"),
    "pax of 1 MiB": (add("assets/s", pax={"comment": "x" * 2**20}), "too big"),
    "pax of 8 GiB": (raw(raw_header(b"pax", b"x", size=b"77777777777\0")), "too big"),
    "pax for a pax": (raw(*[raw_header(b"pax", b"x")] * 2), "unknown type"),
    "pax with no member": (raw(raw_header(b"pax", b"x")), "no member"),
    "global pax": (raw(raw_header(b"pax", b"g")), "a global pax header"),
    "GNU long name": (raw(raw_header(b"././@LongLink", b"L")), "GNU long name"),
    "GNU long link": (raw(raw_header(b"././@LongLink", b"K")), "GNU long link"),
    "GNU format": (raw(raw_header(b"assets/g", b"0", magic=b"ustar  \0")), "POSIX"),
    "V7 format": (raw(raw_header(b"assets/v", b"0", magic=bytes(8))), "POSIX"),
    "wrong checksum": (raw(b"assets/w" + bytes(504)), "damaged"),
    "no metadata first": (first("update"), "first member"),
    "metadata under another name": (first("./metadata"), "first member"),
    "no end": (setting(end=b""), "in the middle"),
    "half of an end": (setting(end=bytes(512)), "in the middle"),
    "one block of zeros": (setting(end=bytes(512) + b"x" * 512), "two blocks"),
    "member after the end": (setting(end=bytes(1024) + b"x" * 512), "follows the end of its archive"),
    "padding of 2 MiB": (setting(end=bytes(2**21)), "follows the end of its archive"),
    "garbage after gzip": (setting(after=b"x"), "follows the end of its gzip"),
    "second gzip member": (setting(after=zlib.compress(b"x", wbits=31)), "follows the end of its gzip"),
    "zeros after gzip": (setting(after=bytes(512)), "follows the end of its gzip"),
}

METADATA = {
    "unknown key": (lambda forge: forge.author.update(colour="red"), "colour"),
    "no version": (lambda forge: forge.author.pop("version"), "version"),
    "not YAML": (setting(metadata=b"{"), "cannot read the metadata"),
    "empty": (setting(metadata=b""), "cannot use the metadata"),
    "aliases": (setting(metadata=b"a: &a [1]\nb: *a\n"), "aliases"),
    "absolute name": (both("/etc/x"), "absolute"),
    "name with ..": (both("assets/../x"), "`..`"),
    "name outside of assets": (both("other"), "no such member"),
    "application's folder": (add("files", {"mode": "0755"}, type=tarfile.DIRTYPE), "no such member"),
    "control character": (both("assets/a\x7f"), "control"),
    "file in a file": (both("assets/a/b"), "not listed"),
    "file in a link": (both("assets/link/b"), "not listed"),
    "file without its folder": (both("assets/no/b"), "not listed"),
    "absolute link": (link("assets/l", "/etc/passwd"), "absolute"),
    "link to the outside": (link("assets/l", "../../x"), "outside"),
    "link to far outside": (link("assets/l", "../" * 40 + "etc"), "outside"),
    "link out through a link": (link("assets/l", "sub/../../x"), "`..`"),
    "empty link": (link("assets/l", ""), "empty"),
    "link as assets": (files("assets", {"link": "x"}), "folder"),
    "update as a folder": (files("update", {"mode": "0755"}), "update"),
    "update that cannot be run": (files("update", listed(b"#!/bin/sh\n")), "execute"),
    "no update": (lambda forge: forge.files.pop("update"), "update"),
    "setuid": (files("assets/a", listed(b"alpha", "4755")), "mode"),
    "hash that is none": (files("assets/a", {**listed(b"alpha"), "sha256": "0"}), "sha256"),
    "negative size": (files("assets/a", {**listed(b"alpha"), "size": -1}), "size"),
    "size as a text": (files("assets/a", {**listed(b"alpha"), "size": "5"}), "size"),
    "entry with more keys": (files("assets/a", {**listed(b"alpha"), "uid": 0}), "uid"),
    "sum that is wrong": (setting(size={"installed_bytes": 1, "files": 6}), "adds up"),
    "count that is wrong": (setting(size={"installed_bytes": 4015, "files": 7}), "adds up"),
}


@pytest.mark.parametrize(("change", "why"), ARCHIVE.values(), ids=ARCHIVE)
def test_hostile_archive_is_refused(tmp_path: Path, forge: Any, change: Change, why: str) -> None:
    refuse(tmp_path, forge, change, why, PackageInconsistent)


@pytest.mark.parametrize(("change", "why"), METADATA.values(), ids=METADATA)
def test_wrong_metadata_is_refused(tmp_path: Path, forge: Any, change: Change, why: str) -> None:
    refuse(tmp_path, forge, change, why, InvalidManifest)


def refuse(tmp_path: Path, forge: Any, change: Change, why: str, error: type[OtaflowError]) -> None:
    change(forge)
    archive = forge.write(tmp_path / "bad.nsu")
    with pytest.raises(error) as caught:
        extract(archive, tmp_path / "into")
    assert why in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.nsu"]


def test_the_package_that_the_cases_spoil_is_good(tmp_path: Path, forge: Any) -> None:
    metadata = extract(forge.write(tmp_path / "good.nsu"), tmp_path / "into")
    assert metadata.files.keys() == forge.files.keys()
    assert (tmp_path / "into/assets/link").read_bytes() == b"beta" * 1000
    assert (tmp_path / "into/assets/sub").stat().st_mode & 0o777 == 0o500
    assert (tmp_path / "into").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "change",
    [
        link("assets/l", "../update"),
        link("assets/l", ".."),
        link("assets/l", "."),
        link("assets/l", "nothing/here"),
        link("assets/l", "..x"),
        add("assets/t", listed(), pax={"mtime": "1.5", "atime": "2", "ctime": "3"}),
        both("assets/" + "é" * 60 + "n" * 100),
        both("assets/back\\slash"),
        both("assets/A"),
        setting(end=bytes(10240)),
    ],
    ids=["up", "parent", "here", "dangling", "dots", "times", "long name", "backslash", "other case", "record"],
)
def test_what_is_unusual_but_allowed(tmp_path: Path, forge: Any, change: Change) -> None:
    change(forge)
    extract(forge.write(tmp_path / "good.nsu"), tmp_path / "into")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x1f",
        b"PK\x03\x04",
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03",
        zlib.compress(b"", wbits=31),
        b"\x1f\x8b\x08\x08" + b"n" * 9999,
    ],
    ids=["empty", "one byte", "zip", "header alone", "empty gzip", "endless name"],
)
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "bad.nsu"
    archive.write_bytes(content)
    with pytest.raises(PackageInconsistent):
        extract(archive, tmp_path / "into")
    with pytest.raises(PackageInconsistent):
        read_metadata(archive)


def test_archive_cut_anywhere(tmp_path: Path, forge: Any) -> None:
    whole = forge.write(tmp_path / "good.nsu").read_bytes()
    cut = tmp_path / "cut.nsu"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(PackageInconsistent):
            extract(cut, tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_too_many_members(tmp_path: Path, forge: Any) -> None:
    archive = forge.write(tmp_path / "a.nsu")
    with pytest.raises(PackageInconsistent, match="more than 5 members"):
        extract(archive, tmp_path / "into", limits=Limits(members=5))


def test_too_many_bytes(tmp_path: Path, forge: Any) -> None:
    archive = forge.write(tmp_path / "a.nsu")
    with pytest.raises(PackageInconsistent, match="more than 4000 bytes"):
        extract(archive, tmp_path / "into", limits=Limits(bytes=4000))


def test_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(PackageInconsistent, match="No such file"):
        extract(tmp_path / "none.nsu", tmp_path / "into")


RUN = """
import resource, sys
from pathlib import Path
from otaflow.errors import OtaflowError
from otaflow.package.extract import extract
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
try:
    extract(Path(sys.argv[1]), Path(sys.argv[2]))
    why = "accepted"
except OtaflowError as error:
    why = str(error)
print(peak() - before, why)
"""


@pytest.fixture
def bomb(tmp_path: Path, forge: Any) -> Callable[[str], Path]:
    """A gzip file of some MB that inflates to 512 MiB."""

    def make(kind: str) -> Path:
        path = tmp_path / "bomb.nsu"
        head = {
            "metadata": raw_header(b"metadata", b"0", size=b"20000000000\0"),
            "pax": raw_header(b"pax", b"x", size=b"20000000000\0"),
            "zeros": b"",
            "end": forge.tar(),
            "unlisted": forge.tar()[:-1024] + raw_header(b"assets/x", b"0", size=b"20000000000\0"),
        }[kind]
        engine = zlib.compressobj(1, zlib.DEFLATED, 31)
        with path.open("wb") as file:
            file.write(engine.compress(head))
            for _ in range(512):
                file.write(engine.compress(bytes(2**20)))
            file.write(engine.flush())
        return path

    return make


@pytest.mark.parametrize("kind", ["metadata", "pax", "zeros", "end", "unlisted"])
def test_bomb_is_stopped_while_it_inflates(tmp_path: Path, bomb: Callable[[str], Path], kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, bomb(kind), tmp_path / "into"], capture_output=True, text=True, check=True
    )
    grown, why = done.stdout.split(maxsplit=1)
    assert why.startswith("cannot")
    assert int(grown) < 48 * 1024, "KiB"
    assert not (tmp_path / "into").exists()


def test_memory_does_not_depend_on_the_size(tmp_path: Path, forge: Any) -> None:
    big = bytes(2**27)
    both("assets/big", big)(forge)
    archive = forge.write(tmp_path / "a.nsu")
    done = subprocess.run([sys.executable, "-c", RUN, archive, tmp_path / "into"], capture_output=True, text=True)
    grown, why = done.stdout.split()
    assert why == "accepted"
    assert int(grown) < 48 * 1024, "KiB"


def test_bomb_that_promises_all_of_it(tmp_path: Path, forge: Any) -> None:
    huge = 8**11 - 1
    for number in range(3):
        forge.files[f"assets/{number}"] = {**listed(), "size": huge}
    with pytest.raises(PackageInconsistent, match="holds more than"):
        extract(forge.write(tmp_path / "a.nsu"), tmp_path / "into")
    assert not (tmp_path / "into").exists()
