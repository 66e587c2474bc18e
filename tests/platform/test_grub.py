"""platform/grub.py and grubenv.py beyond the contract, and deployments/grub/grub.cfg in GRUB's own code."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from grub import GRUB_CFG, GrubMachine, call
from without_journal import CHECKPOINTS

from otaflow.errors import BootTargetDamaged, OtaflowError
from otaflow.platform import ext4, grubenv
from otaflow.platform.grub import GrubBoot

OTHERS = {"saved_entry": "gnulinux", "odd": "back\\slash = two\nlines\\"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An environment as grub-editenv makes it, with variables of others."""
    if shutil.which("grub-editenv") is None:
        pytest.skip("grub-editenv is not installed (Debian: grub-common)")
    made = tmp_path / "grubenv"
    call("grub-editenv", made, "create")
    call("grub-editenv", made, "set", *(f"{name}={value}" for name, value in OTHERS.items()))
    return made


def make_boot(path: Path, **options: int) -> GrubBoot:
    slots = {name: path.parent / name for name in ("a", "b")}
    return GrubBoot(path, slots=slots, restart=["true"], detect=lambda _: "a", **options)


def read_by_grub(path: Path) -> str:
    return call("grub-editenv", path, "list")


# --- the environment ----------------------------------------------------------------------------------------------


def test_variables_of_others_stay_and_grub_reads_ours(path: Path) -> None:
    others, before = read_by_grub(path), path.read_bytes()
    boot = make_boot(path, tries=2)
    boot.set_target("b", "generation 2", trial=True)
    assert len(path.read_bytes()) == len(before) == 1024
    ours = "otaflow_tries=2\notaflow_target=b\notaflow_fallback=a\notaflow_promise=generation 2\n"
    assert read_by_grub(path) == others + ours
    assert grubenv.read_block(before) == OTHERS
    boot.confirm()
    assert read_by_grub(path) == others + ours.removeprefix("otaflow_tries=2\n")


def test_what_grub_editenv_changes_is_read(path: Path) -> None:
    boot = make_boot(path)
    boot.set_target("b", "", trial=True)
    call("grub-editenv", path, "set", "otaflow_tries=1", "odd=x\\y\nz")
    assert boot.tries_left() == 1
    assert grubenv.read_block(path.read_bytes())["odd"] == "x\\y\nz"


def test_counting_down_changes_one_byte(path: Path) -> None:
    """GRUB writes in place: a power cut then must have nothing to tear."""
    make_boot(path, tries=9).set_target("b", "x", trial=True)
    before = path.read_bytes()
    call("grub-editenv", path, "set", "otaflow_tries=8")
    assert sum(one != two for one, two in zip(before, path.read_bytes(), strict=True)) == 1


def test_a_full_environment(path: Path) -> None:
    boot = make_boot(path)
    boot.set_target("a", "")
    room = path.read_bytes().count(b"#") - 100
    call("grub-editenv", path, "set", f"others={'x' * room}")
    before = path.read_bytes()
    with pytest.raises(OtaflowError, match=r"cannot change GRUB's environment .*: its 1024 bytes are full") as caught:
        boot.set_target("b", "p" * 100, trial=True)
    assert "unset" in caught.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "does not begin"),
        (bytes(1024), "does not begin"),
        (b"#" * 1024, "does not begin"),
        (grubenv.HEADER + bytes(1000), "its end"),
        (grubenv.HEADER + b"otaflow_target=b", "its end"),
    ],
    ids=["empty", "zeros", "filling", "zeros behind", "cut off"],
)
def test_a_damaged_environment_is_told_and_made_anew_with_the_target(path: Path, content: bytes, why: str) -> None:
    path.write_bytes(content)
    boot = make_boot(path)
    for ask in (boot.target, boot.promise, boot.tries_left, boot.confirm, boot.give_try_back):
        with pytest.raises(BootTargetDamaged, match=f"cannot use GRUB's environment .*{why}") as caught:
            ask()
        assert "grub-editenv" in caught.value.hint
    assert path.read_bytes() == content
    boot.set_target("b", "x")
    assert (boot.target(), boot.promise(), boot.tries_left()) == ("b", "x", None)
    assert "otaflow_fallback=a" in call("grub-editenv", path, "list")


