"""platform/systemd_units.py: unit files as an application brings them."""

from pathlib import Path

import pytest

from otaflow.errors import ServiceFailed
from otaflow.platform.systemd_units import LARGEST, UnitFile, read_units

INSTALL = {
    "none": ("", set()),
    "one": ("[Install]\nWantedBy=multi-user.target", {"multi-user.target.wants"}),
    "both kinds": (
        "[Install]\nWantedBy=a.target b.target\nRequiredBy=c.target",
        {"a.target.wants", "b.target.wants", "c.target.requires"},
    ),
    "keys add up": ("[Install]\nWantedBy=a.target\nWantedBy=b.target", {"a.target.wants", "b.target.wants"}),
    "an empty one clears": ("[Install]\nWantedBy=a.target\nWantedBy=\nWantedBy=b.target", {"b.target.wants"}),
    "continued": ("[Install]\nWantedBy=a.target \\\n# a comment\n b.target", {"a.target.wants", "b.target.wants"}),
    "comments": ("[Install]\n#WantedBy=a.target\n;WantedBy=b.target", set()),
    "section in pieces": (
        "[Install]\nWantedBy=a.target\n[Unit]\nWantedBy=x.target\n[Install]\nWantedBy=b.target",
        {"a.target.wants", "b.target.wants"},
    ),
    "an empty alias": ("[Install]\nAlias=x.service\nAlias=", set()),
}


@pytest.mark.parametrize("case", INSTALL)
def test_what_wants_it(case: str, tmp_path: Path) -> None:
    text, wanted = INSTALL[case]
    (tmp_path / "notes.service").write_text(f"[Service]\nExecStart=true\n{text}\n")
    (tmp_path / "README").write_text("no unit")
    [unit] = read_units(tmp_path)
    assert (unit.name, unit.wanted) == ("notes.service", wanted)


def test_a_template_is_wanted_by_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes@.service").write_text("[Service]\n[Install]\nWantedBy=multi-user.target\n")
    assert read_units(tmp_path)[0].wanted == set()


def test_a_copy_is_told_from_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "line\nend"
    folder.mkdir()
    source, copy, link = folder / "notes.service", tmp_path / "copy.service", tmp_path / "link.service"
    source.write_text("[Service]\nExecStart=true\n")
    copy.write_bytes(read_units(folder)[0].text)
    link.symlink_to(copy)
    assert [UnitFile.is_copy(path) for path in (copy, source, link, tmp_path, tmp_path / "none")] == [
        True,
        *[False] * 4,
    ]
    mark, rest = copy.read_text().split("\n", 1)
    assert mark == f"# otaflow copied this from {folder}/notes.service; changes belong there".replace("\n", "\\n")
    assert rest == source.read_text()


@pytest.mark.parametrize("name", ["notes.service", "notes.socket", "notes.timer"])
def test_a_unit_without_its_section_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[Unit]\nDescription=x\n")
    with pytest.raises(ServiceFailed, match=f"{name}: it has no section"):
        read_units(tmp_path)


def test_a_unit_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.service").write_bytes(b"[Service]\n" + b"#" * LARGEST)
    with pytest.raises(ServiceFailed, match="at most 1 MiB"):
        read_units(tmp_path)


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert read_units(tmp_path / "none") == []
