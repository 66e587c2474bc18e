r"""The text of GRUB's environment block: a header, `name=value` lines, `#` up to its fixed size.

In a value a backslash stands before a backslash and before a line's end (GRUB's lib/envblk.c). Nothing is known here
of what the variables mean, and what is not changed stays as it is, byte by byte: comments, and variables of others.
"""

import re
from collections.abc import Mapping

HEADER = b"# GRUB Environment Block\n"
SIZE = 1024
LINE = re.compile(rb"(?:[^\\\n]|\\[\x00-\xff])*\n")


class BadBlock(ValueError):
    """It is no environment block, or it would not be one any more; the text says why."""


def read_block(block: bytes) -> dict[str, str]:
    """The variables of a block. Raises BadBlock."""
    variables = {}
    for line in _lines(block):
        name, equals, value = line[:-1].partition(b"=")
        if equals and not line.startswith(b"#"):
            variables[name.decode(errors="replace")] = re.sub(rb"\\([\x00-\xff])", rb"\1", value).decode(
                errors="replace"
            )
    return variables


def change_block(block: bytes, changes: Mapping[str, str | None]) -> bytes:
    """The block with variables set, or removed (None); of the same size. Raises BadBlock: damaged, or full."""
    left = dict(changes)
    kept = []
    for line in _lines(block):
        name = line.partition(b"=")[0].decode(errors="replace")
        if line.startswith(b"#") or name not in changes:
            kept.append(line)
        elif name in left and (value := left.pop(name)) is not None:
            kept.append(_write_line(name, value))
    kept += [_write_line(name, value) for name, value in left.items() if value is not None]
    text = HEADER + b"".join(kept)
    if len(text) > len(block):
        raise BadBlock(f"its {len(block)} bytes are full")
    return text.ljust(len(block), b"#")


def empty_block() -> bytes:
    """A new block without variables."""
    return HEADER.ljust(SIZE, b"#")


def _lines(block: bytes) -> list[bytes]:
    """The lines between the header and the filling."""
    if not block.startswith(HEADER):
        raise BadBlock("it does not begin as GRUB's environments do")
    position, lines = len(HEADER), []
    while found := LINE.match(block, position):
        lines.append(found[0])
        position = found.end()
    if block[position:].strip(b"#"):
        raise BadBlock("its end is not what GRUB writes")
    return lines


def _write_line(name: str, value: str) -> bytes:
    return f"{name}={value}".replace("\\", "\\\\").replace("\n", "\\\n").encode() + b"\n"
