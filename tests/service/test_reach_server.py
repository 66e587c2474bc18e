"""A new system that cuts the device off from its updates is rolled back, where that is configured."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from update_world import World, differences

from otaflow.errors import HealthCheckFailed
from otaflow.repo import admin, serve
from otaflow.repo.certificates import make_authority, make_server_certificate

TOKEN = "a token of the device, long enough"


class Site:
    """A repository behind TLS that the device trusts, and a device that must reach it."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.authority = make_authority(folder / "authority")
        self.other = make_authority(folder / "other authority")
        admin.init(folder / "site")

    @contextmanager
    def served(self, *, token: str | None = None, authority: Any = None) -> Iterator[str]:
        pair = make_server_certificate(authority or self.authority, self.folder / "tls", ["127.0.0.1"])
        with serve.running(self.folder / "site/public", pair.certificate, pair.key, token=token) as url:
            yield url

    def configure(self, url: str, *, reach: bool = True) -> None:
        root = self.folder / "site/public/metadata/1.root.json"
        self.world.configure(
            f'[update]\nuse = "test"\n[sources.test]\nurl = "{url}"\nroot = "{root}"\n'
            f'ca = "{self.authority.certificate}"\nconnect_tries = 2\nconnect_wait_seconds = 0\n'
            f"[health]\nreach_server = {str(reach).lower()}\n"
        )


@pytest.fixture
def kind() -> str:
    return "directories"


@pytest.fixture
def site(world: World, tmp_path: Path, quick: None) -> Site:
    return Site(world, tmp_path)


def test_a_system_that_reaches_its_server_is_kept(site: Site) -> None:
    with site.served() as url:
        site.configure(url)
        site.world.install(site.world.up())
    assert site.world.last()["resolution"] == "kActivated"
    log = (site.world.device().logs / f"{site.world.last()['session']}.log").read_text()
    assert "done    check connection to update server" in log


CUT_OFF: dict[str, dict[str, Any]] = {
    "no server": {},
    "another one's certificate": {"authority": True},
    "a login that is refused": {"token": TOKEN},
    "metadata that is gone": {"gone": True},
}


@pytest.mark.parametrize("case", CUT_OFF)
def test_a_system_that_does_not_is_rolled_back(site: Site, case: str) -> None:
    world, before = site.world, site.world.picture()
    how = CUT_OFF[case]
    authority = site.other if how.get("authority") else None
    with site.served(token=how.get("token"), authority=authority) as url:
        site.configure(url)
        if how.get("gone"):
            (site.folder / "site/public/metadata/timestamp.json").unlink()
        if how:
            with pytest.raises(HealthCheckFailed, match="does not reach its update server, 2 times"):
                world.install(world.up())
    if not how:
        with pytest.raises(HealthCheckFailed, match="does not reach its update server, 2 times"):
            world.install(world.up())
    assert world.last()["resolution"] == "kVerificationFailed"
    after = {name: value for name, value in world.picture().items() if not name.startswith(("nvm/", "cache/"))}
    assert differences({name: value for name, value in before.items() if name in after}, after) == {}


def test_by_default_nobody_is_asked(site: Site) -> None:
    site.configure("https://127.0.0.1:9", reach=False)
    site.world.install(site.world.up())
    assert site.world.last()["resolution"] == "kActivated"
