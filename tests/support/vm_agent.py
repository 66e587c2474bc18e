#!/usr/bin/python3
"""Runs in a virtual machine, from as early as it can be: commands come, and their ends go, by a virtio-serial port.

A line is JSON: {"command": …} in, {"status": …, "output": …} out. The first one out, at each start, is
{"slot": …, "boot_id": …}. Standard library alone.
"""

import json
import os
import subprocess
import time
from pathlib import Path

PORT = "otaflow.test"


def open_port() -> int:
    """The port's file descriptor; udev, which would give it a name, does not run here."""
    while True:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == PORT:
                return os.open(f"/dev/{name.parent.name}", os.O_RDWR)
        time.sleep(0.05)


def running_slot() -> str:
    words = Path("/proc/cmdline").read_text().split()
    return next((word.partition("=")[2] for word in words if word.startswith("otaflow.slot=")), "")


def main() -> None:
    port = open_port()

    def send(values: dict[str, object]) -> None:
        data = json.dumps(values).encode() + b"\n"
        while data:
            data = data[os.write(port, data) :]

    send({"slot": running_slot(), "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip()})
    buffer = b""
    while True:
        data = os.read(port, 65536)
        if not data:  # nobody listens outside
            time.sleep(0.05)
        buffer += data
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            done = subprocess.run(
                ["sh", "-c", json.loads(line)["command"]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            send({"status": done.returncode, "output": done.stdout.decode(errors="replace")[-200_000:]})


if __name__ == "__main__":
    main()
