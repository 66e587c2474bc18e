"""platform/u_boot.py beyond the contract, and deployments/u-boot/boot.cmd in U-Boot's own code."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from boot_loaders import make_u_boot_environment
from u_boot import DEVICE, DISK_ID, PARTITIONS, UBootMachine

from otaflow.errors import OtaflowError
from otaflow.platform.u_boot import UBootBoot


@pytest.fixture
def config(tmp_path: Path) -> Path:
    if shutil.which("fw_setenv") is None:
        pytest.skip("fw_setenv is not installed (Debian: libubootenv-tool)")
    return make_u_boot_environment(tmp_path)


def make_boot(config: Path, tries: int = 3) -> UBootBoot:
    slots = {name: config.parent / name for name in ("a", "b")}
    return UBootBoot(config, slots=slots, restart=["true"], tries=tries, detect=lambda _: "a")


def read_copies(config: Path) -> list[bytes]:
    content = (config.parent / "uboot.env").read_bytes()
    return [content[:0x2000], content[0x2000:]]


def test_one_change_writes_one_of_the_two_copies(config: Path) -> None:
    boot = make_boot(config)
    changes = [
        lambda: boot.set_target("a", "one"),
        lambda: boot.set_target("b", "two", trial=True),
        boot.confirm,
    ]
    for change in changes:
        before = read_copies(config)
        change()
        assert sum(one != two for one, two in zip(before, read_copies(config), strict=True)) == 1


def test_what_u_boot_finds(config: Path) -> None:
    make_boot(config, tries=5).set_target("b", "generation 2", trial=True)
    newest = next(copy for copy in read_copies(config) if b"otaflow" in copy)
    variables = set(newest[5:].partition(b"\0\0")[0].decode().split("\0"))
    ours = {"otaflow_target=b", "otaflow_fallback=a", "otaflow_promise=generation 2"}
    assert variables == ours | {"upgrade_available=1", "bootcount=0", "bootlimit=5", "bootdelay=2"}


def test_one_damaged_copy_is_none(config: Path) -> None:
    boot = make_boot(config)
    boot.set_target("a", "one")
    boot.set_target("b", "two", trial=True)
    path = config.parent / "uboot.env"
    content = bytearray(path.read_bytes())
    half = 0 if b"otaflow_target=b" in content[:0x2000] else 0x2000
    content[half + 100] ^= 1  # as a power cut while it was written
    path.write_bytes(content)
    assert (boot.target(), boot.promise(), boot.tries_left()) == ("a", "one", None)


@pytest.mark.parametrize("how", ["config", "programs"])
def test_what_is_missing_is_said(config: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "config":
        config.unlink()
    else:
        monkeypatch.setattr("otaflow.platform.run.shutil.which", lambda *_, **__: None)
    with pytest.raises(OtaflowError, match=r"cannot read U-Boot's environment by .*fw_env.config") as caught:
        make_boot(config).set_target("b", "x")
    assert ("offsets" if how == "config" else "apt-get install") in caught.value.hint


# --- boot.cmd -----------------------------------------------------------------------------------------------------

PLACES = {"both": "ab", "only-a": "a", "only-b": "b", "none": ""}
WITHOUT_KERNEL, MISSING = 3, 9
"""Partitions of the second disk, whose first and second have one."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UBootMachine]:
    folder = tmp_path_factory.mktemp("u-boot")
    for place, names in PLACES.items():
        (folder / "disk" / place).mkdir(parents=True)
        for name in names:
            fill(folder / "disk" / place / name)
    parts = [folder / name for name in ("first", "second", "third")]
    for part in parts:
        fill(part)
    (parts[WITHOUT_KERNEL - 1] / "vmlinuz").unlink()
    with UBootMachine(folder, folder / "disk", parts) as made:
        made.set({"otaflow_device": DEVICE, "otaflow_boot": "echo BOOT"})
        yield made


def fill(tree: Path) -> None:
    (tree / "boot").mkdir(parents=True)
    (tree / "boot" / "vmlinuz-6.1").write_text("kernel")
    (tree / "vmlinuz").symlink_to("boot/vmlinuz-6.1")
    (tree / "initrd.img").write_text("initrd")


@pytest.mark.parametrize(
    ("target", "count", "place", "tried"),
    [
        ("a", None, "both", "abab"),
        ("b", None, "both", "baab"),
        ("b", 1, "both", "baab"),
        ("b", 3, "both", "baab"),
        ("b", 4, "both", "aab"),
        ("a", 4, "both", "bab"),
        ("b", 12, "both", "aab"),
        ("b", None, "only-a", "aa"),
        ("b", 1, "only-a", "aa"),
        ("b", 4, "only-b", "b"),
        ("", None, "both", "ab"),
        ("", None, "only-b", "b"),
        ("c", None, "both", "ab"),
        ("b", None, "none", ""),
    ],
    ids=lambda value: str(value) or "none",
)
def test_the_order_in_which_u_boot_tries(
    machine: UBootMachine, target: str, count: int | None, place: str, tried: str
) -> None:
    """`count`: bootcount, of 3, where the target is on trial. No kernel ever starts here, so that all are tried."""
    choose(machine, target, count)
    machine.set({"otaflow_slots": f"/{place}"})
    said = machine.start()
    assert find_started(said) == tried, said
    assert "there is nothing to start" in said
    if tried:
        trial = " otaflow.trial=1" if count in (1, 3) and tried[-1] == target else ""
        flags = f"otaflow.slot={tried[-1]}{trial}"
        line = f"root=LABEL=otaflow rootflags=subvol=/{place}/{tried[-1]} {flags} rw quiet panic=10"
        assert f"bootargs={line}\n" in machine.run("printenv bootargs")


@pytest.mark.parametrize(
    ("target", "count", "parts", "tried"),
    [
        ("b", None, (1, 2), "baab"),
        ("b", 1, (1, 2), "baab"),
        ("b", 4, (1, 2), "aab"),
        ("b", 1, (1, WITHOUT_KERNEL), "aa"),
        ("b", None, (1, MISSING), "aa"),
        ("", None, (MISSING, 2), "b"),
        ("a", None, (2, 1), "abab"),
    ],
    ids=lambda value: str(value) or "none",
)
def test_slots_that_are_partitions(
    machine: UBootMachine, target: str, count: int | None, parts: tuple[int, int], tried: str
) -> None:
    choose(machine, target, count)
    machine.set({f"otaflow_device_{slot}": f"{PARTITIONS}:{part}" for slot, part in zip("ab", parts, strict=True)})
    try:
        said = machine.start()
    finally:
        machine.set({"otaflow_device_a": "", "otaflow_device_b": ""})
    assert find_started(said) == tried, said
    assert "there is nothing to start" in said
    part = parts["ab".index(tried[-1])]
    trial = " otaflow.trial=1" if count == 1 and tried[-1] == target else ""
    line = f"root=PARTUUID={DISK_ID}-{part:02} rootwait=30 otaflow.slot={tried[-1]}{trial} rw quiet panic=10"
    assert f"bootargs={line}\n" in machine.run("printenv bootargs")


def choose(machine: UBootMachine, target: str, count: int | None) -> None:
    machine.set({"otaflow_target": target, "otaflow_fallback": {"a": "b", "b": "a"}.get(target, "")})
    machine.set({"upgrade_available": "0" if count is None else "1", "bootcount": str(count or 0), "bootlimit": "3"})


def find_started(said: str) -> str:
    """The slots whose kernel and initial RAM disk were loaded, in their order."""
    return "".join(re.findall(r"otaflow: slot (.)\n(?:.*\n)*?BOOT 2000000 3000000:6 ", said))
