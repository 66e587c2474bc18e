"""The maker's side, seen by a device after each change; and killed at each of its writes."""

import os
import stat
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from otaflow import files
from otaflow.config import Source
from otaflow.errors import Locked, OtaflowError, PackageInconsistent, RepositoryRefused
from otaflow.repo import admin, signing
from otaflow.repo.client import LocalRepository, Repository
from otaflow.repo.signing import Expiry

Make = Callable[..., Path]


class Device:
    """Follows a repository by local packages of it; its trust lasts from call to call."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder, self.repository = folder, repository
        self.root = (repository / "public" / "metadata" / "1.root.json").read_bytes()
        folder.mkdir()
        (folder / "root.json").write_bytes(self.root)

    def see(self) -> set[str]:
        """The versions that are signed, each fetched and verified."""
        stick = admin.export(self.repository, self.folder / "stick.nsr")
        with LocalRepository(stick, self.folder / "root.json", self.folder / "trust", self.folder / "cache") as local:
            local.refresh()
            targets = local.targets()
            for target in targets:
                assert local.trusted(local.download(target)) == target
        return {target.version for target in targets}


@pytest.fixture
def device(tmp_path: Path, repository: Path) -> Device:
    return Device(tmp_path / "device", repository)


def test_online_from_check_to_download(source: Source, tmp_path: Path) -> None:
    with Repository(source, tmp_path / "trust", tmp_path / "cache") as repository:
        repository.connect()
        repository.check_certificate()
        repository.authenticate()
        repository.refresh()
        first, second = repository.new_packages("1.0.0", "any model", "demo")
        assert (first.version, second.version) == ("1.1.0", "1.2.0")
        assert first.installed_bytes > 0
        path = repository.download(first)
        assert repository.trusted(path) == first
        assert path == repository.path(first)
        assert [target.version for target in repository.new_packages("1.1.0", "any model")] == ["1.2.0"]
        assert repository.new_packages("1.2.0", "any model") == []
        stranger = tmp_path / "stranger"
        stranger.write_bytes(path.read_bytes()[:-1] + b"x")
        assert repository.trusted(stranger) is None
        assert repository.trusted(Path("/etc/passwd")) is None
    # and without any network
    offline = Repository(
        source.model_copy(update={"url": "https://no-such-host.invalid"}), tmp_path / "trust", tmp_path / "cache"
    )
    assert offline.trusted(path) == first


MIGRATION = """
conflicts: [{name: old-notes, versions: "<2.0.0"}]
migrations:
  - {database: {kind: sqlite, path: notes.db}, sql: [2.sql], irreversible: true}
  - {database: {kind: postgresql, name: notes}, sql: [2.sql]}
"""


def test_applications(device: Device, repository: Path, make_application: Make) -> None:
    """They are offered to who has them, after the system's; others see what they saw before."""
    added = [make_application("1.0.0"), make_application("1.1.0"), make_application("1.2.0", "1.1.0", more=MIGRATION)]
    admin.publish(repository, [*added, make_application("1.1.0", "1.0.0")])
    device.see()
    stick = device.folder / "stick.nsr"
    with LocalRepository(stick, device.folder / "root.json", device.folder / "trust", device.folder / "cache") as local:
        plain = local.new_packages("1.0.0", "any", "demo")
        assert {target.kind for target in plain} == {"system"}
        found = local.new_packages("1.0.0", "any", "demo", applications={"notes": "1.0.0", "other": "1.0.0"})
        assert found[: len(plain)] == plain
        first, second = found[len(plain) :]
        assert (first.path, second.path) == ("notes-1.1.0_from_1.0.0.nua", "notes-1.2.0_from_1.1.0.nua")
        assert (first.irreversible, first.irreversible_data) == (False, [])
        assert (second.irreversible, second.irreversible_data) == (True, ["the database notes.db of notes"])
        assert second.conflicts == [{"name": "old-notes", "versions": "<2.0.0"}]


def test_package_larger_than_the_device_takes(source: Source, tmp_path: Path) -> None:
    with Repository(source, tmp_path / "trust", tmp_path / "cache", max_bytes=10) as repository:
        repository.refresh()
        with pytest.raises(RepositoryRefused, match="this device takes 10"):
            repository.download(repository.targets()[0])


