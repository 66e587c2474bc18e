"""What every boot target promises (platform/protocols.py), on the fake and on the real ones with their boot loaders."""

import os
import signal
import sys
from pathlib import Path

import pytest
from boot_loaders import LOADERS, Loader

from otaflow.errors import OtaflowError
from otaflow.platform.boots import Boots
from otaflow.platform.index_file import IndexFile
from otaflow.platform.protocols import BootTarget


@pytest.fixture(params=list(LOADERS))
def loader(request: pytest.FixtureRequest, tmp_path: Path) -> Loader:
    """A boot target that starts slot a, and its boot loader."""
    return LOADERS[request.param](tmp_path)


@pytest.fixture
def boot(loader: Loader) -> BootTarget:
    return loader.boot


def state(boot: BootTarget) -> tuple[str, str, int | None]:
    return boot.target(), boot.promise(), boot.tries_left()


def test_the_running_slot_changes_with_the_restart_only(loader: Loader) -> None:
    boot = loader.boot
    boot.set_target("b", "generation 2")
    assert (boot.running(), *state(boot)) == ("a", "b", "generation 2", None)
    loader.restart()
    assert (boot.running(), *state(boot)) == ("b", "b", "generation 2", None)


def test_setting_the_target_twice_and_back(loader: Loader) -> None:
    boot = loader.boot
    for slot in ("b", "b", "a"):
        boot.set_target(slot, "x", trial=True)
    boot.set_target("a", "")
    loader.restart()
    assert (boot.running(), *state(boot)) == ("a", "a", "", None)


@pytest.mark.parametrize("slot", ["c", "", "../a"])
def test_an_unknown_slot(boot: BootTarget, slot: str) -> None:
    with pytest.raises(OtaflowError, match=f"cannot start the slot '{slot}'"):
        boot.set_target(slot, "", trial=True)
    assert state(boot) == ("a", "", None)


# --- on trial -----------------------------------------------------------------------------------------------------


def test_after_its_tries_the_other_slot_starts_and_the_target_stays(loader: Loader) -> None:
    boot = loader.boot
    boot.set_target("b", "new", trial=True)
    assert state(boot) == ("b", "new", 3)
    for left in (2, 1, 0):
        loader.restart()
        assert (boot.running(), *state(boot)) == ("b", "b", "new", left)
    for _ in range(2):
        loader.restart()
        assert (boot.running(), *state(boot)) == ("a", "b", "new", 0)


@pytest.mark.parametrize("starts", [1, 3])
def test_a_confirmed_target_is_trusted(loader: Loader, starts: int) -> None:
    boot = loader.boot
    boot.set_target("b", "new", trial=True)
    for _ in range(starts):
        loader.restart()
    for _ in range(2):
        boot.confirm()
        assert state(boot) == ("b", "new", None)
    for _ in range(5):
        loader.restart()
        assert (boot.running(), *state(boot)) == ("b", "b", "new", None)


def test_a_try_that_is_given_back(loader: Loader) -> None:
    boot = loader.boot
    boot.set_target("b", "new", trial=True)
    boot.give_try_back()
    assert boot.tries_left() == 3, "never more than there were"
    for _ in range(8):
        loader.restart()
        assert (boot.running(), boot.tries_left()) == ("b", 2)
        boot.give_try_back()
        assert boot.tries_left() == 3
    for _ in range(3):
        loader.restart()
    boot.give_try_back()
    assert boot.tries_left() == 1
    loader.restart()
    assert (boot.running(), boot.tries_left()) == ("b", 0)


def test_nothing_to_confirm_or_give_back(boot: BootTarget) -> None:
    boot.confirm()
    boot.give_try_back()
    assert state(boot) == ("a", "", None)


def test_a_trusted_target_ends_the_trial(loader: Loader) -> None:
    boot = loader.boot
    boot.set_target("b", "new", trial=True)
    loader.restart()
    boot.set_target("a", "old")
    for _ in range(4):
        loader.restart()
        assert (boot.running(), *state(boot)) == ("a", "a", "old", None)


