"""A whole machine in qemu: BIOS, GRUB, kernel, systemd, a hardware watchdog, and a plug that can be pulled.

    machine = VirtualMachine(disk, folder)
    machine.switch_on()
    machine.check("otaflow status --json")
    machine.reboot()                # returns the slot that came up
    machine.cut_power()             # what the machine had not flushed is lost
    machine.switch_on()

What it writes goes to an overlay in `folder`, or with `log` to a copy of the disk, with every write and flush in order
in that log (write_log.py reads it). The processor is emulated (TCG): ten times slower than this one, and the same
everywhere. qemu dies with the process that made it.
"""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vm_agent import PORT

from otaflow.platform.run import clean_environment

PATIENCE = 1800.0
"""Seconds for whatever should happen at all: nothing is measured, and a machine with other work is slow."""
MEMORY_MB = 768
SNAPSHOT = "booted"


class Result(NamedTuple):
    """How a command inside ended: its exit status, its output and errors as one text."""

    status: int
    output: str


class VirtualMachine:
    """One machine, off. `overlay` is one to begin with, of the same disk; with a snapshot in it, it can go on there."""

    def __init__(self, disk: Path, folder: Path, *, overlay: Path | None = None, log: Path | None = None) -> None:
        self.folder = folder
        self.console = folder / "console"
        self.log = log
        self.drive = folder / ("disk.raw" if log else "disk.qcow2")
        if log:
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", disk, self.drive], check=True)
            log.touch()
        elif overlay:
            shutil.copy(overlay, self.drive)
        else:
            create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", self.drive]
            subprocess.run(create, check=True)
        self.slot = ""
        """The slot that runs, as far as we have heard."""
        self.boot_id = ""
        self._qemu: subprocess.Popen[bytes] | None = None
        self._port = self._monitor = socket.socket()
        self._buffers: dict[socket.socket, bytes] = {}

    # --- the switch, and the plug --------------------------------------------------------------------------------

    def switch_on(self, *, wait: bool = True, snapshot: bool = False) -> str:
        """Start it, and return the slot that came up; with `wait=False` return at once. `snapshot`: where it was."""
        assert self._qemu is None, "it is on already"
        command = [*self._command(), *(["-loadvm", SNAPSHOT] if snapshot else [])]
        with (self.folder / "qemu.log").open("ab") as errors:
            # the terminal's interrupt ends the test, which ends qemu
            self._qemu = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=clean_environment({}),
                start_new_session=True,
            )
        self._port, self._monitor = self._connect("port"), self._connect("monitor")
        self._receive(self._monitor, PATIENCE)
        self._ask_monitor("qmp_capabilities")
        if snapshot:
            self.slot = self.run("sed 's/.*otaflow.slot=//;s/ .*//' /proc/cmdline").output.strip()
            return self.slot
        return self.wait_up() if wait else ""

    def cut_power(self) -> None:
        """Pull the plug. What qemu was told to keep is kept: all of it in an overlay, what was flushed by a log."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None
            self._port.close()
            self._monitor.close()
            self._buffers.clear()

    def reboot(self) -> str:
        """`systemctl reboot`; returns the slot that came up."""
        self.send("systemctl reboot")
        return self.wait_up()

    def wait_up(self, timeout: float = PATIENCE) -> str:
        """Return the slot that comes up next."""
        deadline = time.monotonic() + timeout
        while True:
            values = self._receive(self._port, deadline - time.monotonic())
            if "slot" in values:
                self.slot, self.boot_id = values["slot"], values["boot_id"]
                return self.slot

    def save(self) -> None:
        """Keep the machine as it is now, memory included, in its overlay: `switch_on(snapshot=True)` goes on there."""
        said = self._ask_monitor("human-monitor-command", {"command-line": f"savevm {SNAPSHOT}"})
        assert not said, said

    # --- what goes on in it ----------------------------------------------------------------------------------------

    def send(self, command: str) -> None:
        """Have the shell inside do it, and wait for nothing."""
        self._port.sendall(json.dumps({"command": command}).encode() + b"\n")

    def run(self, command: str, timeout: float = PATIENCE) -> Result:
        """Have the shell inside do it, as root."""
        self.send(command)
        return self.wait_end(timeout)

    def wait_end(self, timeout: float = PATIENCE) -> Result:
        """Wait for the end of what was sent."""
        values = self._receive(self._port, timeout)
        assert "status" in values, f"it was started anew, in slot {values.get('slot')}\n{self.tail()}"
        return Result(values["status"], values["output"])

    def check(self, command: str, timeout: float = PATIENCE) -> str:
        """The output of a command that has to end well."""
        status, output = self.run(command, timeout)
        assert status == 0, f"{command}: status {status}: {output}"
        return output

    def json(self, command: str) -> Any:
        """What a command prints, which is JSON."""
        return json.loads(self.check(command))

    def wait_idle(self) -> None:
        """Return when a boot is over, and with it what otaflow does in it: that may be to restart the machine."""
        while True:
            self.send("systemctl is-system-running --wait")
            values = self._receive(self._port, PATIENCE)
            if "slot" in values:
                self.slot, self.boot_id = values["slot"], values["boot_id"]
            elif values["output"].strip() in ("running", "degraded"):
                return
            else:  # it is going down
                self.wait_up()

    def wait_active(self, unit: str) -> None:
        """Return when the unit has been started, in a boot that goes on."""
        self.check(f"until systemctl is-active --quiet {unit}; do sleep 0.1; done")

    def starts(self) -> list[str]:
        """What GRUB said of the slots that it started, or did not."""
        # a line may have been written in pieces, with the terminal's commands between them
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.console.read_text(errors="replace"))
        return [line.strip() for line in re.findall(r"otaflow: (slot [^\r\n]*|there is nothing[^\r\n]*)", text)]

    def wait_for(self, text: str, *, count: int = 1, timeout: float = PATIENCE) -> None:
        """Wait until the console has shown `text` so often."""
        self.wait_until(lambda: self.console.read_text(errors="replace").count(text) >= count, timeout=timeout)

    def wait_until(self, condition: Callable[[], bool], *, timeout: float = PATIENCE) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.tail()
            assert self._qemu is not None
            assert self._qemu.poll() is None, (self.folder / "qemu.log").read_text()
            time.sleep(0.02)

    def tail(self) -> str:
        """The console's last lines."""
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-25:]) if self.console.exists() else ""

    # --- inside ------------------------------------------------------------------------------------------------------

    def _command(self) -> list[str]:
        command = ["qemu-system-x86_64", "-accel", "tcg,tb-size=256", "-m", str(MEMORY_MB)]
        command += ["-display", "none", "-nodefaults", "-device", "i6300esb", "-action", "watchdog=reset"]
        command += ["-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console"]
        command += ["-device", "virtio-serial-pci", "-device", f"virtserialport,chardev=port,name={PORT}"]
        command += ["-chardev", f"socket,id=port,path={self.folder}/port,server=on,wait=off"]
        command += ["-qmp", f"unix:{self.folder}/monitor,server=on,wait=off", "-device", "virtio-rng-pci"]
        if self.log:
            disk = f"driver=file,filename={self.drive},node-name=disk,discard=unmap"
            log = f"driver=file,filename={self.log},node-name=log"
            command += ["-blockdev", disk, "-blockdev", log]
            command += ["-blockdev", "driver=blklogwrites,file=disk,log=log,node-name=drive"]
        else:
            command += ["-blockdev", f"driver=qcow2,node-name=drive,file.driver=file,file.filename={self.drive}"]
        return [*command, "-device", "virtio-blk-pci,drive=drive"]

    def _connect(self, name: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)

        def connected() -> bool:
            with suppress(OSError):
                connection.connect(str(self.folder / name))
                return True
            return False

        self.wait_until(connected)
        self._buffers[connection] = b""
        return connection

    def _receive(self, connection: socket.socket, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffers[connection]:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = connection.recv(65536)
            except TimeoutError:
                raise AssertionError(f"nothing was heard for {timeout:.0f} s\n{self.tail()}") from None
            assert data, f"qemu has ended: {(self.folder / 'qemu.log').read_text()}"
            self._buffers[connection] += data
        line, self._buffers[connection] = self._buffers[connection].split(b"\n", 1)
        values: dict[str, Any] = json.loads(line)
        return values

    def _ask_monitor(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n")
        while True:
            values = self._receive(self._monitor, PATIENCE)
            assert "error" not in values, values
            if "return" in values:
                return values["return"]
