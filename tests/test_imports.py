"""The layers: imports point down only, and each heavy or dangerous module has one place where it is used."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "otaflow"

LAYERS = [
    {"cli", "api", "agent", "at_boot", "deployments", "examples"},
    {"answers", "installing", "closing", "due"},
    {"work", "through", "embedded", "prefect_server", "asked"},
    {"recovery"},
    {"service", "phases", "parts", "refusals", "actions", "ends", "trial", "why"},
    {"flows"},
    {"tasks"},
    {"diagnostics"},
    {"platform", "repo", "client"},
    {
        "package",
        "transfer",
        "ucm",
        "policy",
        "journal",
        "history",
        "records",
        "config",
        "action",
        "fault",
        "progress",
        "places",
        "files",
        "patience",
        "errors",
    },
]
"""The highest first; a module may import its own layer and those below it."""

USED_ONLY_IN = {
    "prefect": ("flows/", "tasks/", "deployments/", "agent"),
    "subprocess": ("platform/run.py",),
    "tuf": ("repo/",),
    "httpx": ("repo/transport.py", "client.py"),
    "securesystemslib": ("repo/",),
    "rich": ("cli/",),
    "cyclopts": ("cli/",),
}
NEVER_AT_THE_TOP_OF = ("package/", "platform/", "policy/", "ucm/", "tasks/step.py", "flows/phase.py", "journal.py")
NEVER_AT_THE_TOP_OF += ("service.py", "recovery.py", "phases.py", "parts.py", "refusals.py", "diagnostics/")
HEAVY = {"prefect", "tuf", "httpx", "rich", "cyclopts", "psutil", "apprise"}


def modules() -> list[Path]:
    """Every module of otaflow, each once, by its name below `otaflow`."""
    found = [path for folder in (SOURCE, *SOURCE.iterdir()) if folder.is_dir() for path in folder.glob("*.py")]
    return sorted({path.relative_to(SOURCE) for path in found if path.name != "__init__.py" or path.stat().st_size})


def imports(path: Path, *, top: bool = False) -> Iterator[str]:
    """The dotted names that a module imports; at its top only, or anywhere. What only type checkers see is left out."""
    tree = ast.parse((SOURCE / path).read_text())
    nodes: list[ast.AST] = list(tree.body) if top else list(_without_type_checking(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_type_checking(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _without_type_checking(child)


def layer_of(name: str) -> int | None:
    found = [number for number, names in enumerate(LAYERS) if name in names]
    return found[0] if found else None


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_point_down(path: Path) -> None:
    own = layer_of(path.parts[0].removesuffix(".py"))
    assert own is not None or path.name == "__init__.py", f"{path} is in no layer"
    for name in imports(path):
        words = name.split(".")
        if own is not None and words[0] == "otaflow" and len(words) > 1 and (other := layer_of(words[1])) is not None:
            assert other >= own, f"{path} imports {name}, which is above it"


@pytest.mark.parametrize("path", modules(), ids=str)
def test_a_module_with_one_place_is_used_there_only(path: Path) -> None:
    for name in {name.split(".")[0] for name in imports(path)} & USED_ONLY_IN.keys():
        assert str(path).startswith(USED_ONLY_IN[name]), f"{path} imports {name}"


@pytest.mark.parametrize("path", [p for p in modules() if str(p).startswith(NEVER_AT_THE_TOP_OF)], ids=str)
def test_what_recovery_needs_loads_nothing_heavy(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path, top=True)} & HEAVY


def test_the_rules_of_the_ucm_do_nothing() -> None:
    for path in modules():
        if path.parts[0] == "ucm":
            assert {name.split(".")[0] for name in imports(path)} <= {"otaflow", "dataclasses", "typing", "enum"}


def test_platform_is_no_package_of_its_own() -> None:
    """With an `__init__.py` it would shadow the standard library's `platform`."""
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_the_folders_are_linked_relatively() -> None:
    for name in ("flows", "tasks", "platform", "deployments"):
        link = SOURCE / name
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
