"""What the disk of a virtual machine is made of, made once and kept: Debian's system, a kernel, an initrd, programs.

    parts = find_parts()

They are in the folder $OTAFLOW_VM_CACHE, else ~/.cache/otaflow-vm; `make test-vm` makes them when they are missing or
this file, the pins or the bounds changed. That needs root, the packages of `.ci/packages vm`, and Debian's mirror: the
one that this machine's apt is configured with.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).parents[2]
SYSTEM = ("systemd", "systemd-sysv", "python3", "btrfs-progs", "kmod", "tar", "util-linux")
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "crc32c-intel", "btrfs", "ext4", "i6300esb")
# A full backup is made of a whole slot, by a processor ten times slower than this one: what no boot needs goes.
LEFT_OUT = (
    *(
        "usr/share/man",
        "usr/share/doc",
        "usr/share/info",
        "usr/share/locale",
        "usr/share/zoneinfo",
        "usr/share/lintian",
    ),
    *("usr/share/perl", "usr/share/perl5", "usr/lib/x86_64-linux-gnu/perl", "usr/lib/x86_64-linux-gnu/perl-base"),
    *("usr/share/bash-completion", "usr/share/zsh", "usr/share/keyrings", "usr/share/common-licenses", "usr/share/gcc"),
    *("usr/lib/x86_64-linux-gnu/gconv", "usr/lib/apt", "usr/lib/dpkg", "usr/lib/systemd/catalog", "usr/lib/udev"),
    *("var/lib/apt", "var/lib/dpkg", "var/cache", "usr/lib/modules", "boot", "usr/lib/python3.11/pydoc_data"),
)
WHEELS = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 16, -1)] + ["manylinux2014_x86_64", "linux_x86_64"]
UNUSED = ("prefect/server/ui", "prefect/server/ui-v2", "pip", "setuptools")


class Parts(NamedTuple):
    """A Debian system as a folder, its kernel, an initrd for it, and otaflow's dependencies for its Python."""

    system: Path
    kernel: Path
    initrd: Path
    packages: Path


def cache_folder() -> Path:
    """Where everything that is made is kept; it may be removed at any time."""
    return Path(os.environ.get("OTAFLOW_VM_CACHE") or Path.home() / ".cache" / "otaflow-vm")


def find_parts() -> Parts:
    """The parts, made if they are not there: that takes some minutes."""
    system = keep("system", fingerprint(Path(__file__), Path(__file__).with_name("vm_initrd.sh")), _make_system)
    wanted = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    more = "\n".join([*wanted, *WHEELS, *UNUSED, python_version(system / "system")])
    pins = fingerprint(PROJECT / "constraints.txt", more=more)
    packages = keep("packages", pins, lambda folder: _make_packages(folder, system / "system", wanted))
    return Parts(system / "system", system / "vmlinuz", system / "initrd", packages)


def run(command: Sequence[str | Path], **options: Any) -> str:
    """The output of a program, which has to end well."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def fingerprint(*files: Path, more: str = "") -> str:
    """A name for what is made of these files."""
    return hashlib.sha256(b"\0".join([*(file.read_bytes() for file in files), more.encode()])).hexdigest()[:16]


def keep(name: str, print_: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name and fingerprint in the cache; made, whole or not at all, where it is not there."""
    top = cache_folder()
    folder = top / f"{name}-{print_}"
    if folder.is_dir():
        return folder
    top.mkdir(parents=True, exist_ok=True)
    for old in top.glob(f"{name}-*"):
        shutil.rmtree(old)
    print(f"making {folder}", flush=True)
    new = Path(tempfile.mkdtemp(prefix=f"{name}-", suffix=".new", dir=top))
    new.chmod(0o755)
    make(new)
    new.rename(folder)
    return folder


