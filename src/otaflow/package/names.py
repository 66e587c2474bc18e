"""Which names and link targets a package may hold. Rules without I/O; a broken rule is a ValueError with the reason.

* a name is relative, UTF-8, without control characters, in plain form: no empty, `.` or `..` part, no slash at its end;
* a link's target is relative: some `..` at its beginning, as many as lead up to the package's root at most, then a
  plain name; or `.`. A `..` further on could follow another link first, and no rule on the text could say where it
  leads.
"""

import re

MAX_NAME_BYTES = 1000
MAX_PART_BYTES = 255
MAX_PARTS = 64

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LEADING_UP = re.compile(r"(?:\.\.(?:/|$))*")


def check_name(name: str) -> str:
    """Return `name` when it may stand in a package; ValueError says why not."""
    if not name:
        raise ValueError("the name is empty")
    if name.startswith("/"):
        raise ValueError("the name is absolute")
    if _CONTROL.search(name):
        raise ValueError("the name has control characters")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ValueError("the name is not UTF-8") from error
    parts = name.split("/")
    if size > MAX_NAME_BYTES or len(parts) > MAX_PARTS:
        raise ValueError(f"the name is longer than {MAX_NAME_BYTES} bytes or {MAX_PARTS} parts")
    if "" in parts or "." in parts or ".." in parts:
        raise ValueError("the name has an empty, `.` or `..` part")
    if size > MAX_PART_BYTES and max(len(part.encode()) for part in parts) > MAX_PART_BYTES:
        raise ValueError(f"a part of the name is longer than {MAX_PART_BYTES} bytes")
    return name


def check_target(name: str, target: str) -> str:
    """Return the `target` of the symbolic link `name` when it stays inside the package; ValueError says why not."""
    if target.startswith("/"):
        raise ValueError("the link is absolute")
    ups = _LEADING_UP.match(target)
    head = ups.group() if ups else ""
    if head.count("..") > name.count("/"):
        raise ValueError("the link leads outside of the package")
    if target != "." and (not head or len(head) < len(target)):
        try:
            check_name(target[len(head) :])
        except ValueError as error:
            raise ValueError(f"its target {target!r}: {error}".replace("the name", "it")) from error
    return target


def parent(name: str) -> str:
    """The folder that `name` is in; empty for the package's root."""
    return name.rpartition("/")[0]
