"""Local repository packages: verified like a server's, sharing its trust, and hostile ones refused."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otaflow.config import Source
from otaflow.errors import OtaflowError, RepositoryRefused
from otaflow.repo import admin
from otaflow.repo.archive import HEADER, Archive
from otaflow.repo.client import LocalRepository, Repository


def _local(stick: Path, root: Path, folder: Path) -> LocalRepository:
    return LocalRepository(stick, root, folder / "trust", folder / "cache")


def test_from_stick_to_cache(repository: Path, first_root: Path, tmp_path: Path) -> None:
    stick = admin.export(repository, tmp_path / "stick.nsr")
    with _local(stick, first_root, tmp_path) as local:
        local.connect()
        assert local.check_certificate() is None
        local.authenticate()
        local.refresh()
        (first, _second) = local.new_packages("1.0.0", "any")
        seen: list[int] = []
        path = local.download(first, seen.append)
        assert path.stat().st_size == first.length == seen[-1]


def test_stick_and_server_share_their_trust(source: Source, repository: Path, first_root: Path, tmp_path: Path) -> None:
    old = admin.export(repository, tmp_path / "old.nsr")
    admin.withdraw(repository, "demo-1.2.0.nsu")
    with Repository(source, tmp_path / "trust", tmp_path / "cache") as online:
        online.refresh()
    with _local(old, first_root, tmp_path) as local, pytest.raises(RepositoryRefused, match="rollback"):
        local.refresh()
    new = admin.export(repository, tmp_path / "new.nsr")
    with _local(new, first_root, tmp_path) as local:
        local.refresh()
        assert len(local.targets()) == 1


def test_stick_of_another_repository(repository: Path, first_root: Path, tmp_path: Path) -> None:
    admin.init(tmp_path / "other")
    stick = admin.export(tmp_path / "other", tmp_path / "other.nsr")
    with _local(stick, first_root, tmp_path) as local, pytest.raises(RepositoryRefused, match="not signed"):
        local.refresh()


def test_interrupted_copy_goes_on(repository: Path, first_root: Path, tmp_path: Path) -> None:
    stick = admin.export(repository, tmp_path / "stick.nsr")
    with _local(stick, first_root, tmp_path) as local:
        local.refresh()
        target = local.targets()[0]

        class Pulled(Exception):
            pass

        def pull(done: int) -> None:
            if done:
                raise Pulled

        with pytest.raises(Pulled):
            local.download(target, pull)
        assert local.download(target).stat().st_size == target.length


def test_changed_package_in_the_archive(repository: Path, first_root: Path, tmp_path: Path) -> None:
    (file,) = (repository / "public" / "targets").glob("*.demo-1.1.0.nsu")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    stick = admin.export(repository, tmp_path / "stick.nsr")
    with _local(stick, first_root, tmp_path) as local:
        local.refresh()
        target = next(one for one in local.targets() if one.version == "1.1.0")
        with pytest.raises(RepositoryRefused, match="not the file that was signed"):
            local.download(target)


def _member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **more: Any) -> Callable[[Any], None]:
    def add(archive: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, size
        for key, value in more.items():
            setattr(member, key, value)
        archive.addfile(member, io.BytesIO(bytes(size)) if size else None)

    return add


def _twice(archive: tarfile.TarFile) -> None:
    _member("metadata/x.json")(archive)
    _member("metadata/x.json")(archive)


def _many(archive: tarfile.TarFile) -> None:
    for number in range(10_001):
        _member(f"targets/{number}")(archive)


HOSTILE = {
    "symbolic link": (_member("metadata/x.json", tarfile.SYMTYPE, linkname="/etc/passwd"), "plain file"),
    "hard link": (_member("metadata/x.json", tarfile.LNKTYPE, linkname="metadata/timestamp.json"), "plain file"),
    "device": (_member("targets/null", tarfile.CHRTYPE), "plain file"),
    "fifo": (_member("targets/fifo", tarfile.FIFOTYPE), "plain file"),
    "folder": (_member("targets/sub", tarfile.DIRTYPE), "plain file"),
    "sparse": (_member("targets/x", tarfile.GNUTYPE_SPARSE), "cannot use"),
    "pax sparse": (
        _member("targets/x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, size=512),
        "cannot use",
    ),
    "absolute": (_member("/etc/passwd"), "not the name"),
    "outside": (_member("targets/../../x"), "not the name"),
    "elsewhere": (_member("x.json"), "not the name"),
    "metadata below": (_member("metadata/a/b.json"), "not the name"),
    "empty part": (_member("targets//x"), "not the name"),
    "twice": (_twice, "twice"),
    "very long name": (_member("targets/" + "x" * HEADER), "too long"),
    "very many": (_many, "more than"),
}


@pytest.mark.parametrize(("add", "why"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_archive(add: Any, why: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "stick.nsr", "w", format=tarfile.PAX_FORMAT) as archive:
        _member("metadata/timestamp.json", size=2)(archive)
        add(archive)
    with pytest.raises(RepositoryRefused, match=why):
        Archive(tmp_path / "stick.nsr")


BROKEN = {
    "empty": lambda whole: b"",
    "no archive": lambda whole: b"x" * 2000,
    "cut in a file": lambda whole: whole[:700],
    "cut in a header": lambda whole: whole[:300],
    "packed": lambda whole: __import__("gzip").compress(whole),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_broken_archive(change: Any, repository: Path, tmp_path: Path) -> None:
    stick = admin.export(repository, tmp_path / "stick.nsr")
    stick.write_bytes(change(stick.read_bytes()))
    with pytest.raises(RepositoryRefused):
        Archive(stick)


def test_no_archive(tmp_path: Path) -> None:
    with pytest.raises(OtaflowError, match="nowhere"):
        Archive(tmp_path / "nowhere.nsr")


def test_stick_pulled_out_while_it_is_read(repository: Path, first_root: Path, tmp_path: Path) -> None:
    stick = admin.export(repository, tmp_path / "stick.nsr")
    with _local(stick, first_root, tmp_path) as local:
        local.refresh()
        os.truncate(stick, 512)
        with pytest.raises(OtaflowError, match="ends too early"):
            local.download(local.targets()[0])
