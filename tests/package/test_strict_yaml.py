"""YAML from strangers."""

import pytest

from otaflow.package.strict_yaml import MAX_BYTES, read_yaml

REFUSED = {
    "duplicate key": (b"a: 1\na: 2\n", "twice"),
    "duplicate key inside": (b"a: {b: 1, b: 2}\n", "twice"),
    "duplicate key in files": (b'a: 1\nfiles: {"x": 1, "x": 2}\n', "twice"),
    "duplicate key inside of files": (b'a: 1\nfiles: {"x": {"y": 1, "y": 2}}\n', "twice"),
    "files twice": (b'files: 1\nb: 1\nfiles: {"x": 1}\n', "one key `files`"),
    "alias": (b"a: &x 1\nb: *x\n", "aliases"),
    "anchor alone": (b"a: &x 1\n", "aliases"),
    "alias in files": (b"a: &x 1\nfiles: {x: *x}\n", "aliases"),
    "billion laughs": (b"a: &a [x]\n" + b"b: &b [*a,*a]\n" * 30, "aliases"),
    "merge key": (b"a: {<<: {b: 1}}\n", "constructor"),
    "python object": (b"a: !!python/object/apply:os.system [true]\n", "constructor"),
    "depth by brackets": (b"[" * 100_000, "nested|limit"),
    "depth by braces": (b"a: " + b"{a: " * 900, "nested"),
    "depth in files": (b'a: 1\nfiles: {"a": ' + b"[" * 100_000, "nested|limit"),
    "too many values": (b"- 1\n" * 600_000, "too many"),
    "too many bytes": (b" " * (MAX_BYTES + 1), "more than"),
    "not UTF-8": (b"a: \xff\n", "UTF-8"),
    "UTF-16": ("a: 1\n".encode("utf-16"), "UTF-8"),
    "NUL": (b"a: \0\n", "not YAML|control|special"),
    "tab": (b"a:\n\t- 1\n", "line 2"),
    "two documents": (b"a: 1\n---\nb: 2\n", "document"),
    "number of 5,000 digits": (b"a: " + b"9" * 5000 + b"\n", "digits"),
    "date that is none": (b"a: 2024-13-45\n", "month"),
    "key that is a number": (b"1: a\n", "not a text"),
    "key that is a list": (b"? [a]\n: b\n", "not a text|unhashable"),
}


@pytest.mark.parametrize(("text", "why"), REFUSED.values(), ids=REFUSED)
def test_refused(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_yaml(text)


def test_files_in_any_style() -> None:
    wanted = {"a": 1, "files": {"x": {"y": 1}}}
    for text in (b'a: 1\nfiles: {"x": {"y": 1}}\n', b"a: 1\nfiles: {x: {y: 1}}\n", b"files:\n  x:\n    y: 1\na: 1\n"):
        assert read_yaml(text) == wanted
    assert read_yaml(b'a: 1\nfiles: {"x": 2}\nb: 3\n') == {"a": 1, "files": {"x": 2}, "b": 3}
