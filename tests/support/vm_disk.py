"""The disk of a virtual machine: GRUB, its environment, and a device of otaflow with two btrfs slots that boot.

    image = make_disk(find_parts())     # no test changes it

MBR and two partitions: an ext4 with GRUB's menu and environment (/boot/loader inside), and a btrfs with everything else
(its top is /device inside): `slots/a` and `slots/b`, the device's folder, and `programs`, otaflow and its Python
packages, beside the slots. The system is 1.0.0; `updates` holds updates of it (UPDATES), each in a local repository
package of its own, and the program that installs one.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vm_parts import PROJECT, Parts, compile_all, fingerprint, keep, run

SECTOR = 512
LOADER_AT, LOADER_SIZE = 2048 * SECTOR, 65536 * SECTOR
SLOTS_AT = LOADER_AT + LOADER_SIZE
DISK_SIZE = 3 * 2**30
NAME, MODEL = "machine", "pc"
GRUB = Path("/usr/lib/grub/i386-pc")
GRUB_MODULES = (
    *("part_msdos", "part_gpt", "ext2", "btrfs", "biosdisk", "normal", "configfile", "search", "search_label"),
    *("loadenv", "serial", "terminal", "test", "echo", "linux", "reboot", "sleep", "halt"),
)
CONFIG = f"""
[device]
name = "{NAME}"
model = "{MODEL}"
root = "/device"

[slots]
kind = "btrfs"

[boot]
kind = "grub"
grubenv = "/boot/loader/grub/grubenv"
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


def make_disk(parts: Parts) -> Path:
    """The disk with the project as it is now; made when the project has changed since."""
    package = (PROJECT / "src" / "otaflow").resolve()
    shipped = [path for path in sorted(package.rglob("*")) if path.is_dir() and path.is_symlink()]
    sources = sorted(path for top in (package, *shipped) for path in top.resolve().rglob("*") if path.is_file())
    sources = [path for path in sources if "__pycache__" not in path.parts]
    mine = [Path(__file__).with_name(name) for name in ("vm_disk.py", "vm_agent.py", "vm_install.py")]
    folder = keep("disk", fingerprint(*sources, *mine, more=str(parts)), lambda new: _make(new, parts))
    return folder / "disk.raw"


def grub_menu() -> str:
    """The menu that is shipped, with what a device may change in it changed: it is seen on the serial console."""
    menu = (PROJECT / "deployments/grub/grub.cfg").read_text()
    for before, after in (
        (r"^# (serial .*)$", r"\1"),
        ("^set timeout=.*$", "set timeout=0"),
        # a processor that gets little time fails the check of the timer: Linux panics then
        ("panic=10", "panic=1 console=ttyS0 no_timer_check"),
    ):
        menu, count = re.subn(before, after, menu, flags=re.MULTILINE)
        assert count == 1, f"grub.cfg has no {before}"
    return menu


@contextmanager
def mounted(image: Path, folder: Path, *options: str) -> Iterator[tuple[Path, Path]]:
    """The disk's two file systems, at two folders in `folder`: the boot loader's, and the slots'."""
    loader, top = folder / "loader", folder / "top"
    for path in (loader, top):
        path.mkdir(exist_ok=True)
    more = "".join(f",{option}" for option in options)
    at = f"loop,noatime,offset={LOADER_AT},sizelimit={LOADER_SIZE}{more}"
    run(["mount", "-t", "ext4", "-o", at, image, loader])
    try:
        run(["mount", "-t", "btrfs", "-o", f"loop,noatime,offset={SLOTS_AT}{more}", image, top])
        try:
            yield loader, top
        finally:
            run(["umount", top])
    finally:
        run(["umount", loader])


def _make(folder: Path, parts: Parts) -> None:
    repository = _make_packages(folder)
    image = folder / "disk.raw"
    with image.open("wb") as file:
        file.truncate(DISK_SIZE)
    _format(image)
    _install_grub(image, folder)
    with mounted(image, folder) as (loader, top):
        (loader / "grub").mkdir()
        (loader / "grub/grub.cfg").write_text(grub_menu())
        run(["grub-editenv", loader / "grub/grubenv", "create"])
        _copy_programs(top / "programs", parts)
        (top / "updates").mkdir()
        for path in [*folder.glob("*.nsr"), Path(__file__).with_name("vm_install.py")]:
            shutil.copy(path, top / "updates")
        system = folder / "system"
        run(["cp", "-a", "--reflink=auto", parts.system, system])
        _finish_system(system, parts, repository)
        _init_device(folder, system, loader, top)
        shutil.rmtree(system)
    for name in ("loader", "top"):
        (folder / name).rmdir()


def _format(image: Path) -> None:
    table = f"label: dos\nstart={LOADER_AT // SECTOR},size={LOADER_SIZE // SECTOR},type=83,bootable\n"
    run(["sfdisk", "--quiet", image], input=f"{table}start={SLOTS_AT // SECTOR},type=83\n")
    make_loader = ["mkfs.ext4", "-q", "-L", "loader", "-E", f"offset={LOADER_AT}", image, f"{LOADER_SIZE // 1024}k"]
    run(make_loader)
    # mkfs.btrfs knows no offset: it formats a file of its own, which is copied into its place
    slots = image.with_name("slots.raw")
    with slots.open("wb") as file:
        file.truncate(DISK_SIZE - SLOTS_AT)
    run(["mkfs.btrfs", "--quiet", "--label", "otaflow", slots])
    place = ["bs=1M", f"seek={SLOTS_AT // 2**20}", "conv=notrunc,sparse"]
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
    run(["btrfs", "subvolume", "create", folder])
    run(["cp", "-a", f"{parts.packages}/.", folder])
    run(["cp", "-rL", PROJECT / "src" / "otaflow", folder / "otaflow"])
    for cache in (folder / "otaflow").rglob("__pycache__"):
        shutil.rmtree(cache)
    compile_all(parts.system, folder / "otaflow")


def _finish_system(system: Path, parts: Parts, repository: Path) -> None:
    """Make a plain Debian the first version of a device's system."""
    for folder in ("device", "boot/loader", "etc/otaflow", "var/lib/otaflow", "var/log/journal"):
        (system / folder).mkdir(parents=True, exist_ok=True)
    for name in ("vmlinuz", "initrd.img"):
        (system / name).unlink(missing_ok=True)
    shutil.copy(parts.kernel, system / "vmlinuz")
    shutil.copy(parts.initrd, system / "initrd.img")
    (system / "etc/otaflow.toml").write_text(CONFIG)
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


def _init_device(folder: Path, system: Path, loader: Path, top: Path) -> None:
    """As `otaflow device init` does, on a machine that is off."""
    from otaflow.config import load
    from otaflow.platform.device import Device
    from otaflow.platform.setup import init_device

    config = folder / "otaflow.toml"
    values = CONFIG.replace('"/device"', f'"{top}"').replace("/boot/loader", str(loader))
    config.write_text(values)
    init_device(Device(load(config)), system=system, name=NAME, version="1.0.0", configuration=None)
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

    print(make_disk(find_parts()))
