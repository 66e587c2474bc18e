"""systemd's unit files as an application brings them: read, looked over, and marked as copies of otaflow's."""

from dataclasses import dataclass
from pathlib import Path

from otaflow.errors import ServiceFailed

SUFFIXES = (".service", ".socket", ".timer", ".target")
HOLD_FILE = "zzz-otaflow-hold.conf"  # read last: nothing after it clears its condition
MARK = b"# otaflow copied this from "
LARGEST = 1 << 20
"""systemd reads no larger unit file either."""


@dataclass(frozen=True)
class UnitFile:
    """One unit file. `text` is what goes to systemd; `wanted` the folders (`NAME.wants`) to link it in."""

    source: Path
    text: bytes
    wanted: set[str]

    @property
    def name(self) -> str:
        return self.source.name

    @staticmethod
    def is_copy(path: Path) -> bool:
        """Whether `path` is a unit file that otaflow put there."""
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK


def read_units(folder: Path) -> list[UnitFile]:
    """The unit files in `folder`, by name; other files are passed over. ServiceFailed when one cannot be used."""
    if not folder.is_dir():
        return []
    return [_read_unit(path) for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]


def list_copies(units: Path) -> set[str]:
    """The names of the unit files in systemd's folder that otaflow put there."""
    return {path.name for path in units.glob("*") if path.suffix in SUFFIXES and UnitFile.is_copy(path)}


def list_held(units: Path) -> set[str]:
    """The names of the units in systemd's folder that are held."""
    return {path.parent.name.removesuffix(".d") for path in units.glob(f"*.d/{HOLD_FILE}")}


def is_arranged(units: Path, folders: list[Path], held: list[str]) -> bool:
    """Whether systemd's folder has what `Services.arrange` would give it. ServiceFailed for a bad unit file."""
    wanted = {unit.name: unit for folder in folders for unit in read_units(folder)}
    if list_held(units) != {*held} or list_copies(units) != {*wanted}:
        return False
    return all(
        (units / name).read_bytes() == unit.text
        and all((units / wanting / name).is_symlink() for wanting in unit.wanted)
        for name, unit in wanted.items()
    )


def _read_unit(path: Path) -> UnitFile:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
        raise ServiceFailed(f"cannot use {path}: a unit file is a plain file of at most 1 MiB")
    content = path.read_bytes()
    try:
        settings = _parse(content.decode())
    except UnicodeDecodeError as error:
        raise ServiceFailed(f"cannot use {path}: it is not UTF-8") from error
    if path.suffix in (".service", ".socket", ".timer") and path.suffix[1:].title() not in settings:
        raise ServiceFailed(f"cannot use {path}: it has no section [{path.suffix[1:].title()}]")
    install = settings.get("Install", {})
    if install.get("Alias"):
        raise ServiceFailed(f"cannot use {path}: it has an Alias=", hint="a service has one name, its file's")
    mark = MARK + str(path).encode("unicode_escape") + b"; changes belong there\n"
    # a template is started by the names of its instances only
    wanted = set() if path.stem.endswith("@") else _wanted(install)
    return UnitFile(path, mark + content, wanted)


def _wanted(install: dict[str, list[str]]) -> set[str]:
    wants = {f"{name}.wants" for name in install.get("WantedBy", [])}
    return wants | {f"{name}.requires" for name in install.get("RequiredBy", [])}


def _parse(text: str) -> dict[str, dict[str, list[str]]]:
    """Sections, keys, words of the values (systemd.syntax(7)): keys add up, an empty value clears, `\\` continues."""
    sections: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    kept = ""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            kept += line[:-1] + " "
            continue
        line, kept = kept + line, ""
        if line.startswith("[") and line.endswith("]"):
            section = sections.setdefault(line[1:-1], {})
        elif "=" in line:
            key, value = (part.strip() for part in line.split("=", 1))
            section[key] = [*section.get(key, []), *value.split()] if value else []
    return sections
