"""docs/configuration.md has every table and key of the configuration, with its kind, its default and what it says.

What stands below its mark is made of the classes that the tables become, and of their comments: run this module as a
program to make it anew. A key that is no field of a class is written down in ``BY_HAND``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from served import pure_only
from test_compatibility import configuration

from greensock.proxy import ConfigError, options, parse_config
from greensock.proxy.config import TABLES
from greensock.proxy.config_tables import Tables, _shown, _takes_none
from greensock.proxy.log.line_format import FIELDS
from greensock.proxy.units import unit_of

#: It looks at the sources.
pytestmark = pure_only

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
MARK = "<!-- From here on it is made by tests/test_configuration_document.py. -->\n"

#: Keys that are no fields: what they are, their default, and what they say.
BY_HAND = {
    ("[upstreams.NAME]", "servers"): ("list of texts or tables", "", "A URL each, or a table (see below)."),
    ("[upstreams.NAME]", "health"): ("table", "", "`[upstreams.NAME.health]`, below."),
    ("[upstreams.NAME]", "sticky"): ("table", "not set", "`[upstreams.NAME.sticky]`, below."),
    ("[upstreams.NAME]", "tls"): ("table", "not set", "`[upstreams.NAME.tls]`, below: for servers of `https://`."),
    ("[[routes]]", "upstream"): ("text", "", "The upstream it leads to: one of these three is there."),
    ("[[routes]]", "answer"): ("table", "", "What the proxy answers itself, below."),
    ("[[routes]]", "redirect"): ("table", "", "Where clients are sent, below."),
}
#: What annotations say, to who writes TOML.
WORDS = (
    (r"^bool \| str", "true, false or a text"),
    (r"^int \| str", "time, or a text"),
    (r"^bool", "true or false"),
    (r"^int", "whole number"),
    (r"^float", "number"),
    (r"^(str|bytes)", "text"),
    (r"^(tuple|frozenset)\[int", "list of numbers"),
    (r"^(tuple|frozenset)\[Mapping", "list of tables"),
    (r"^(tuple|frozenset)\[", "list of texts"),
    (r"", "table"),
)


def tables() -> dict[str, tuple[Any, list[str]]]:
    """Return the tables as they are read: the class of each, and its keys."""
    found: dict[str, tuple[Any, list[str]]] = {}
    made = Tables.made

    def record(self: Tables, table: str, given: Any, kind: Any, **more: Any) -> Any:
        name = re.sub(r" no\. \d+", "", table).replace("listen tls", "[listen.tls]")
        fields = [each.name for each in dataclasses.fields(kind) if each.init and each.name not in more]
        _, keys = found.setdefault(name, (kind, []))
        keys += [key for key in (*more.get("others", ()), *fields) if key not in keys]
        return made(self, table, given, kind, **more)

    Tables.made = record  # type: ignore[method-assign]
    try:
        configuration()
        wrong = {"?": 1}
        with contextlib.suppress(ConfigError):
            parse_config({"listen": [{"address": ":1", "tls": wrong}], "upstreams": {"NAME": {"tls": wrong}}})
    finally:
        Tables.made = made  # type: ignore[method-assign]
    return found


def kind_of(field: dataclasses.Field[Any]) -> str:
    annotation = str(field.type)
    word = next(word for pattern, word in WORDS if re.match(pattern, annotation))
    unit = unit_of(field.name, annotation)
    if unit is not None and word in ("whole number", "number"):
        word = {"bytes": "size", "seconds": "time"}[unit.name]
    return f'{word}, or `"none"`' if _takes_none(field) else word


def default_of(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else "not set"
    if isinstance(value, frozenset):
        value = sorted(value)
    if value is None or not isinstance(value, bool | int | float | str | tuple | list):
        return "not set"
    return f"`{_shown(value)}`"


def comment_of(kind: Any, name: str) -> str:
    """Return what is said of a field in place, in the words of TOML."""
    lines = [line.strip() for line in inspect.getsource(kind).splitlines()]
    place = next(number for number, line in enumerate(lines) if line.startswith(f"{name}: "))
    said: list[str] = []
    while lines[place - 1].startswith("#:"):
        place -= 1
        said.insert(0, lines[place].removeprefix("#:").strip())
    text = " ".join(said).replace("``", "`").replace("|", "\\|")
    text = re.sub(r":data:`(\w+)`", lambda match: ", ".join(f"`{each}`" for each in getattr(options, match[1])), text)
    for pattern, word in ((r"\bNone\b(?!`)", "Not set"), (r"\bTrue\b", "true"), (r"\bFalse\b", "false")):
        text = re.sub(pattern, word, text)
    text = text.replace("; Not set", "; not set")
    return re.sub(r"`(\w+)\.(\w+)`", r"`\2`", text)


def made() -> str:
    parts = []
    for name, (kind, keys) in tables().items():
        about = inspect.getdoc(kind) or ""
        about = about.partition("\n\nRaises:")[0].replace("``", "`")
        about = re.sub(r":\w+:`\.?(\w+)`", r"`\1`", about)
        rows = []
        for key in keys:
            field = next((each for each in dataclasses.fields(kind) if each.name == key), None)
            if (name, key) in BY_HAND:
                what, default, text = BY_HAND[name, key]
            else:
                assert field is not None, f"{name} {key}: BY_HAND?"
                what, default, text = kind_of(field), default_of(field), comment_of(kind, key)
            rows.append(f"| `{key}` | {what} | {default} | {text} |\n")
        parts.append(f"## `{name}`\n\n{about}\n\n| key | what it is | default | |\n|---|---|---|---|\n{''.join(rows)}")
    return MARK + "\n" + "\n".join(parts)


def test_the_page_is_as_the_code_is():
    """If it is not: run this module as a program."""
    _, mark, below = PAGE.read_text().partition(MARK)
    assert mark + below == made()


def test_every_key_stands_there():
    text = PAGE.read_text()
    for table, keys in configuration().items():
        shown = text.partition(f"## `{table}`\n")[2].partition("\n## ")[0] if table else text.partition(MARK)[0]
        assert shown, f"{table} is none of {PAGE.name}"
        assert [key for key in keys if f"| `{key}` |" not in shown] == [], table
    head = text.partition(MARK)[0]
    assert [table for table in TABLES if f"| `{table}` |" not in head] == []
    assert [field for field in FIELDS if f"`{{{field}}}`" not in head] == []


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(MARK)[0] + made())
