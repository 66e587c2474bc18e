"""deployments/initrd/otaflow-switch in real shells, and whether platform/index_file.py and it read the same."""

import contextlib
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from switch import SWITCH, choose_root, choose_slot

from otaflow.config import parse
from otaflow.errors import OtaflowError
from otaflow.platform.boots import Boots
from otaflow.platform.device import Device
from otaflow.platform.index import Index, counter_of, read_count, read_index, write_count, write_index
from otaflow.platform.index_file import IndexFile
from otaflow.platform.running import find_mounted_slot
from otaflow.platform.setup import init_device

SHELLS = {"dash": ("dash",), "busybox": ("busybox", "sh"), "bash": ("bash", "--posix")}
ON_TRIAL = Index("b", "generation 2", 3, "a")
NAMES = ("a", "b")


@pytest.fixture(params=list(SHELLS))
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    words = SHELLS[request.param]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    return words


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Where the index file will be, beside slots with a system in each."""
    for name in NAMES:
        (tmp_path / "slots" / name / "etc").mkdir(parents=True)
    return tmp_path / "index.json"


def run(shell: tuple[str, ...], index: Path, **environment: str) -> tuple[int, str, str]:
    command = [*shell, SWITCH, index, index.parent / "slots", *NAMES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("content", "counter", "started", "counted", "said"),
    [
        (Index("a", ""), None, "a", None, "trusted"),
        (Index("b", "x y"), None, "b", None, "trusted"),
        (Index("b", "x"), "x 7\n", "b", "x 7\n", "trusted"),
        (ON_TRIAL, None, "b", "generation 2 1\n", "try 1 of 3"),
        (ON_TRIAL, "generation 2 0\n", "b", "generation 2 1\n", "try 1 of 3"),
        (ON_TRIAL, "generation 2 2\n", "b", "generation 2 3\n", "try 3 of 3"),
        (ON_TRIAL, "generation 2 3\n", "a", "generation 2 4\n", "no tries left"),
        (ON_TRIAL, "generation 2 4\n", "a", "generation 2 4\n", "no tries left"),
        (ON_TRIAL, "generation 1 3\n", "b", "generation 2 1\n", "try 1 of 3"),
        (ON_TRIAL, "generation 2 2", "b", "generation 2 3\n", "try 3 of 3"),
        (ON_TRIAL, "generation 2 x\n", "b", "generation 2 1\n", "try 1 of 3"),
        (ON_TRIAL, "generation 2 08\n", "b", "generation 2 1\n", "try 1 of 3"),
        (ON_TRIAL, "generation 2 99999999999999999999\n", "b", "generation 2 1\n", "try 1 of 3"),
        (ON_TRIAL, "", "b", "generation 2 1\n", "try 1 of 3"),
        (Index("a", "", 1, "b"), None, "a", " 1\n", "try 1 of 1"),
        (Index("a", "", 1, "b"), " 1\n", "b", " 2\n", "no tries left"),
        (None, None, "a", None, "no index file"),
        ("", None, "a", None, "damaged"),
        ("\0\0\0", None, "a", None, "damaged"),
        ("[]", None, "a", None, "damaged"),
        ('{\n "format": 2,\n "boot": "b"\n}', None, "a", None, "format is '2'"),
        ('{\n "format": 1,\n "boot": "b",\n "promise": "",\n "checksum": "0"\n}', None, "a", None, "checksum is wrong"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_started(
    shell: tuple[str, ...],
    index: Path,
    content: Index | str | None,
    counter: str | None,
    started: str,
    counted: str | None,
    said: str,
) -> None:
    if isinstance(content, Index):
        write_index(index, content)
    elif content is not None:
        index.write_text(content)
    if counter is not None:
        counter_of(index).write_text(counter)
    status, slot, why = run(shell, index)
    assert (status, slot) == (0, f"{started}\n")
    assert said in why
    assert (counter_of(index).read_text() if counter_of(index).exists() else None) == counted
    assert not list(index.parent.glob("*.new"))
    if isinstance(content, Index):
        assert read_index(index, NAMES) == content


@pytest.mark.parametrize(
    ("there", "content", "started", "counted"),
    [
        ("a", Index("b", ""), "a", 0),
        ("a", ON_TRIAL, "a", 0),
        ("b", Index("b", "x", 3, "a"), "b", 1),
        ("b", None, "b", 0),
        ("", Index("b", ""), None, 0),
        ("", None, None, 0),
    ],
    ids=lambda value: str(value)[:30] or "none",
)
def test_slots_that_are_not_there(
    shell: tuple[str, ...], index: Path, there: str, content: Index | None, started: str | None, counted: int
) -> None:
    for name in set(NAMES) - set(there):
        (index.parent / "slots" / name / "etc").rmdir()
    if content:
        write_index(index, content)
    status, slot, _ = run(shell, index)
    assert (status, slot) == ((0, f"{started}\n") if started else (1, ""))
    assert not content or read_count(index, content.promise) == counted


def test_a_start_that_cannot_be_counted_is_not_made(shell: tuple[str, ...], index: Path) -> None:
    write_index(index, ON_TRIAL)
    (index.parent / "index.json.tries.new").mkdir()  # in the way
    started = index.parent / "run" / "otaflow" / "started"
    status, slot, why = run(shell, index, OTAFLOW_STARTED=str(started))
    assert (status, slot) == (0, "a\n")
    assert "cannot count" in why
    # otaflow knows it all the same: it must not take the running slot for the spare one
    detect = partial(find_mounted_slot, started=started)
    slots = {name: index.parent / "slots" / name for name in NAMES}
    boots = Boots(index.parent / "boots.json")
    boot = IndexFile(index, index.parent / "running.json", slots=slots, boots=boots, restart=["true"], detect=detect)
    assert (boot.running(), boot.target(), boot.tries_left()) == ("a", "b", 3)


@pytest.mark.parametrize("there", ["a", "b", "ab"])
def test_the_switch_says_what_it_started(shell: tuple[str, ...], index: Path, there: str) -> None:
    for name in set(NAMES) - set(there):
        (index.parent / "slots" / name / "etc").rmdir()
    started = index.parent / "run" / "started"
    assert run(shell, index, OTAFLOW_STARTED=str(started))[:2] == (0, f"{there[0]}\n")
    assert started.read_text() == f"{there[0]}\n"


def test_without_sha256sum_the_index_is_believed(index: Path, tmp_path: Path) -> None:
    write_index(index, ON_TRIAL)
    index.write_text(index.read_text().replace('"boot": "b"', '"boot": "a"'))
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sync", "mv"):
        (programs / name).symlink_to(str(shutil.which(name)))
    dash = (str(shutil.which("dash")),)
    assert run(dash, index)[1] == "a\n"
    assert not counter_of(index).exists(), "its checksum is wrong"
    assert "on trial" in run(dash, index, PATH=str(programs))[2]


@pytest.mark.parametrize("position", range(0, 260, 3))
def test_a_damaged_byte_leads_to_the_first_slot_or_changes_nothing(index: Path, position: int) -> None:
    """The checksum is over the values: a comma that is damaged the switch may overlook, a value never."""
    write_index(index, ON_TRIAL)
    content = bytearray(index.read_bytes())
    content[position % len(content)] ^= 0x11
    index.write_bytes(content)
    started = choose_slot(index, index.parent / "slots")
    assert started in NAMES
    assert read_count(index, ON_TRIAL.promise) == (1 if started == "b" else 0)
    with contextlib.suppress(OtaflowError):
        assert read_index(index, NAMES) == ON_TRIAL
        assert started == "b"


def test_both_agree_on_which_slot_runs(index: Path, tmp_path: Path) -> None:
    """Nothing but the index and its counter tells it, where the root file system is none of the slots."""
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("0")
    slots = {name: tmp_path / "slots" / name for name in NAMES}

    def boot() -> IndexFile:
        boots = Boots(tmp_path / "boots.json", boot_id)
        return IndexFile(
            index, tmp_path / "running.json", slots=slots, boots=boots, restart=["true"], detect=lambda _: None
        )

    boot().set_target("a", "")
    boot().set_target("b", "x", trial=True)
    for number in range(1, 7):
        started = choose_slot(index, tmp_path / "slots")
        boot_id.write_text(str(number))
        assert boot().running() == started == ("b" if number <= 3 else "a")


def test_a_counter_is_written_as_the_switch_writes_it(index: Path) -> None:
    write_index(index, ON_TRIAL)
    choose_slot(index, index.parent / "slots")
    by_the_switch = counter_of(index).read_bytes()
    write_count(index, ON_TRIAL.promise, 1)
    assert counter_of(index).read_bytes() == by_the_switch


def test_the_root_that_a_machine_of_the_tests_starts_from(tmp_path: Path) -> None:
    values = {"device": {"name": "one", "model": "m", "root": str(tmp_path)}, "boot": {"restart": ["true"]}}
    device = Device(parse(values, tmp_path / "otaflow.toml"))
    (tmp_path / "system" / "etc").mkdir(parents=True)
    init_device(device, system=tmp_path / "system", name="s", version="1.0.0", configuration=None)
    assert choose_root(device) == tmp_path / "slots" / "a"
    device.boot.set_target("b", "x", trial=True)
    roots = [choose_root(device).name for _ in range(4)]
    assert (roots, device.boot.tries_left()) == (["b", "b", "b", "a"], 0)


# --- in initramfs-tools -------------------------------------------------------------------------------------------

INITRD = SWITCH.parent


@pytest.mark.parametrize("script", ["otaflow-switch", "hooks/otaflow", "scripts/local-premount/otaflow"])
def test_the_scripts_are_posix(shell: tuple[str, ...], script: str) -> None:
    assert os.access(INITRD / script, os.X_OK)
    subprocess.run([*shell, "-n", INITRD / script], check=True)


@pytest.mark.btrfs
@pytest.mark.parametrize(
    ("content", "flags", "chosen"),
    [
        (Index("a", ""), "", "-o subvol=/slots/a"),
        (ON_TRIAL, "-o compress=zstd", "-o compress=zstd,subvol=/slots/b"),
        (None, "", "-o subvol=/slots/a"),
    ],
    ids=["trusted", "on trial", "no index"],
)
def test_the_script_of_initramfs_tools(
    btrfs_top: Path, tmp_path: Path, content: Index | None, flags: str, chosen: str
) -> None:
    """On the btrfs of the tests, mounted once more, with the script's folders in the test's own."""
    top = tmp_path / "top"
    device = subprocess.run(
        ["findmnt", "-n", "-o", "SOURCE", btrfs_top], check=True, capture_output=True, text=True
    ).stdout.strip()
    inside = btrfs_top / tmp_path.name
    for name in NAMES:
        (inside / "slots" / name / "etc").mkdir(parents=True)
    if content:
        write_index(inside / "index.json", content)
    (tmp_path / "functions").write_text('log_warning_msg() { echo "$@"; }\npanic() { exit 9; }\n')
    settings = f"INDEX=/{tmp_path.name}/index.json\nSLOTS=/{tmp_path.name}/slots\nFIRST=a\nSECOND=b\n"
    (tmp_path / "otaflow-initrd.conf").write_text(settings)
    text = (INITRD / "scripts/local-premount/otaflow").read_text()
    places = {
        ". /scripts/functions": f". {tmp_path}/functions",
        ". /etc/otaflow-initrd.conf": f". {tmp_path}/otaflow-initrd.conf",
        "/bin/otaflow-switch": str(SWITCH),
        "top=/run/otaflow-top": f"top={top}",
        "=/run/otaflow/trial": f"={tmp_path}/run/trial",
        "=/run/otaflow/started": f"={tmp_path}/run/started",
        "/conf/param.conf": f"{tmp_path}/param.conf",
    }
    for here, there in places.items():
        assert text.count(here) == 1, here
        text = text.replace(here, there)
    environment = {**os.environ, "ROOT": device, **({"ROOTFLAGS": flags} if flags else {})}
    try:
        subprocess.run(["dash", "-c", text], check=True, env=environment)
        written = subprocess.run(
            ["dash", "-c", f'. {tmp_path}/param.conf; echo "$ROOTFLAGS"'], check=True, capture_output=True, text=True
        ).stdout
        assert written == chosen.replace("/slots", f"/{tmp_path.name}/slots") + "\n"
        assert not top.exists()
        assert (tmp_path / "run/trial").exists() == (content == ON_TRIAL)
        assert (tmp_path / "run/started").read_text().strip() == chosen[-1]
        if content == ON_TRIAL:
            assert read_count(inside / "index.json", ON_TRIAL.promise) == 1
    finally:
        shutil.rmtree(inside)
