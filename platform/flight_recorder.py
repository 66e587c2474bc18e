"""The flight recorder: what systemd's journal had of a boot in which a trial failed, kept outside the slots.

One file for each session beside its processing log, `nvm/logs/SESSION.boot`: sections of text, each under a line
`== TITLE ==`, each with the newest lines that have room. The newest files stay.
"""

import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from otaflow.errors import CommandFailed
from otaflow.files import write_atomic
from otaflow.platform.run import run

log = logging.getLogger(__name__)

SECTION_BYTES = 128 * 1024
SECTIONS = 4
FILES = 50
LINES = 2000
SECONDS = 20
JOURNALS = ("var/log/journal", "run/log/journal")
BOOT = re.compile(r"\s*-?\d+\s+([0-9a-f]{32})\b")
"""A line of `journalctl --list-boots`."""

Lines = Iterable[str]


class FlightRecorder:
    """The files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, session: str) -> Path:
        """Where the file of a session is."""
        return self._folder / f"{session}.boot"

    def keep(self, session: str, title: str, read: Callable[[], Lines]) -> None:
        """Add what `read` gives under `title`, once, durably. Never raises: nothing that happened depends on it."""
        try:
            sections = _split(self.read(session))
            if title in sections:
                return
            sections[title] = _newest(read())
            kept = list(sections.items())[-SECTIONS:]
            text = "".join(f"== {name} ==\n{body}" for name, body in kept)
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path(session), text.encode(), 0o600)
            for old in sorted(self._folder.glob("*.boot"), key=lambda path: path.stat().st_mtime)[:-FILES]:
                old.unlink(missing_ok=True)
        except (OSError, ValueError, CommandFailed) as error:
            log.warning("cannot keep the log of %s: %s", title, error)

    def read(self, session: str) -> str:
        """What was kept of a session; "" for nothing."""
        try:
            return self.path(session).read_text(errors="replace")
        except FileNotFoundError:
            return ""


def read_journal(boot: int | str = 0, *, folder: Path | None = None, lines: int = LINES) -> list[str]:
    """The newest `lines` of a boot: 0 the present one, -1 the one before, or a boot's id.

    Of this system, or of the journal in `folder`. Raises CommandFailed.
    """
    return _call_journalctl([f"--boot={boot}", "--output=short-iso", f"--lines={lines}"], folder)


def read_slot_journal(slot: Path, running: Path = Path("/")) -> list[str]:
    """The newest lines of the last boot of which the tree `slot` has a journal, and `running` has none.

    The slot was a copy of the running system, journal included. They are told apart by the boots' ids: a device may
    have no clock. Raises CommandFailed.
    """
    folder = _find_folder(slot)
    if folder is None:
        return [f"there is no journal in {slot}: the slot did not come far enough, or keeps it elsewhere"]
    other = _find_folder(running)
    try:
        own = own_boots(_list_boots(folder), _list_boots(other) if other else [])
    except CommandFailed as error:
        return [*read_journal(folder=folder), f"(this may be a boot of the former system: {error})"]
    if not own:
        return [f"there is no boot of its own in the journal in {slot}: the slot did not come far enough"]
    return read_journal(own[-1], folder=folder)


def own_boots(boots: list[str], others: list[str]) -> list[str]:
    """What follows the last boot that the other journal has, too; that may have let go of older ones."""
    common = [place for place, boot in enumerate(boots) if boot in others]
    return boots[common[-1] + 1 :] if common else boots


def _find_folder(root: Path) -> Path | None:
    return next((root / name for name in JOURNALS if any((root / name).glob("*/*.journal"))), None)


def _list_boots(folder: Path) -> list[str]:
    """The ids of the boots of which there is a journal, the newest one last."""
    return find_boots(_call_journalctl(["--list-boots"], folder))


def find_boots(lines: Lines) -> list[str]:
    """The ids in what `journalctl --list-boots` says."""
    return [boot[1] for boot in map(BOOT.match, lines) if boot]


def _call_journalctl(options: list[str], folder: Path | None) -> list[str]:
    lines: list[str] = []
    where = [f"--directory={folder}"] if folder else []
    run(["journalctl", *options, "--quiet", "--no-pager", *where], timeout=SECONDS, output=lines.append)
    return lines


def _newest(lines: Lines) -> str:
    kept: list[str] = []
    left = SECTION_BYTES
    for line in reversed(list(lines)):
        line = "".join(letter if letter.isprintable() or letter == "\t" else "�" for letter in line.rstrip("\n"))
        line = line.replace("== ", "=_ ", 1) if line.startswith("== ") else line
        left -= len(line.encode()) + 1
        if left < 0:
            kept.append("… what is older is left out")
            break
        kept.append(line)
    return "".join(f"{line}\n" for line in reversed(kept))


def _split(text: str) -> dict[str, str]:
    """The sections of a file, by their titles."""
    sections: dict[str, str] = {}
    title = ""
    for line in text.splitlines(keepends=True):
        if line.startswith("== ") and line.endswith(" ==\n"):
            title = line[3:-4]
            sections[title] = ""
        elif title:
            sections[title] += line
    return sections