@pytest.mark.parametrize("starts", [1, 4], ids=["after a start", "after a fallback"])
def test_a_trial_of_the_same_content_begins_anew(loader: Loader, starts: int) -> None:
    boot = loader.boot
    boot.set_target("b", "new", trial=True)
    for _ in range(starts):
        loader.restart()
    boot.set_target("b", "new", trial=True)
    assert state(boot) == ("b", "new", 3)
    loader.restart()
    assert (boot.running(), boot.tries_left()) == ("b", 2)


# --- kept ---------------------------------------------------------------------------------------------------------


def run_killed(work: object, moment: int) -> bool:
    """Do `work` in a process that is killed at its moment-th effect on files or programs; whether it was."""
    child = os.fork()
    if child == 0:
        seen = 0

        def kill_at_moment(event: str, _: object) -> None:
            nonlocal seen
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "subprocess.Popen"):
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        status = 1
        try:
            sys.addaudithook(kill_at_moment)
            work()  # type: ignore[operator]
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"the work failed: {status}"
    return status != 0


CHANGES = {
    "trial": (lambda boot: boot.set_target("b", "new", trial=True), ("b", "new", 3)),
    "trusted": (lambda boot: boot.set_target("a", "newer"), ("a", "newer", None)),
    "confirm": (lambda boot: boot.confirm(), ("b", "old", None)),
    "give a try back": (lambda boot: boot.give_try_back(), ("b", "old", 2)),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("kind", ["index file", "grub", "u-boot"])
def test_killed_at_any_moment_it_is_the_former_target_or_the_new_one(kind: str, change: str, tmp_path: Path) -> None:
    loader = LOADERS[kind](tmp_path)
    work, after = CHANGES[change]
    boot = loader.boot
    boot.set_target("b", "old", trial=True)
    loader.restart()
    loader.restart()
    before = ("b", "old", 1)
    assert (boot.running(), *state(boot)) == ("b", *before)
    files = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for moment in range(100):
        for path in set(tmp_path.iterdir()) - set(files) - {tmp_path / "slots"}:
            path.unlink()
        for path, content in files.items():
            path.write_bytes(content)
        killed = run_killed(lambda: work(boot), moment)
        found = state(boot)
        # a former trial whose tries were given back is still on trial
        assert found in (before, after) or (found == ("b", "old", 3) and kind == "index file")
        assert boot.running() == "b"
        if not killed:
            assert found == after
            return
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("how", ["damage", "remove"])
def test_what_is_damaged_or_gone_is_said_with_a_hint(loader: Loader, how: str) -> None:
    spoil = getattr(loader, how)
    if spoil is None:
        return  # in memory
    spoil()
    for ask in (loader.boot.target, loader.boot.promise, loader.boot.tries_left, loader.boot.confirm):
        with pytest.raises(OtaflowError, match=r"cannot (use|read)") as caught:
            ask()
        assert caught.value.hint


@pytest.mark.parametrize("promise", ["a\nb", 'a"', "a\\", "ä", "x" * 200], ids=repr)
def test_a_promise_that_boot_loaders_cannot_read(loader: Loader, promise: str) -> None:
    if loader.damage is None:
        return
    with pytest.raises(OtaflowError, match="cannot promise"):
        loader.boot.set_target("b", promise, trial=True)
    assert state(loader.boot) == ("a", "", None)


def test_without_a_boot_loader_nothing_is_on_trial(tmp_path: Path) -> None:
    slots = {name: tmp_path / name for name in ("a", "b")}
    boot = IndexFile(tmp_path / "index.json", tmp_path / "running", slots=slots, boots=Boots(tmp_path / "boots"))
    boot.set_target("a", "")
    assert boot.running() == "a"
    boot.set_target("b", "new", trial=True)
    assert state(boot) == ("b", "new", None)
    assert boot.restart()
    assert boot.running() == "b"
