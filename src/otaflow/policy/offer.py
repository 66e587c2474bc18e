"""What is offered to the user of a device: one update, as its signed metadata describes it."""

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Offer:
    """One update. `bytes` is what is downloaded; `content` the SHA-256 of the signed package, in hex.

    What the user answers, and what failed, is bound to `content`: another package of the same version is another offer.
    `kind` is "system" or "application". `irreversible`: it changes data for good; `irreversible_data` says which.
    """

    name: str
    version: str
    content: str
    update_number: int = 0
    bytes: int = 0
    priority: bool = False
    description: str = ""
    kind: str = "system"
    irreversible: bool = False
    irreversible_data: str = ""

    def record(self) -> dict[str, Any]:
        """The offer as plain data; `from_record` is its inverse."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Offer":
        """The offer that an older or newer otaflow may have written: what is unknown is left out."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in known})

    def title(self) -> str:
        """A few words for a person."""
        return f"{self.name} {self.version}"

    def loss(self) -> str:
        """What cannot be brought back after it, as a sentence for a person; empty where everything can."""
        if not self.irreversible:
            return ""
        return f"It changes {self.irreversible_data or 'data'} for good: what was there before cannot be brought back."