def test_the_hint_for_a_damaged_environment_mends_it(path: Path) -> None:
    path.write_bytes(b"")
    boot = make_boot(path)
    call("grub-editenv", path, "create")
    with pytest.raises(OtaflowError, match="cannot tell which slot starts next") as caught:
        boot.target()
    assert "set otaflow_target=SLOT" in caught.value.hint
    call("grub-editenv", path, "set", "otaflow_target=a")
    assert (boot.target(), boot.promise(), boot.tries_left()) == ("a", "", None)


def test_it_is_not_made_where_its_file_system_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(OtaflowError, match="there is none") as caught:
        make_boot(tmp_path / "grubenv").set_target("a", "")
    assert "mounted" in caught.value.hint
    assert not (tmp_path / "grubenv").exists()


def test_which_slot_runs_is_not_guessed(path: Path) -> None:
    slots = {name: path.parent / name for name in ("a", "b")}
    boot = GrubBoot(path, slots=slots, restart=["true"], detect=lambda _: None)
    with pytest.raises(OtaflowError, match="cannot tell which slot runs") as caught:
        boot.running()
    assert "otaflow.slot" in caught.value.hint


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An ext4 with a journal, as an image, and where it is mounted."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("mounting needs root and loop devices")
    image, top = tmp_path / "image", tmp_path / "top"
    top.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    call("mkfs.ext4", "-q", image)
    call("mount", "-o", "loop", image, top)
    try:
        yield image, top
    finally:
        subprocess.run(["umount", top], check=True)