def _make_system(folder: Path) -> None:
    """`system`, `vmlinuz` and `initrd`, of the Debian that this machine is."""
    system = folder / "system"
    system.mkdir()
    sources = [path for path in Path("/etc/apt").glob("sources.list*/*") if path.suffix in (".list", ".sources")]
    sources += [path for path in [Path("/etc/apt/sources.list")] if path.exists() and path.read_text().strip()]
    proxies = re.findall(r"^(Acquire::.*Proxy.*)$", run(["apt-config", "dump"]), re.MULTILINE | re.IGNORECASE)
    suite = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", f"--include={','.join(SYSTEM)}"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
    run([*command, *(f"--aptopt={line}" for line in proxies), suite["VERSION_CODENAME"], folder / "tar", *sources])
    run(["tar", "--extract", "--preserve-permissions", "--file", folder / "tar", "--directory", system])
    (folder / "tar").unlink()
    kernel = _fetch_kernel(folder)
    shutil.copy(next(kernel.glob("boot/vmlinuz-*")), folder / "vmlinuz")
    _make_initrd(folder, kernel)
    shutil.rmtree(kernel)
    for name in LEFT_OUT:
        shutil.rmtree(system / name, ignore_errors=True)
    (system / "boot").mkdir()


def _fetch_kernel(folder: Path) -> Path:
    """Debian's kernel unpacked, not installed: an initrd of ours loads the few modules that are needed."""
    package = re.search(r"Depends: (linux-image-[0-9]\S+)", run(["apt-cache", "depends", "linux-image-amd64"]))
    assert package, "apt knows no linux-image-amd64: apt-get update"
    run(["apt-get", "download", "-q", package[1]], cwd=folder)
    deb = next(folder.glob("linux-image-*.deb"))
    run(["dpkg-deb", "-x", deb, folder / "kernel"])
    deb.unlink()
    return folder / "kernel"


def _make_initrd(folder: Path, kernel: Path) -> None:
    """busybox, the modules in the order of their loading, and vm_initrd.sh."""
    tree = folder / "tree"
    for name in ("bin", "dev", "proc", "sys", "newroot", "modules"):
        (tree / name).mkdir(parents=True)
    _copy_program("busybox", tree)
    version = next(kernel.glob("lib/modules/*")).name
    (kernel / "usr").mkdir(exist_ok=True)
    (kernel / "usr" / "lib").symlink_to("../lib")
    run(["depmod", "-b", kernel, version])
    order: list[str] = []
    for module in MODULES:
        for line in run(["modprobe", "-d", kernel, "-S", version, "--show-depends", module]).splitlines():
            if line.startswith("insmod") and (path := Path(line.split()[1])).name not in order:
                shutil.copy(path, tree / "modules")
                order.append(path.name)
    (tree / "modules" / "order").write_text("\n".join(order) + "\n")
    shutil.copy(Path(__file__).with_name("vm_initrd.sh"), tree / "init")
    (tree / "init").chmod(0o755)
    run(["sh", "-c", 'cd "$1" && find . | cpio -o -H newc --quiet | gzip -1 >"$2"', "sh", tree, folder / "initrd"])
    shutil.rmtree(tree)


def _copy_program(name: str, tree: Path) -> None:
    """The program as `bin/NAME`, and the libraries that it needs: Debian has a static busybox and one that is not."""
    program = Path(shutil.which(name) or name)
    shutil.copy(program, tree / "bin" / name)
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    for library in re.findall(r"(/\S+) \(0x", linked):
        (tree / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, tree / library.lstrip("/"))


def python_version(system: Path) -> str:
    """The version of the Python in there, as 3.11."""
    return os.readlink(system / "usr/bin/python3").removeprefix("python")


def _make_packages(folder: Path, system: Path, wanted: list[str]) -> None:
    """otaflow's dependencies for the Python of `system`, which need not be this one, and compiled by it."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    platforms = [f"--platform={name}" for name in WHEELS]
    version = [f"--python-version={python_version(system)}", "--only-binary=:all:"]
    run([*pip, *version, *platforms, "-c", PROJECT / "constraints.txt", "--target", folder, *wanted])
    for name in UNUSED:
        shutil.rmtree(folder / name, ignore_errors=True)
    compile_all(system, folder)


def compile_all(system: Path, folder: Path) -> None:
    """Compile every module below `folder` with the Python of `system`; no time stamps are looked at afterwards."""
    script = """
    mount --bind "$2" "$1/mnt" && mount -t proc proc "$1/proc"
    chroot "$1" python3 -m compileall -q -j 2 --invalidation-mode unchecked-hash /mnt >/dev/null || :
    """
    run(["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", system, folder])


if __name__ == "__main__":
    print(*find_parts(), sep="\n")
