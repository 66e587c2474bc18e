"""Secrets out of plain data, before anything of it is kept or sent.

What is known is removed wherever it stands (`secrets`: contents of token files and keys, configured URLs). What is not
known is told by its looks or by its name: private keys, headers, passwords, URLs' user info and queries, URLs that are
no plain web address (apprise's carry tokens in the path), e-mail addresses, tokens of well-known make, long random
words. In doubt it is removed: a report that says too little costs a question, one that says too much cannot be taken
back.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

REMOVED = "(removed)"

_SECRET_PART = (
    r"passw(?:or)?d|passphrase|passcode|secret|token|credential|api[ _-]?key|private[ _-]?key|authorization|cookie"
)
_SECRET_WORD = r"key|keys|pwd|psk|pass|auth|pin|bearer|sig|signature|pw"
_NAME = re.compile(
    rf"(?i:{_SECRET_PART})|(?<![A-Za-z])(?i:{_SECRET_WORD})(?![a-z])|[a-z](?:Key|Pwd|Pass|Auth)(?![a-z])"
)

Replacement = str | Callable[[re.Match[str]], str]


def strip(data: Any, secrets: Iterable[str] = ()) -> Any:
    """A copy of `data` (str, dict, list, numbers …) without secrets; `secrets` are texts that must not be in it.

    The value under a name that says it is secret is removed as a whole, whatever it is; so is the element of a list
    that follows such a name (`["--password", "x"]`). What is no plain data comes out as its text.
    """
    known = _spellings(secrets)
    return _strip(data, known)


def _strip(data: Any, known: list[str]) -> Any:
    match data:
        case None | bool() | int() | float():
            return data
        case dict():
            return _strip_dict(data, known)
        case list() | tuple() | set() | frozenset():
            return _strip_list(list(data), known)
        case bytes():
            return strip_text(data.decode(errors="replace"), known)
    return strip_text(str(data), known)


def _strip_dict(data: dict[Any, Any], known: list[str]) -> dict[str, Any]:
    stripped: dict[str, Any] = {}
    for name, value in data.items():
        shown = strip_text(str(name), known)
        while shown in stripped:
            shown += "'"
        harmless = value is None or isinstance(value, bool)
        stripped[shown] = REMOVED if is_secret(str(name)) and not harmless else _strip(value, known)
    return stripped


def _strip_list(data: list[Any], known: list[str]) -> list[Any]:
    stripped: list[Any] = []
    named = False
    for value in data:
        stripped.append(REMOVED if named else _strip(value, known))
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        named = isinstance(text, str) and (bool(_FLAG.fullmatch(text)) or _is_header(text))
    return stripped


_FLAG = re.compile(rf"--?[\w-]*(?i:{_SECRET_PART}|{_SECRET_WORD})[\w-]*|-[up]")


def _is_header(text: str) -> bool:
    return len(text) <= 40 and bool(re.fullmatch(r"[\w.-]+:?", text)) and is_secret(text)


def is_secret(name: str) -> bool:
    """Whether what has this name is a secret: `token_file`, `DB_PASSWORD`, `apiKey`; but not `monkey` or `passed`."""
    return bool(_NAME.search(name))


def strip_text(text: str, known: Iterable[str] = ()) -> str:
    """`text` of one line or many, without secrets. `known` are removed as they stand, longest first."""
    for secret in known:
        if len(secret) > 3:
            text = text.replace(secret, REMOVED)
        else:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", REMOVED, text)
    text = _strip_ends_of_keys(text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def _spellings(secrets: Iterable[str]) -> list[str]:
    """The secrets as they may be written: as they are, line by line, in a URL, in base64; the longest first."""
    found: set[str] = set()
    for secret in secrets:
        lines = [line.strip() for line in secret.splitlines()]
        for one in (secret.strip(), *(line for line in lines if len(line) > 7 and not line.startswith("-----"))):
            if one:
                plain = base64.b64encode(one.encode()).decode()
                found |= {one, quote(one), quote(one, ""), plain, plain.rstrip("=")}
    return sorted(found, key=lambda one: (-len(one), one))


def _strip_ends_of_keys(text: str) -> str:
    """Private keys of which only the last lines are there, as at the beginning of the tail of a log."""
    if _END.search(text) is None:
        return text
    lines = text.split("\n")
    start = 0  # of what may be a key's
    for number, line in enumerate(lines):
        if re.search(_BEGIN, line):
            start = len(lines)
        if end := _END.search(line):
            first = number
            while start < first and re.search(rf"(?:{_BASE64_AT_END})$", lines[first - 1]):
                first -= 1
            if start <= number:
                lines[first:number] = [REMOVED] * (number - first)
                lines[number] = REMOVED + line[end.end() :]
            start = number + 1
    return "\n".join(lines)


# --- the rules, in the order in which they are applied ----------------------------------------------------------------


def _basic(match: re.Match[str]) -> str:
    """`Basic dXNlcjpwYXNz`, but not "basic settings"."""
    try:
        text = base64.b64decode(match[2] + "=" * (-len(match[2]) % 4), validate=True)
    except (binascii.Error, ValueError):
        return match[0]
    return f"{match[1]} {REMOVED}" if b":" in text else match[0]


def _url(match: re.Match[str]) -> str:
    """A web address keeps host and path, without user info and query; of any other URL only the scheme stays."""
    scheme, rest = match[1], match[2]
    if scheme.lower() not in ("http", "https", "file"):
        return f"{scheme}://{REMOVED}"
    _, at, place = rest.rpartition("@")
    place, mark, _ = place.partition("?")
    if _HOOK.search(place):
        place = place.partition("/")[0] + f"/{REMOVED}"
    return f"{scheme}://{REMOVED + '@' if at else ''}{place}{'?' + REMOVED if mark else ''}"


_HOOK = re.compile(r"(?i)hook|telegram|discord|slack|ntfy|pushover|gotify")


def _word(match: re.Match[str]) -> str:
    """A long word of mixed letters and digits: a key or token by its looks. A path's words are looked at one by one."""
    for piece in re.split(r"[/.]", match[0]):
        if len(piece) >= 20 and all(re.search(kind, piece) for kind in ("[a-z]", "[A-Z]", "[0-9]")):
            return REMOVED
    return match[0]