@pytest.mark.parametrize("ioctl", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_grub_sees_the_change_though_it_does_not_read_the_journal(
    mounted: tuple[Path, Path], ioctl: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """debugfs reads an ext4 as GRUB does: as if there were no journal. The file system stays mounted."""
    monkeypatch.setattr(ext4, "EXT4_IOC_CHECKPOINT", ioctl)
    image, top = mounted
    path = top / "grubenv"
    path.write_bytes(grubenv.empty_block())
    for number, slot in enumerate("abab"):
        make_boot(path).set_target(slot, str(number), trial=True)
        seen = call("debugfs", "-R", "cat /grubenv", image).encode()
        assert seen == path.read_bytes()


# --- the menu script ----------------------------------------------------------------------------------------------


def test_grub_accepts_the_menu_script() -> None:
    if shutil.which("grub-script-check") is None:
        pytest.skip("grub-script-check is not installed (Debian: grub-common)")
    call("grub-script-check", GRUB_CFG)


@pytest.mark.parametrize(
    ("variables", "kernels", "started", "left"),
    [
        ("target=a fallback=b", "ab", "a trusted", None),
        ("target=b fallback=a", "ab", "b trusted", None),
        ("target=b fallback=a tries=9", "ab", "b on trial", 8),
        ("target=b fallback=a tries=3", "ab", "b on trial", 2),
        ("target=b fallback=a tries=1", "ab", "b on trial", 0),
        ("target=b fallback=a tries=0", "ab", "a fallback", 0),
        ("target=a fallback=b tries=0", "ab", "b fallback", 0),
        ("target=b fallback=a tries=x", "ab", "a fallback", 0),
        ("target=b fallback=a tries=3", "a", "a fallback", 3),
        ("target=b fallback=a tries=3", "ab-", "a fallback", 2),
        ("target=b fallback=a", "a", "a fallback", None),
        ("target=b fallback=a", "ab-", "a fallback", None),
        ("target=b fallback=a tries=0", "b", "b no environment", 0),
        ("", "ab", "a no environment", None),
        ("", "b", "b no environment", None),
        ("target=c fallback=a", "ab", "a fallback", None),
        ("target=c", "ab", "a no environment", None),
        ("damaged", "ab", "a no environment", None),
        ("damaged", "b", "b no environment", None),
        ("missing", "ab", "a no environment", None),
        ("target=b fallback=a", "", "nothing", None),
    ],
    ids=lambda value: str(value) or "no",
)
def test_what_grub_starts(tmp_path: Path, variables: str, kernels: str, started: str, left: int | None) -> None:
    """`kernels`: the slots that have one; `-`: slot b has one that cannot be loaded."""
    machine = GrubMachine(tmp_path)
    prepare(machine, variables, kernels)
    announced = check_start(machine, started)
    if started == "nothing":
        return
    slot, _, why = started.partition(" ")
    flags = f"otaflow.slot={slot}" + (" otaflow.trial=1" if why == "on trial" else "")
    line = f"LINUX root=LABEL=otaflow rootflags=subvol=/slots/{slot} {flags} rw quiet panic=10"
    assert f"{line} INITRD (hd1)/slots/{slot}/initrd.img BOOT" in announced
    if variables not in ("missing", "damaged", ""):
        assert make_boot(machine.environment).tries_left() == left


@pytest.mark.parametrize(
    ("variables", "kernels", "missing", "started"),
    [
        ("target=b fallback=a tries=3", "ab", "", "b on trial"),
        ("target=b fallback=a tries=0", "ab", "", "a fallback"),
        ("target=b fallback=a tries=3", "a", "", "a fallback"),
        ("target=b fallback=a tries=3", "ab", "b", "a fallback"),
        ("target=b fallback=a", "ab-", "", "a fallback"),
        ("target=b fallback=a", "ab", "", "b trusted"),
        ("target=a fallback=b", "ab", "a", "b fallback"),
        ("damaged", "ab", "", "a no environment"),
        ("damaged", "ab", "a", "b no environment"),
        ("target=b fallback=a", "", "", "nothing"),
        ("target=b fallback=a", "ab", "ab", "nothing"),
    ],
    ids=lambda value: str(value) or "no",
)
def test_slots_that_are_partitions(tmp_path: Path, variables: str, kernels: str, missing: str, started: str) -> None:
    """As above; `missing`: whose partition is not there, or has another label."""
    machine = GrubMachine(tmp_path, partitions=True)
    machine.missing.update(missing)
    prepare(machine, variables, kernels)
    announced = check_start(machine, started)
    if started != "nothing":
        slot, _, why = started.partition(" ")
        disk = "(hd2)" if slot == "b" and not missing else "(hd1)"
        trial = " otaflow.trial=1" if why == "on trial" else ""
        line = f"LINUX root=LABEL=otaflow-{slot} otaflow.slot={slot}{trial} rw quiet panic=10"
        assert f"{line} INITRD {disk}/initrd.img BOOT" in announced


def prepare(machine: GrubMachine, variables: str, kernels: str) -> None:
    for name in "ab":
        if name not in kernels:
            (machine.slots / name / "boot" / "vmlinuz-6.1").unlink()
    if "-" in kernels:
        (machine.slots / "b" / "vmlinuz.bad").touch()
    if variables == "missing":
        machine.environment.unlink()
    elif variables == "damaged":
        machine.environment.write_bytes(bytes(1024))
    elif variables:
        call("grub-editenv", machine.environment, "set", *(f"otaflow_{one}" for one in variables.split()))


def check_start(machine: GrubMachine, started: str) -> str:
    """Switch it on: `started` is the slot and why, or nothing. What GRUB said then."""
    said = machine.start()
    if started == "nothing":
        assert "there is nothing to start" in said
        assert "BOOT" not in said
        return ""
    slot, _, why = started.partition(" ")
    announced = said[said.rindex("otaflow: slot") :]
    assert announced.startswith(f"otaflow: slot {slot} ({why}"), said
    return announced


def test_the_adapter_and_grub_together(tmp_path: Path) -> None:
    """A trial to its end: each start is counted by GRUB's own code, in the file that the adapter wrote."""
    machine = GrubMachine(tmp_path)
    call("grub-editenv", machine.environment, "set", "saved_entry=0")
    boot = make_boot(machine.environment)
    boot.set_target("b", "new", trial=True)
    for left in (2, 1):
        assert "otaflow: slot b (on trial" in machine.start()
        assert boot.tries_left() == left
    boot.give_try_back()
    for left in (1, 0):
        assert "otaflow: slot b (on trial" in machine.start()
        assert boot.tries_left() == left
    assert "otaflow: slot a (fallback" in machine.start()
    assert (boot.target(), boot.promise(), boot.tries_left()) == ("b", "new", 0)
    boot.set_target("a", "old")
    assert "otaflow: slot a (trusted" in machine.start()
    boot.set_target("b", "new", trial=True)
    boot.confirm()
    assert "otaflow: slot b (trusted" in machine.start()
    assert "saved_entry=0" in read_by_grub(machine.environment)