TAMPERED = {
    "other bytes": lambda content: content[:-1] + b"x",
    "longer": lambda content: content + b"x",
    "shorter": lambda content: content[:-1],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_changed_target_is_refused(change: Any, source: Source, repository: Path, tmp_path: Path) -> None:
    with Repository(source, tmp_path / "trust", tmp_path / "cache") as client:
        client.refresh()
        target = client.targets()[0]
        (file,) = (repository / "public" / "targets").glob(f"*.{target.path}")
        file.write_bytes(change(file.read_bytes()))
        with pytest.raises(RepositoryRefused):
            client.download(target)
        assert not client.path(target).exists()


def test_keys_are_apart_and_secret(repository: Path) -> None:
    keys = list((repository / "keys").iterdir())
    assert len(keys) == 4
    assert all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in keys)
    assert stat.S_IMODE((repository / "keys").stat().st_mode) == 0o700
    assert not [path for path in (repository / "public").rglob("*") if b"PRIVATE" in _content(path)]


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_keys_elsewhere(tmp_path: Path, make_package: Make) -> None:
    admin.init(tmp_path / "site", keys=tmp_path / "stick" / "keys")
    assert len(list((tmp_path / "stick" / "keys").iterdir())) == 4
    admin.publish(tmp_path / "site", [make_package("1.1.0")])
    (tmp_path / "stick").rename(tmp_path / "away")
    with pytest.raises(OtaflowError, match="is not here"):
        admin.publish(tmp_path / "site", [make_package("1.2.0")])
    assert [one.version for one in admin.overview(tmp_path / "site").packages] == ["1.1.0"]


def test_init_twice(repository: Path) -> None:
    with pytest.raises(OtaflowError, match="there is one"):
        admin.init(repository)


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(OtaflowError, match="there is no repository"):
        admin.publish(tmp_path, [])


def test_same_package_again_changes_nothing(repository: Path, tmp_path: Path) -> None:
    before = {path: _content(path) for path in (repository / "public").rglob("*")}
    assert admin.publish(repository, [tmp_path / "demo-1.1.0.nsu"]) == []
    assert {path: _content(path) for path in (repository / "public").rglob("*")} == before


def test_same_version_with_other_bytes_is_refused(repository: Path, make_package: Make) -> None:
    before = {path: _content(path) for path in (repository / "public").rglob("*")}
    with pytest.raises(OtaflowError, match="other content"):
        admin.publish(repository, [make_package("1.3.0"), make_package("1.2.0", text="changed")])
    assert {path: _content(path) for path in (repository / "public").rglob("*")} == before


def test_what_is_no_package_is_refused(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "x.nsu").write_bytes(b"no package")
    with pytest.raises(PackageInconsistent, match=r"x\.nsu|package"):
        admin.publish(repository, [tmp_path / "x.nsu"])
    with pytest.raises(OtaflowError, match="nowhere"):
        admin.publish(repository, [tmp_path / "nowhere.nsu"])


def test_withdraw(repository: Path, device: Device) -> None:
    assert device.see() == {"1.1.0", "1.2.0"}
    admin.withdraw(repository, "demo-1.2.0.nsu")
    assert device.see() == {"1.1.0"}
    assert len(list((repository / "public" / "targets").iterdir())) == 1
    with pytest.raises(OtaflowError, match=r"demo-1\.1\.0") as caught:
        try:
            admin.withdraw(repository, "demo-9.9.9.nsu")
        except OtaflowError as error:
            raise OtaflowError(error.hint) from error
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("role", signing.ROLES)
def test_rotate_while_devices_look_on(role: str, repository: Path, device: Device, make_package: Make) -> None:
    device.see()
    before = len(list((repository / "keys").iterdir()))
    name = admin.rotate(repository, role)
    assert (repository / "keys" / name).exists()
    assert len(list((repository / "keys").iterdir())) == before + 1
    assert device.see() == {"1.1.0", "1.2.0"}
    for key in (repository / "keys").glob(f"{role}-*"):
        if key.name != name:
            key.unlink()  # the former key is of no use any more
    admin.publish(repository, [make_package("1.3.0")])
    admin.rotate(repository, role)
    assert device.see() == {"1.1.0", "1.2.0", "1.3.0"}