def _mail(match: re.Match[str]) -> str:
    return match[0] if _UNIT.search(match[0]) else "(e-mail address removed)"


_UNIT = re.compile(r"\.(?:service|socket|timer|mount|target|slice|scope|device|path|swap|automount)$")
_QUOTED = r'\\*"(?:\\[^\n]|[^"\\\n])*"?|\\*\'(?:\\[^\n]|[^\'\\\n])*\'?'
_VALUE = (
    r'(?:"""[\s\S]*?(?:"""|\Z)'  # TOML
    r"|[|>][+-]?\d?[ \t]*(?:\n[ \t]+[^\n]*)+"  # a block of YAML
    rf"|[bru]?(?:{_QUOTED})"
    r"|[^\n]*)"
)
_OPEN = r"(?!(?:\(removed\)|No such file or directory|Permission denied|Is a directory)(?:[\s\"',;&]|\Z))"
"""Not removed yet, and not what the system says of a token's file."""
_BEGIN = r"-{4,5} ?BEGIN [^\n-]{0,40}PRIVATE KEY[^\n-]{0,20}-{0,5}"
_END = re.compile(r"-{4,5} ?END [^\n-]{0,40}PRIVATE KEY[^\n-]{0,40}-{4,5}")
_BASE64_AT_END = r"[A-Za-z0-9+/=]{16,200}[ \t\r]*"
# No rule may take longer than its text is long, times a small number: what is stripped is whatever a program said.
_RULES: list[tuple[re.Pattern[str], Replacement]] = [
    (re.compile(_BEGIN + r"[^-]*(?:-(?!---)[^-]*)*-{4,5} ?END [^\n-]{0,40}-{4,5}"), REMOVED),
    # cut off, only its beginning is there; what has only its end is removed before, line by line
    (re.compile(_BEGIN + rf"[^\n]*\n?(?:[^\n]{{0,200}}?{_BASE64_AT_END}(?:\n|\Z))*"), f"{REMOVED}\n"),
    (
        re.compile(
            r"(?i)\b((?:(?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]{0,40}(?:key|token|auth)[\w-]{0,40})"
            r"[ \t]*:[ \t]*+)"
            r"(?![\"'])[^\n]*(?:(?<=[:\r ])\n[ \t]+[^\n]*|(?<=Bearer|.Basic)\n[ \t]+[^\n]*)?"
        ),
        rf"\1{REMOVED}",
    ),
    (re.compile(r"(?i)\b(bearer)[ \t]+[^\s\"',;]+"), rf"\1 {REMOVED}"),
    (re.compile(r"(?i)\b(basic)[ \t]+([A-Za-z0-9+/]{4,}=*)"), _basic),
    (re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{0,30})://([^\s<>]+)"), _url),
    (re.compile(r"\b(sshpass[ \t]+-p|curl[^\n]{0,200}?[ \t](?:-u|--user))[ \t]*\S+"), rf"\1 {REMOVED}"),
    (
        re.compile(rf"(--[\w-]{{0,40}}(?i:{_SECRET_PART}|\b(?:{_SECRET_WORD})\b)[\w-]{{0,40}})[ \t]+(?:{_QUOTED}|\S+)"),
        rf"\1 {REMOVED}",
    ),
    (
        re.compile(
            rf"((?:(?i:{_SECRET_PART})[\w.-]{{0,40}}|(?<![A-Za-z])(?i:{_SECRET_WORD})|[a-z](?:Key|Pwd|Pass|Auth))"
            rf"\\*[\"']?\]?\s*(?:(?:=>|:=|[=:])\s*+|,\s*+(?=[bru]?[\"']))){_OPEN}{_VALUE}"
        ),
        rf"\1{REMOVED}",
    ),
    (re.compile(rf"(?i)((?:passw(?:or)?d|passphrase)[^\n:=]{{1,40}}[:=][ \t]*+){_OPEN}[^\n]+"), rf"\1{REMOVED}"),
    (
        re.compile(rf"(?i)((?:{_SECRET_PART})[ \t]+(?:(?:is|was)[ \t]+|(?=[\"'`])))(?:{_QUOTED}|`[^`\n]*`|\S+)"),
        rf"\1{REMOVED}",
    ),
    (re.compile(r"\$(?:[0-9][a-z]?|y|gy|argon2[id]{1,2}|scrypt)\$[^\s:]{8,}"), REMOVED),  # hashes of passwords
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\b(?:gh[pousr]|xox[abpr]|glpat|sk|pk)[_-][\w-]{10,}"), REMOVED),
    (re.compile(r"\beyJ[\w-]{5,}(?:\.[\w-]*){1,2}"), REMOVED),  # JSON web tokens
    (re.compile(r"[A-Za-z0-9+/_.=-]{20,}"), _word),
    (re.compile(r"(?:\"[^\"\n@]{1,64}\"|[\w.+%'-]{1,64})(?:@|%40)[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"), _mail),
]
