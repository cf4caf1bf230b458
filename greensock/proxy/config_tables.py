"""Tables of a configuration, each made into the object that its keys are the fields of.

The class checks the values, so that a new field is at once a new key; its words are put as TOML has it. Problems are
collected and not raised, so that all of them are reported at once. Secrets are never quoted.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from greensock.proxy.environment import settled
from greensock.proxy.units import unit_of

__all__ = ["ConfigProblem", "Tables", "guess"]

Kind = TypeVar("Kind")

#: Characters of a value that are quoted.
MAX_SHOWN = 80
#: Keys that have one of these in their names are secrets.
SECRETS = ("secret", "token", "password", "storage")
#: What stands for None. Also where None is the default, as a table may inherit another value (``base``); but where the
#: default of a text is None, it is a text like any other.
NONE = "none"

_words = re.compile(r"['\"]([\w.\-]+)['\"]").findall
_what = re.compile(r"(\w+)(?:=|: )").match
#: Words of Python in the messages of the classes, and what TOML calls them.
_WORDS = (
    (re.compile(r"\ba (?:tuple|frozenset) of\b"), "a list of"),
    (re.compile(r"\bbytes, (at least \d+),"), r"text, \1 bytes,"),
    (re.compile(r"\bTrue\b"), "true"),
    (re.compile(r"\bFalse\b"), "false"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing that is wrong."""

    #: The file; empty if there is none.
    file: str
    #: The table, as it is written; empty for the top.
    table: str
    #: The key; empty if the table itself is wrong.
    key: str
    #: What it is, as TOML, perhaps cut; empty if it is missing.
    value: str
    #: What would be right.
    expected: str
    #: The line of the file, from 1 on; 0: none is known.
    line: int = 0
    #: Whether it is no mistake, but may become one: a name that does not resolve now.
    is_warning: bool = False

    def __str__(self) -> str:
        place = " ".join(part for part in (self.table, self.key) if part)
        value = f" = {self.value}" if self.value else ""
        file = f"{self.file}:{self.line}" if self.file and self.line else self.file
        kind = "warning" if self.is_warning else ""
        return ": ".join(part for part in (file, kind, place + value, self.expected) if part)


class Tables:
    """Makes objects of tables, and collects what is wrong with them."""

    def __init__(self, file: str) -> None:
        #: What problems call the file.
        self.file = file
        #: All that is wrong so far.
        self.problems: list[ConfigProblem] = []

    def note(self, table: str, key: str, value: Any, expected: str, *, is_warning: bool = False) -> None:
        """Add a problem; a ``value`` of None is one that is missing."""
        shown = "" if value is None else _of_table(key, value)
        self.problems.append(ConfigProblem(self.file, table, key, shown, expected, is_warning=is_warning))

    def check_keys(self, table: str, given: Mapping[str, Any], known: Iterable[str], shown: Iterable[str] = ()) -> None:
        """Note the keys that there are not, each with the one that may be meant, or those ``shown`` (default: all)."""
        names = list(known)
        for key in map(str, given):
            if key not in names:
                near = guess(key, names) or next((name for name in names if key and key in name), "")
                hint = f"{near}?" if near else f"one of {', '.join(shown or names)} expected"
                secret = any(word in near.lower() for word in SECRETS)  # a misspelt one is one, too
                self.note(table, key, ... if secret else given[key], f"no such key: {hint}")

    def made(
        self,
        table: str,
        given: Any,
        kind: Callable[..., Kind],
        *,
        base: object = None,
        samples: Mapping[str, Any] | None = None,
        others: Iterable[str] = (),
        **ready: Any,
    ) -> Kind | None:
        """Return what a table says, made; None if that can't be.

        ``ready`` are fields that are no keys; ``base`` has the values of keys that are left out; ``samples`` are what
        stands in for a required field that is missing or wrong while the rest is checked; ``others`` are further keys,
        which were taken out before.
        """
        if not isinstance(given, Mapping):
            self.note(table, "", given, "a table expected")
            return None
        fields = {each.name: each for each in dataclasses.fields(kind) if each.init}  # type: ignore[arg-type]
        keys = [name for name in fields if name not in ready]
        self.check_keys(table, given, [*others, *keys])
        spare = {name: getattr(base, name) for name in keys} if base is not None else dict(samples or {})
        missing = [name for name in keys if name not in given and base is None and _is_required(fields[name])]
        for name in missing:
            self.note(table, name, None, "missing")
        values = {**spare, **ready, **{name: _converted(fields[name], given[name]) for name in keys if name in given}}
        made, is_sound = self._checked(table, given, kind, values, spare)
        return made if is_sound and not missing else None

    def _checked(
        self,
        table: str,
        given: Mapping[str, Any],
        kind: Callable[..., Kind],
        values: dict[str, Any],
        spare: dict[str, Any],
    ) -> tuple[Kind | None, bool]:
        """Make it, over and over: what is wrong is noted and left out, to find what else is."""
        fields = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
        is_sound = True
        while True:
            try:
                return kind(**values), is_sound
            except ValueError as error:
                is_sound = False
                name, expected = _explained(str(error), kind, values)
                if name in fields:
                    expected += _hint(fields[name], given.get(name), expected)
                self.note(table, name if name in values else "", given.get(name), expected)
                if name not in values or values[name] is spare.get(name, values):
                    return None, False
                if name in spare:
                    values[name] = spare[name]
                else:
                    del values[name]
            except TypeError:  # a required one is missing and has no sample: noted before
                return None, False


