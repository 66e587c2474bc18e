"""What a session does to the device: plain data, as the journal keeps it.

An action is what the UCM processes: usually a package (`up` of the system; `install` or `update` of an application), or
one of the ways back, which pass through the same states as an update does and so have the same undo.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Kind = Literal["up", "down", "previous-slot", "backup", "snapshot", "install", "update", "remove"]

NAMES: dict[Kind, str] = {
    "up": "Update",
    "down": "Uninstall",
    "previous-slot": "Rollback",
    "backup": "Restore",
    "snapshot": "RestoreMain",
    "install": "Install",
    "update": "Update",
    "remove": "Remove",
}
"""The word that the history uses for each kind."""

OF_APPLICATIONS: tuple[Kind, ...] = ("install", "update", "remove")
TOGETHER: tuple[Kind, ...] = ("up", *OF_APPLICATIONS)
"""What one session may hold several of: all or none."""


@dataclass(frozen=True)
class Action:
    """One thing to process. `package` is a file's path, or `backup` names the backup entry of a way back.

    `name` and `version` are what the system or the application will be (for `remove`: was); `update_number` is its
    number in the device's history. `install`, `update` and `remove` are of applications.
    """

    kind: Kind
    name: str = ""
    version: str = ""
    update_number: int = 0
    package: str = ""
    backup: str = ""
    source: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The action as plain data; `from_record` is its inverse."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Action":
        """The action of a journal, which an older or newer otaflow may have written: what is unknown is left out."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in known})

    @property
    def of_system(self) -> bool:
        """Whether the system changes, so that the device restarts."""
        return self.kind not in OF_APPLICATIONS

    def title(self) -> str:
        """A few words for a person."""
        match self.kind:
            case "up" | "update" | "install":
                return f"{self.name} {self.version}"
            case "remove":
                return f"remove {self.name} {self.version}"
            case "down":
                return f"uninstall, back to {self.name} {self.version}"
            case "previous-slot":
                return f"previous slot, {self.version}"
            case "backup":
                return f"backup {self.backup}"
            case "snapshot":
                return f"main partition of {self.backup}"
