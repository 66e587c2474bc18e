"""What a boot loader sees of slots that are ext4 partitions: it reads them without their journals.

Linux replays a journal when it mounts the partition after a power cut; GRUB and U-Boot have loaded the kernel by then.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from recording_disk import Parts

from otaflow.platform.ext4 import EXT4_IOC_CHECKPOINT

CHECKPOINTS = {"Linux": EXT4_IOC_CHECKPOINT, "Linux before 5.14": 0x400466FF}
"""The number of ext4's ioctl, and one that no ext4 knows."""
Seen = dict[str, dict[str, str]]
"""Of each slot each path, and what is there."""


def read_slots(image: Path, parts: Parts, names: tuple[str, ...], folder: Path) -> Seen:
    """The slots `names` on the last parts of a disk that nobody has mounted since the power cut. Needs root."""
    found: Seen = {}
    for name, (start, _) in zip(names, parts[-len(names) :] if parts else (), strict=bool(parts)):
        target = folder / f"seen-{name}"
        target.mkdir()
        look = ["debugfs", "-c", "-R", f"rdump / {target}", f"{image}?offset={start}"]
        said = subprocess.run(look, capture_output=True, text=True, check=False)
        found[name] = read_tree(target) or {"nothing": said.stdout + said.stderr}
        shutil.rmtree(target)
    return found


def read_tree(top: Path) -> dict[str, str]:
    """Its files' contents and its links, by their paths; what mkfs makes is left out."""
    found = {}
    for folder, folders, files in os.walk(top):
        if "lost+found" in folders:
            folders.remove("lost+found")
        for name in [*folders, *files]:
            path = Path(folder, name)
            place = str(path.relative_to(top))
            if path.is_symlink():
                found[place] = os.readlink(path)
            elif path.is_file():
                found[place] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def unlike(seen: dict[str, str], tree: Path) -> list[str]:
    """The paths at which a boot loader sees something else than Linux does."""
    real = read_tree(tree)
    return sorted(place for place in seen.keys() | real.keys() if seen.get(place) != real.get(place))