def guess(given: str, words: Iterable[str], likeness: float = 0.6) -> str:
    """Return the word that was most likely meant; empty if none is so much alike."""
    known = {word.lower().replace("-", "_"): word for word in words}
    near = difflib.get_close_matches(given[:MAX_SHOWN].lower().replace("-", "_"), known, 1, likeness)
    return known[near[0]] if near else ""


def _hint(field: dataclasses.Field[Any], given: Any, expected: str) -> str:
    """Return what is said behind what was expected: how a size or a time is written, or which word may be meant."""
    if not isinstance(given, str):
        return ""
    unit = unit_of(field.name, str(field.type))
    if unit is not None:
        return f" ({unit.examples})"
    near = guess(given, _words(expected), 0.7)  # what is quoted there need not be what is allowed
    return f": {near}?" if near and near != given else ""


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _takes_none(field: dataclasses.Field[Any]) -> bool:
    """Return whether ``NONE`` stands for None."""
    annotation = str(field.type)
    return annotation.endswith("| None") and not (annotation.startswith("str ") and field.default is None)


def _explained(text: str, kind: Any, values: Mapping[str, Any]) -> tuple[str, str]:
    """Take apart what a class said: ``field=value: what is expected``, or ``field: what is expected``."""
    match = _what(text)
    if match is None:
        return "", text
    name = match[1]
    rest = text[match.end() :]
    if text[match.end() - 1] == "=":
        shown = f"{values.get(name)!r}: "
        rest = rest[len(shown) :] if rest.startswith(shown) else rest.partition(": ")[2] or rest
    for pattern, word in _WORDS:
        rest = pattern.sub(word, rest)
    takes_none = any(each.name == name and _takes_none(each) for each in dataclasses.fields(kind))
    return name, rest.replace(", or None", f', or "{NONE}"' if takes_none else "")


def _converted(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return a value of TOML as the field wants it; what does not fit stays, for the field to refuse."""
    annotation = str(field.type)
    value = settled(value, annotation)
    if value == NONE and _takes_none(field):
        return None
    if isinstance(value, str) and (unit := unit_of(field.name, annotation)) is not None:
        number = unit.read(value)
        return value if number is None else number
    if isinstance(value, list):
        if "frozenset" in annotation:
            return frozenset(value) if all(isinstance(each, str | int) for each in value) else value
        return tuple(_bytes(each) if "bytes" in annotation else each for each in value)
    return _bytes(value) if annotation == "bytes" else value


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def _shown(value: Any) -> str:
    """Return a value about as it was written, on one line; ``...`` stands for one that is not shown."""
    if value is ...:
        return '"..."'
    if isinstance(value, Mapping):
        text = "{ " + ", ".join(f"{key} = {_of_table(str(key), each)}" for key, each in value.items()) + " }"
        text = "{}" if not value else text
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(map(_shown, value)) + "]"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _of_table(key: str, value: Any) -> str:
    return '"..."' if any(word in key.lower() for word in SECRETS) else _shown(value)
