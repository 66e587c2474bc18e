"""The disk of a virtual machine: GRUB, its environment, and a device of otaflow with two slots that boot.

    image = make_disk(find_parts(), "btrfs")     # no test changes it

MBR and two partitions: an ext4 with GRUB's menu and environment (/boot/loader inside), and a btrfs with everything else
(its top is /device inside): `slots/a` and `slots/b`, the device's folder, and `programs`, otaflow and its Python
packages, beside the slots. Or four partitions, all ext4: the slots are the last two. The system is 1.0.0; `updates`
holds updates of it (UPDATES), each in a local repository package of its own, and the program that installs one.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

from vm_parts import PROJECT, Parts, compile_all, fingerprint, keep, run

SECTOR = 512
LOADER_AT, LOADER_SIZE = 2048 * SECTOR, 65536 * SECTOR
DEVICE_AT = LOADER_AT + LOADER_SIZE
DISK_SIZE = 3 * 2**30
SLOT_SIZE = 512 * 2**20
SLOTS_AT = {"a": DISK_SIZE - 2 * SLOT_SIZE, "b": DISK_SIZE - SLOT_SIZE}
"""Where the slots are that are partitions."""
KINDS = ("btrfs", "partitions")
NAME = "machine"
GRUB = Path("/usr/lib/grub/i386-pc")
GRUB_MODULES = (
    *("part_msdos", "part_gpt", "ext2", "btrfs", "biosdisk", "normal", "configfile", "search", "search_label"),
    *("loadenv", "serial", "terminal", "test", "echo", "linux", "reboot", "sleep", "halt"),
)
CONFIG = """
[device]
name = "machine"
model = "pc"
root = "{root}"

[slots]
kind = "{kind}"
{devices}
[boot]
kind = "grub"
grubenv = "{loader}/grub/grubenv"
restart = ["systemctl", "reboot"]
tries = 2

[services]
settle_seconds = 1

[sources.official]
url = "https://updates.invalid"
root = "/etc/otaflow/root.json"
"""
AGENT = """
[Unit]
Description=the commands of a test
DefaultDependencies=no
After=local-fs.target
Conflicts=shutdown.target
Before=shutdown.target
[Service]
ExecStart=/usr/local/bin/vm_agent.py
Restart=always
[Install]
WantedBy=sysinit.target
"""
HOLD = "/device/updates/hold"
"""While this file is there, no system is verified: a test cuts the power before that, however fast the machine is."""
# Verifying needs no Prefect either, whose loading takes this processor half a minute
RESUME = f"""
[Service]
ExecStart=
ExecStart=/bin/sh -c 'while [ -e {HOLD} ]; do sleep 0.1; done'
ExecStart=/usr/local/bin/otaflow recover
"""
# The kernel has stopped, and nothing of it restarts: only the hardware's watchdog is left. It is said in the kernel's
# log, which is written at once: what a terminal was given may be lost.
HANG = """
[Unit]
DefaultDependencies=no
Before=otaflow-recover.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo "<2>the kernel stops" >/dev/kmsg; cd /proc; echo 0 >sys/kernel/panic; echo c >sysrq-trigger'
"""
ENABLED = {
    "sysinit.target": ("vm-agent.service", "otaflow-recover.service", "otaflow-trial.timer"),
    "multi-user.target": ("otaflow-resume.service",),
}
# what is wanted at boot, of all that /usr wants; the rest is masked: it costs time
WANTED = {
    *("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"),
    *("systemd-journal-flush.service", "systemd-tmpfiles-setup.service"),
}
# The package's program gets the new version's name; what else each one does to the slot
UPDATES = {
    "good": ("1.1.0", ""),
    "no-kernel": ("1.2.0", 'rm "$OTAFLOW_SLOT/vmlinuz"'),
    "no-init": ("1.3.0", 'rm "$OTAFLOW_SLOT/sbin/init"'),
    "unhealthy": ("1.4.0", 'echo "the engine does not start" >"$OTAFLOW_SLOT/etc/sick"'),
    "hangs": ("1.5.0", 'ln -s ../hang.service "$OTAFLOW_SLOT/etc/systemd/system/sysinit.target.wants/"'),
}
METADATA = """
format: 1
name: {name}
kind: system
version: {version}
update_number: {number}
health:
  - name: the engine runs
    command: [usr/local/bin/check-engine]
    tries: 1
