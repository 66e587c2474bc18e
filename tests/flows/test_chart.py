"""The S16 chart box by box: docs/policy.md against the specification's file, and against the code."""

import re
from pathlib import Path

import pytest

from otaflow.flows import check, roll_back, verify
from otaflow.tasks.step import STEPS

ROOT = Path(__file__).parents[2]
SPELLING = {
    "managment": "management",
    "availible": "available",
    "dignostic": "diagnostic",
    "cahnges": "changes",
    "new Packages": "new packages",
    "priority Update": "priority update",
    "migration(db)": "migration (db)",
    "log/ message": "log / message",
    "success/ message": "success / message",
}
"""The specification's spelling, and ours."""
ENDS = {
    "successConnect": "successful (connect)",
    "authSuccess": "successful (authenticate)",
    "successRepo": "successful (repository)",
    "successPackages": "successful (packages)",
    "successMigration": "successful (migration)",
    "successReload": "successful (reload)",
}
"""Six diamonds have one name."""
CLOSED = {"[(": ")]", "([": "])", "[": "]", "{": "}"}
"""How the chart's language encloses a node's text."""


def read_boxes() -> set[str]:
    """The names of the chart's boxes and diamonds, as the specification has them."""
    text = (ROOT / "docs/spec/s16-package-update.md").read_text().split("```mermaid")[1].split("```")[0]
    boxes = set()
    for begun in re.finditer(r"(\w+)(\[\(|\(\[|\[|\{)", text):
        node, opened = begun.groups()
        words = text[begun.end() : text.index(CLOSED[opened], begun.end())]
        name = " ".join(words.strip('"').split())
        for theirs, ours in SPELLING.items():
            name = name.replace(theirs, ours)
        boxes.add(ENDS.get(node, name))
    return boxes


def read_page() -> list[tuple[str, str, str]]:
    """The rows of the page's table."""
    chart = (ROOT / "docs/policy.md").read_text().split("## The chart")[1].split("\n## ")[0]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in chart.splitlines() if "|" in line]
    return [(box, flow, task) for box, flow, task in rows[2:]]


PAGE = read_page()


def test_the_specification_is_read() -> None:
    assert len(read_boxes()) == 31


def test_the_page_has_every_box() -> None:
    assert {box for box, _, _ in PAGE} == read_boxes()


@pytest.mark.parametrize(("box", "task"), [(box, task) for box, flow, task in PAGE if flow == "check"])
def test_each_box_is_a_task_of_its_name(box: str, task: str) -> None:
    """Or it is the end, or the retries, of the task that the row names."""
    name = re.match(r"`(\w+)`", task)
    if name is None:
        assert "connect" in task or task == "the task's own end"
        return
    assert hasattr(check, name[1]), f"flows/check.py does not use {name[1]}"
    assert STEPS[name[1]].title == box


PHASES = {"verify": verify, "roll back": roll_back}


@pytest.mark.parametrize(("box", "flow", "task"), [row for row in PAGE if row[1] in PHASES])
def test_each_box_of_the_phases_is_a_task_of_its_name(box: str, flow: str, task: str) -> None:
    """Or the undo of one, or the end of one."""
    name = re.search(r"`(\w+)`", task)
    if name is None or box.startswith("successful") or box == "revert updates":
        assert "own end" in task or "the end of" in task or "the undo of every step" in task
        return
    step = STEPS[name[1]]
    if task.startswith("the undo of"):
        assert step.undo_title == box
        return
    assert step.title == box
    assert hasattr(PHASES[flow], name[1])


def test_the_order_is_the_charts() -> None:
    """In the code of the flow the boxes come as they do in the chart."""
    source = (ROOT / "flows/check.py").read_text()
    story = source.split("def check(")[1].split('@phase("fetch"')[0] + source.split("def poll(")[1]
    names = [name[1] for _, flow, task in PAGE if flow == "check" and (name := re.match(r"`(\w+)`", task))]
    places = {name: story.index(f"{name}(") for name in names}
    chart = [name for name in names if name != "log_success"]
    assert sorted(chart, key=places.__getitem__) == chart
