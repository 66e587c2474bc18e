"""YAML from strangers: bounded, no aliases, no duplicate keys, plain values only.

What is refused is a ValueError with the reason. A last key `files` written as JSON, one entry a line, as
`metadata.dump` does, is read by the JSON parser (JSON is YAML, and 20 times faster to read).
"""

import functools
import json
from collections.abc import Hashable
from typing import Any

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 16
MAX_EVENTS = 500_000

_FILES = "\nfiles: {"


def read_yaml(text: bytes) -> Any:
    """The value that the YAML document `text` stands for; ValueError where it is not one that we take."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    try:
        whole = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    head, mark, tail = whole.partition(_FILES)
    if not mark:
        return _read_general(whole)
    try:
        files = json.loads("{" + tail, object_pairs_hook=_unique)
    except (json.JSONDecodeError, RecursionError):
        return _read_general(whole)
    value = _read_general(head + "\n")
    if not isinstance(value, dict) or "files" in value:
        raise ValueError("it must be a mapping with one key `files`")
    return {**value, "files": files}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; ValueError where a key stands twice."""
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice")
    return value


def _read_general(text: str) -> Any:
    """Any YAML. The events are counted first: composing recurses, and in C nothing would stop it."""
    import yaml

    try:
        _check_events(text)
        return yaml.load(text, Loader=_loader())  # a safe loader, made stricter
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{error.problem or error.context}{where}") from error
    except (yaml.YAMLError, TypeError, RecursionError, OverflowError, ArithmeticError, LookupError) as error:
        raise ValueError(f"it is not YAML that we take: {error}") from error


def _check_events(text: str) -> None:
    """ValueError where the document has aliases, is too deep or too big."""
    import yaml

    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_base())):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("anchors and aliases are not taken")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > MAX_EVENTS:
            raise ValueError("it is nested too deeply or has too many values")


def _base() -> Any:
    """libyaml's loader where it is there, Python's where not."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.cache
def _loader() -> Any:
    """The safe loader, without duplicate keys and without `<<`."""
    import yaml

    class Loader(_base()):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            value: dict[Hashable, Any] = {}
            for key_node, value_node in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str):
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} is not a text", key_node.start_mark
                    )
                if key in value:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice", key_node.start_mark
                    )
                value[key] = self.construct_object(value_node, deep=deep)
            return value

        # SafeConstructor's own first flattens `<<`, which we do not know.
        def construct_yaml_map(self, node: Any) -> Any:
            value: dict[Hashable, Any] = {}
            yield value
            value.update(self.construct_mapping(node))

    Loader.add_constructor("tag:yaml.org,2002:map", Loader.construct_yaml_map)
    return Loader
