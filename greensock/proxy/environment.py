"""Values from the environment in a configuration: ``${NAME}``, ``${NAME:-default}``; ``$$`` is a dollar. Pure.

They are put in after the file was read, and into its texts alone: whatever a value holds, it is a value, and neither a
key nor a table. A ``$`` before anything else is what it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["FromEnvironment", "expanded", "settled"]

Path = tuple[str | int, ...]
#: What is wrong: where, and what was expected.
Wrong = list[tuple[Path, str]]

_references = re.compile(r"\$\$|\$\{[^}]*\}?")
_reference = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}").fullmatch
_whole = re.compile(r"[+-]?[0-9]{1,18}").fullmatch
_number = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch


class FromEnvironment(str):
    """A text of which a part came from the environment: it may be a number where one is asked for."""

    __slots__ = ()


def expanded(given: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], Wrong]:
    """Return a configuration with the values put in, and what is wrong: names that are not set, a brace left open.

    What is wrong stays as it was.
    """
    wrong: Wrong = []
    return {key: _expanded(value, (key,), environ, wrong) for key, value in given.items()}, wrong


def _expanded(value: Any, path: Path, environ: Mapping[str, str], wrong: Wrong) -> Any:
    if isinstance(value, str):
        return _filled_in(value, path, environ, wrong) if "$" in value else value
    if isinstance(value, Mapping):
        return {key: _expanded(each, (*path, key), environ, wrong) for key, each in value.items()}
    if isinstance(value, list):
        return [_expanded(each, (*path, index), environ, wrong) for index, each in enumerate(value)]
    return value


def _filled_in(text: str, path: Path, environ: Mapping[str, str], wrong: Wrong) -> str:
    is_filled = False

    def value_of(found: re.Match[str]) -> str:
        nonlocal is_filled
        if found[0] == "$$":
            return "$"
        match = _reference(found[0])
        if match is None:
            wrong.append((path, "${NAME} or ${NAME:-default} expected, and $$ for a dollar"))
            return found[0]
        is_filled = True
        name, default = match[1], match[2]
        value = environ.get(name)
        if default is not None:
            value = value or default  # as a shell has it: an empty one counts as none
        if value is None:
            wrong.append((path, f"{name} is not set in the environment: a value, or ${{{name}:-default}}, expected"))
            return found[0]
        try:
            value.encode()
        except UnicodeEncodeError:
            wrong.append((path, f"{name} in the environment is not UTF-8: text expected"))
            return found[0]
        return value

    whole = _references.sub(value_of, text)
    return FromEnvironment(whole) if is_filled else whole


def settled(value: Any, annotation: str = "str") -> Any:
    """Return a value as a key of that type wants it: what came from the environment is a number, a flag or a text."""
    if isinstance(value, FromEnvironment):
        return _of_type(str(value), annotation)
    if isinstance(value, list):
        inner = "int" if "[int" in annotation else "str"
        return [settled(each, inner) for each in value]
    if isinstance(value, Mapping):
        return {key: settled(each) for key, each in value.items()}
    return value


def _of_type(text: str, annotation: str) -> Any:
    if annotation.startswith("bool") and text in ("true", "false"):
        return text == "true"
    if annotation.startswith(("int", "float")):
        if _whole(text):
            return int(text)
        if annotation.startswith("float") and _number(text):
            return float(text)
    return text