def test_rotate_unknown_role(repository: Path) -> None:
    with pytest.raises(OtaflowError, match="no such role"):
        admin.rotate(repository, "mirror")


def test_refresh_signs_what_is_due(tmp_path: Path, make_package: Make) -> None:
    site = tmp_path / "site"
    admin.init(site, expiry=Expiry(root=20, targets=20, timestamp=1))
    admin.publish(site, [make_package("1.1.0")])
    assert admin.refresh(site, expiry=Expiry(root=400, targets=400)) == ["root", "snapshot", "timestamp", "targets"]
    assert admin.refresh(site) == ["snapshot", "timestamp"]
    overview = admin.overview(site)
    assert overview.roles["root"][0] == 2
    assert overview.roles["root"][1] > datetime.now(UTC) + timedelta(days=300)
    assert overview.roles["timestamp"][1] < datetime.now(UTC) + timedelta(days=2), "as it was made with"


def test_expired_repository_is_refused_until_it_is_refreshed(repository: Path, device: Device) -> None:
    device.see()
    admin.refresh(repository, expiry=Expiry(timestamp=-1))
    with pytest.raises(RepositoryRefused, match="expired"):
        device.see()
    admin.refresh(repository)
    assert device.see() == {"1.1.0", "1.2.0"}


def test_one_writer_at_a_time(repository: Path) -> None:
    with admin._locked(signing.open_site(repository)), pytest.raises(Locked):
        admin.refresh(repository)
    admin.refresh(repository)


def test_export_is_one_plain_tar_and_reproducible(repository: Path, tmp_path: Path) -> None:
    one = admin.export(repository, tmp_path / "one.nsr").read_bytes()
    assert admin.export(repository, tmp_path / "two.nsr").read_bytes() == one
    with tarfile.open(tmp_path / "one.nsr", "r:") as archive:
        names = archive.getnames()
    assert names[0] == "metadata/1.root.json"
    assert len([name for name in names if name.startswith("targets/")]) == 2


def test_export_into_no_folder(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(OtaflowError, match="cannot export"):
        admin.export(repository, tmp_path / "nowhere" / "x.nsr")


CHANGES: dict[str, tuple[Callable[[Path, Path], object], set[str]]] = {
    "publish": (lambda site, new: admin.publish(site, [new]), {"1.1.0", "1.2.0", "1.3.0"}),
    "withdraw": (lambda site, new: admin.withdraw(site, "demo-1.2.0.nsu"), {"1.1.0"}),
    "refresh": (lambda site, new: admin.refresh(site), {"1.1.0", "1.2.0"}),
    **{
        f"rotate {role}": (lambda site, new, role=role: admin.rotate(site, role), {"1.1.0", "1.2.0"})
        for role in signing.ROLES
    },
}


@pytest.mark.parametrize(("change", "after"), CHANGES.values(), ids=CHANGES)
def test_killed_at_each_write(change: Any, after: set[str], device: Device, make_package: Make) -> None:
    """Before and after the n-th rename, for every n: a device sees the old state or the new one."""
    site, new = device.repository, make_package("1.3.0")
    before = device.see()
    for point in range(1, 40):
        killed = _run_killed(lambda: change(site, new), point)
        seen = device.see()
        assert seen in (before, after)
        if not killed:
            break
        before = seen  # what was seen once does not go away again
    assert not killed
    assert point > 4, "there were writes to die at"
    assert device.see() == after


def _run_killed(act: Callable[[], object], point: int) -> bool:
    """Run `act` in a child that dies at the `point`-th half of a rename; True when it did not reach its end."""
    child = os.fork()
    if child == 0:
        left = point
        replace = os.replace

        def dying(*names: Any) -> None:
            nonlocal left
            for half in (lambda: None, lambda: replace(*names)):
                half()
                left -= 1
                if left == 0:
                    os._exit(9)

        files.os.replace = dying  # type: ignore[assignment]
        try:
            act()
        except OtaflowError:
            pass  # such as: withdrawn already, by the try that was killed after its commit
        except BaseException:
            os._exit(7)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9
