"""The house is in order: what the pages say is there, is there, and the commands that they show exist."""

import re
import shlex
import tomllib
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import cyclopts
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel

from otaflow.cli.commands import app
from otaflow.config import Config, Database, Source, load

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "spec"),  # those came from elsewhere
    *(ROOT / "deployments").glob("*.md"),
    *ROOT.glob("examples/**/*.md"),
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def shown_commands() -> list[str]:
    """Every `otaflow …` line of a console block, without prompt."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```(?:console|sh)?\n(.*?)```", page.read_text(), re.DOTALL):
            found = re.findall(r"^(?:[$#] )?(otaflow [a-z].*)$", block, re.MULTILINE)
            lines += [re.split(r"\s{2,}", line)[0] for line in found]
    return sorted(set(lines))


@pytest.mark.parametrize("line", shown_commands())
def test_a_command_that_a_page_shows_exists(line: str) -> None:
    words = shlex.split(re.sub(r"\[.*?\]|…", "", line), comments=True)[1:]
    if words[-1:] == ["--help"]:
        words = words[:-1]
    with suppress(cyclopts.MissingArgumentError):  # shortened on the page
        app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in re.findall(r"^\$ make (.*)$", page.read_text(), re.MULTILINE):
        assert {word for word in shlex.split(line) if "=" not in word} <= rules


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert re.search(r"OTAFLOW_REQUIRE=1 .*make test\b", script.read_text())


def test_constraints_satisfy_the_bounds() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), text


def test_no_package_index_is_named() -> None:
    for file in ("constraints.txt", "pyproject.toml", "Makefile"):
        assert not re.search(r"https?://|index-url", (ROOT / file).read_text()), file


def configuration_keys(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every key of the configuration with its default; ... where it is required. NAME stands for any name."""
    keys: dict[str, Any] = {}
    named: dict[str, type[BaseModel]] = {"sources": Source, "databases": Database}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if name in named:
            keys |= configuration_keys(named[name], f"{name}.NAME.")
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            given = {} if field.is_required() else field.default.model_dump(exclude_unset=True)
            keys |= configuration_keys(inner, f"{prefix}{name}.")
            keys |= {f"{prefix}{name}.{key}": value for key, value in given.items()}
        else:
            keys[prefix + name] = ... if field.is_required() else field.default
    return keys


def as_documented(value: Any) -> str:
    """A default as docs/configuration.md writes it."""
    if value is ...:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(as_documented(one).strip('`') for one in value)}]`"
    return (
        f'`"{value}"`'
        if isinstance(value, str | Path)
        else f"`{value:g}`"
        if isinstance(value, float)
        else f"`{value}`"
    )


def test_every_key_of_the_configuration_is_documented() -> None:
    rows = re.findall(
        r"^\| `([a-zA-Z_.]+\.[a-z_]+)` \| (.*?) \|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE
    )
    assert dict(rows) == {key: as_documented(value) for key, value in configuration_keys(Config).items()}


def test_the_sample_configuration_can_be_loaded() -> None:
    assert load(ROOT / "deployments" / "otaflow.toml").slots.kind == "btrfs"


@pytest.mark.parametrize("unit", sorted((ROOT / "deployments").glob("*.service")), ids=lambda unit: unit.name)
def test_units_call_commands_that_exist(unit: Path) -> None:
    calls = re.findall(r"^Exec.*/usr/local/bin/(otaflow|prefect) ([^;\n]*)", unit.read_text(), re.MULTILINE)
    needed = re.search(r"^Exec[A-Za-z]+=(?!-).*/usr/local/bin/(otaflow|prefect) ", unit.read_text(), re.MULTILINE)
    assert bool(needed) == (unit.name != "otaflow-trial.service"), "that one works where otaflow does not"
    for program, command in calls:
        if program == "prefect":
            assert command.startswith("worker start --pool otaflow --work-queue ")
        else:
            app.parse_args(shlex.split(command), exit_on_error=False, print_error=False)


def test_platform_does_not_hide_the_standard_librarys() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert import_module("platform").__file__ != str(ROOT / "platform")


@pytest.mark.parametrize("name", ["flows", "tasks", "platform", "deployments", "examples"])
def test_folders_are_linked_into_the_package(name: str) -> None:
    link = ROOT / "src" / "otaflow" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name