"""
PROGRAM = """#!/bin/sh
set -e
echo "$OTAFLOW_VERSION_TO" >"$OTAFLOW_SLOT/etc/version"
echo "version = $OTAFLOW_VERSION_TO" >"$OTAFLOW_ETC/version"
cp -a "$OTAFLOW_ASSETS/." "$OTAFLOW_SLOT/opt/"
"""
CHECK = """#!/bin/sh
test ! -e /etc/sick || { cat /etc/sick; exit 1; }
"""


def make_disk(parts: Parts, kind: str) -> Path:
    """The disk with slots of this kind (KINDS) and the project as it is now; made when that has changed since."""
    package = (PROJECT / "src" / "otaflow").resolve()
    shipped = [path for path in sorted(package.rglob("*")) if path.is_dir() and path.is_symlink()]
    sources = sorted(path for top in (package, *shipped) for path in top.resolve().rglob("*") if path.is_file())
    sources = [path for path in sources if "__pycache__" not in path.parts]
    mine = [Path(__file__).with_name(name) for name in ("vm_disk.py", "vm_agent.py", "vm_install.py")]
    folder = keep(f"{kind}-disk", fingerprint(*sources, *mine, more=str(parts)), lambda new: _make(new, parts, kind))
    return folder / "disk.raw"


def kind_of(image: Path) -> str:
    """What the slots are on that disk."""
    with image.open("rb") as disk:
        disk.seek(446 + 2 * 16)
        return "partitions" if any(disk.read(16)) else "btrfs"


def grub_menu(kind: str) -> str:
    """The menu that is shipped, with what a device may change in it changed: it is seen on the serial console."""
    menu = (PROJECT / "deployments/grub/grub.cfg").read_text()
    for before, after in (
        (r"^# (serial .*)$", r"\1"),
        ("^set timeout=.*$", "set timeout=0"),
        # a processor that gets little time fails the check of the timer: Linux panics then
        ("panic=10", "panic=1 console=ttyS0 no_timer_check"),
        ("^set otaflow_partitions= ", f"set otaflow_partitions={'otaflow-' if kind == 'partitions' else ''} "),
    ):
        menu, count = re.subn(before, after, menu, flags=re.MULTILINE)
        assert count == 1, f"grub.cfg has no {before}"
    return menu


@contextmanager
def mounted(image: Path, folder: Path, *options: str) -> Iterator[tuple[Path, Path]]:
    """The disk's file systems, at two folders in `folder`: the boot loader's, and all else, with `slots/a` and `b`."""
    loader, top = folder / "loader", folder / "top"
    for path in (loader, top):
        path.mkdir(exist_ok=True)
    with ExitStack() as stack:

        def mount(file_system: str, start: int, end: int, point: Path) -> None:
            at = ["loop", "noatime", f"offset={start}", f"sizelimit={end - start}", *options]
            run(["mount", "-t", file_system, "-o", ",".join(at), image, point])
            stack.callback(run, ["umount", point])

        mount("ext4", LOADER_AT, DEVICE_AT, loader)
        if kind_of(image) == "btrfs":
            mount("btrfs", DEVICE_AT, DISK_SIZE, top)
        else:
            mount("ext4", DEVICE_AT, SLOTS_AT["a"], top)
            for slot, start in SLOTS_AT.items():
                if (point := top / "slots" / slot).is_dir():
                    mount("ext4", start, start + SLOT_SIZE, point)
        yield loader, top


def _make(folder: Path, parts: Parts, kind: str) -> None:
    repository = _make_packages(folder)
    image = folder / "disk.raw"
    with image.open("wb") as file:
        file.truncate(DISK_SIZE)
    _format(image, kind)
    _install_grub(image, folder)
    with mounted(image, folder) as (loader, top):
        (loader / "grub").mkdir()
        (loader / "grub/grub.cfg").write_text(grub_menu(kind))
        run(["grub-editenv", loader / "grub/grubenv", "create"])
        (top / "programs").mkdir()
        _copy_programs(top / "programs", parts)
        (top / "updates").mkdir()
        for path in [*folder.glob("*.nsr"), Path(__file__).with_name("vm_install.py")]:
            shutil.copy(path, top / "updates")
        system = folder / "system"
        run(["cp", "-a", "--reflink=auto", parts.system, system])
        _finish_system(system, parts, repository, kind)
        _init_device(image, system, loader, top)
        shutil.rmtree(system)
    for name in ("loader", "top"):
        (folder / name).rmdir()


def _format(image: Path, kind: str) -> None:
    ends = [LOADER_AT, DEVICE_AT, *(SLOTS_AT.values() if kind == "partitions" else ()), DISK_SIZE]
    places = list(pairwise(ends))
    lines = [f"start={start // SECTOR},size={(end - start) // SECTOR},type=83\n" for start, end in places]
    run(["sfdisk", "--quiet", image], input="label: dos\n" + "".join(lines))
    labels = ("loader", "otaflow", "otaflow-a", "otaflow-b")
    for label, (start, end) in zip(labels, places, strict=False):
        if label != "otaflow" or kind != "btrfs":
            options = ["-q", "-L", label, "-E", f"offset={start},lazy_itable_init=0"]
            run(["mkfs.ext4", *options, image, f"{(end - start) // 1024}k"])
    if kind == "btrfs":
        _format_btrfs(image)


def _format_btrfs(image: Path) -> None:
    """mkfs.btrfs knows no offset: it formats a file of its own, which is copied into its place."""
    slots = image.with_name("slots.raw")
    with slots.open("wb") as file:
        file.truncate(DISK_SIZE - DEVICE_AT)
    run(["mkfs.btrfs", "--quiet", "--label", "otaflow", slots])
    place = ["bs=1M", f"seek={DEVICE_AT // 2**20}", "conv=notrunc,sparse"]
    run(["dd", "status=none", f"if={slots}", f"of={image}", *place])
    slots.unlink()


def _install_grub(image: Path, folder: Path) -> None:
    """Its first sector, and its core behind it: without a BIOS and a device in /dev, grub-install would not do."""
    core = folder / "core.img"
    run(["grub-mkimage", "-O", "i386-pc", "-d", GRUB, "-p", "(hd0,msdos1)/grub", "-o", core, *GRUB_MODULES])
    assert core.stat().st_size < LOADER_AT - SECTOR
    with image.open("r+b") as file:
        file.write((GRUB / "boot.img").read_bytes()[:440])
        file.seek(SECTOR)
        file.write(core.read_bytes())
    core.unlink()


def _copy_programs(folder: Path, parts: Parts) -> None:
    """otaflow as an installed package, and what it depends on."""
    run(["cp", "-a", f"{parts.packages}/.", folder])
    run(["cp", "-rL", PROJECT / "src" / "otaflow", folder / "otaflow"])
    for cache in (folder / "otaflow").rglob("__pycache__"):
        shutil.rmtree(cache)
    compile_all(parts.system, folder / "otaflow")


def _finish_system(system: Path, parts: Parts, repository: Path, kind: str) -> None:
    """Make a plain Debian the first version of a device's system."""
    for folder in ("device", "boot/loader", "etc/otaflow", "var/lib/otaflow", "var/log/journal"):
        (system / folder).mkdir(parents=True, exist_ok=True)
    for name in ("vmlinuz", "initrd.img"):
        (system / name).unlink(missing_ok=True)
    shutil.copy(parts.kernel, system / "vmlinuz")
    shutil.copy(parts.initrd, system / "initrd.img")
    (system / "etc/otaflow.toml").write_text(_configure(kind, "/device", "/boot/loader", ["/dev/vda3", "/dev/vda4"]))
    shutil.copy(repository / "public/metadata/1.root.json", system / "etc/otaflow/root.json")
    (system / "etc/version").write_text("1.0.0\n")
    (system / "etc/hostname").write_text(f"{NAME}\n")
    (system / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (system / "etc/fstab").write_text("")
    python = next(system.glob("usr/lib/python3/dist-packages"))
    (python / "otaflow.pth").write_text("/device/programs\n")
    _write_program(system / "usr/local/bin/otaflow", "#!/usr/bin/python3\nfrom otaflow.cli import main\n\nmain()\n")
    _write_program(system / "usr/local/bin/check-engine", CHECK)
    _write_program(system / "usr/local/bin/vm_agent.py", Path(__file__).with_name("vm_agent.py").read_text())
    _arrange_units(system)


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _arrange_units(system: Path) -> None:
    """The units that are shipped, and of Debian's only what a boot needs."""
    units, theirs = system / "etc/systemd/system", system / "usr/lib/systemd/system"
    shutil.rmtree(units)
    units.mkdir()
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    for link in theirs.glob("*.wants/*"):
        if link.name not in WANTED and not (units / link.name).is_symlink():
            (units / link.name).symlink_to("/dev/null")
    generators = system / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for generator in system.glob("usr/lib/systemd/system-generators/*"):
        (generators / generator.name).symlink_to("/dev/null")
    (system / "etc/systemd/system.conf.d").mkdir()
    for path in (PROJECT / "deployments").glob("otaflow-*"):
        if path.suffix in (".service", ".timer"):
            shutil.copy(path, units)
        elif path.suffix == ".conf":
            shutil.copy(path, system / "etc/systemd/system.conf.d")
    (units / "vm-agent.service").write_text(AGENT)
    (units / "hang.service").write_text(HANG)
    (units / "otaflow-resume.service.d").mkdir()
    (units / "otaflow-resume.service.d/without-prefect.conf").write_text(RESUME)
    for target, names in ENABLED.items():
        (units / f"{target}.wants").mkdir()
        for name in names:
            if (units / name).exists():
                (units / f"{target}.wants" / name).symlink_to(f"../{name}")


def _configure(kind: str, root: str, loader: str, devices: list[str]) -> str:
    return CONFIG.format(
        kind=kind, root=root, loader=loader, devices=f"devices = {devices}\n" if kind == "partitions" else ""
    )


def _init_device(image: Path, system: Path, loader: Path, top: Path) -> None:
    """As `otaflow device init` does, on a machine that is off."""
    from otaflow.config import load
    from otaflow.platform.device import Device
    from otaflow.platform.partitions import PartitionSlots
    from otaflow.platform.setup import init_device

    config = image.with_name("otaflow.toml")
    with ExitStack() as stack:
        devices = []
        for start in SLOTS_AT.values() if kind_of(image) == "partitions" else ():
            place = [f"--offset={start}", f"--sizelimit={SLOT_SIZE}"]
            devices.append(run(["losetup", "--find", "--show", *place, image]).strip())
            stack.callback(run, ["losetup", "--detach", devices[-1]])
        config.write_text(_configure(kind_of(image), str(top), str(loader), devices))
        device = Device(load(config))
        init_device(device, system=system, name=NAME, version="1.0.0", configuration=None)
        if isinstance(device.slots, PartitionSlots):
            device.slots.close()
    config.unlink()


def _make_packages(folder: Path) -> Path:
    """Each update signed in a local repository package of its own, all with the same root; returns the repository."""
    otaflow = [sys.executable, "-c", "from otaflow.cli import main; main()"]
    made = folder / "repository"
    run([*otaflow, "repo", "init", made])
    for number, (name, (version, change)) in enumerate(UPDATES.items(), 1):
        source, repository = folder / "package", folder / f"repository-{name}"
        (source / "assets").mkdir(parents=True)
        (source / "assets" / "filling").write_bytes(os.urandom(2**20))
        (source / "metadata").write_text(METADATA.format(name=NAME, version=version, number=number))
        _write_program(source / "update", f"{PROGRAM}{change}\n")
        run([*otaflow, "package", "build", source, "-o", folder / f"{name}.nsu"])
        shutil.copytree(made, repository)
        run([*otaflow, "repo", "publish", repository, folder / f"{name}.nsu"])
        run([*otaflow, "repo", "export", repository, folder / f"{name}.nsr"])
        shutil.rmtree(source)
        shutil.rmtree(repository)
        (folder / f"{name}.nsu").unlink()
    return made


if __name__ == "__main__":
    from vm_parts import find_parts

    for kind in KINDS:
        print(make_disk(find_parts(), kind))
