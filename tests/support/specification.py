"""The rows of docs/spec/ucm-design.md's table, read from the file itself."""

import re
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).parents[2] / "docs" / "spec" / "ucm-design.md"


class SpecRow(NamedTuple):
    """A line of the table: `action` is what is done or answered."""

    event: str
    state: str
    next: str
    action: str

    @property
    def error(self) -> str:
        """The error that the line answers with, as the interface spells it; none: an empty string."""
        found = re.match(r">ApErr[^:]*: *(\w+)", self.action)
        names = {"ProcessedSwPackageInconsistent": "ProcessedSoftwarePackageInconsistent"}
        return names.get(found[1], found[1]) if found else ""


def read_rows() -> list[SpecRow]:
    """Every line of the table."""
    rows = []
    for line in FILE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 4 and cells[0][:1] in "<$!" and cells[0]:
            rows.append(SpecRow(*cells))
    return rows
