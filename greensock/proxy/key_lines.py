"""The lines of a TOML file: where each key and each item stands. Pure.

tomllib tells no lines. So the text is read once more, when there is something to be told about it and only then. It is
a text that tomllib has taken: what is read here is no more than where keys, strings, arrays and tables begin and end.
What is found is the same as what tomllib finds: test_every_key_that_tomllib_finds_has_its_line.
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

__all__ = ["KeyLines", "name_of", "path_of"]

#: The way from the top to a key, or to an item of an array: names, and numbers from 0.
Path = tuple[str | int, ...]

_blank = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*").match
_bare = re.compile(r"[A-Za-z0-9_-]+").match
_string = re.compile(
    # Up to two more quotes may stand before the three that end it.
    r'"""(?:\\.|(?!""")[^\\])*"""(?:"{0,2})'
    r"|'''(?:(?!''').)*'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
).match
_scalar = re.compile(r"[^,\]}#\r\n]*").match


class KeyLines:
    """Where everything stands in a text of TOML."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._lines: dict[Path, int] = {}
        self._tables: dict[Path, int] = {}  # how many tables each array of tables has so far
        self._read()

    def find(self, path: Path) -> int:
        """Return the line of a key or an item, from 1 on; of what it would stand in, if it is not there; else 0."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 0)

    @property
    def paths(self) -> Mapping[Path, int]:
        """All that there is, with its line."""
        return self._lines

    def _read(self) -> None:
        base: Path = ()
        while self._skip():
            if self._here() == "[":
                base = self._read_header()
            else:
                self._read_pair(base)

    def _skip(self) -> bool:
        """Pass over what is blank, and over comments; False: that was all."""
        match = _blank(self._text, self._at)
        self._at = match.end() if match is not None else self._at
        return self._at < len(self._text)

    def _here(self) -> str:
        return self._text[self._at : self._at + 1]

    def _line(self) -> int:
        return bisect_left(self._ends, self._at) + 1

    def _read_header(self) -> Path:
        """Read ``[a.b]`` or ``[[a.b]]``; return the table that it begins."""
        line = self._line()
        brackets = 2 if self._text.startswith("[[", self._at) else 1
        self._at += brackets
        *way, last = self._read_key()
        self._at += brackets
        path: Path = ()
        for name in way:
            path = (*path, name)
            self._lines.setdefault(path, line)
            if path in self._tables:  # what stands below an array is of its last table
                path = (*path, self._tables[path] - 1)
        path = (*path, last)
        if brackets == 1:
            self._lines[path] = line
            return path
        count = self._tables[path] = self._tables.get(path, 0) + 1
        self._lines.setdefault(path, line)
        path = (*path, count - 1)
        self._lines[path] = line
        return path

    def _read_pair(self, base: Path) -> None:
        line = self._line()
        path = base
        for name in self._read_key():
            path = (*path, name)
            self._lines.setdefault(path, line)
        self._at += 1  # the =
        self._read_value(path)

    def _read_key(self) -> list[str]:
        """Read a key, which may be dotted; what follows is the ``=`` or the bracket behind it."""
        names = []
        while True:
            self._skip()
            match = _bare(self._text, self._at)
            if match is not None:
                names.append(match[0])
            else:
                match = _string(self._text, self._at)
                assert match is not None
                # The escapes are those of Python.
                names.append(match[0][1:-1] if match[0][0] == "'" else str(ast.literal_eval(match[0])))
            self._at = match.end()
            self._skip()
            if self._here() != ".":
                return names
            self._at += 1

    def _read_value(self, path: Path) -> None:
        self._skip()
        match = _string(self._text, self._at)
        if match is not None:
            self._at = match.end()
        elif self._here() == "[":
            self._read_array(path)
        elif self._here() == "{":
            self._read_inline(path)
        else:
            match = _scalar(self._text, self._at)
            assert match is not None
            self._at = match.end()

    def _read_array(self, path: Path) -> None:
        self._at += 1
        index = 0
        while self._skip():
            here = self._here()
            if here in ("]", ","):
                self._at += 1
                if here == "]":
                    return
                continue
            place = (*path, index)
            self._lines[place] = self._line()
            self._read_value(place)
            index += 1

    def _read_inline(self, path: Path) -> None:
        self._at += 1
        while self._skip():
            here = self._here()
            if here in ("}", ","):
                self._at += 1
                if here == "}":
                    return
                continue
            self._read_pair(path)


def path_of(mapping: Mapping[str, Any], table: str, key: str) -> Path:
    """Return the way to what a problem is about, as it names it: ``[upstreams.app] servers no. 2``, ``weight``.

    The names in brackets may have dots in them: what is in the mapping decides. What is missing there ends the way.
    """
    head, bracket, rest = table.strip("[").partition("]")
    if not table.startswith("["):
        head, rest = "", table
    path: Path = _dotted(mapping, head) if bracket else ()
    words = iter(rest.strip("] ").split(" "))
    for word in words:
        if word == "no.":
            number = next(words, "")
            if not number.isdecimal():
                break  # it is part of a name
            path = (*path, int(number) - 1)
        elif word:
            path = (*path, word)
    return (*path, key) if key else path


def _dotted(mapping: Any, names: str) -> Path:
    """Return the way along dotted names, as far as there is one."""
    if isinstance(mapping, Mapping):
        for name in sorted(mapping, key=len, reverse=True):
            if names == name:
                return (name,)
            if names.startswith(f"{name}."):
                return (name, *_dotted(mapping[name], names[len(name) + 1 :]))
    return ()


def name_of(path: Path) -> tuple[str, str]:
    """Return the table and the key, as problems name them: the other way round."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    *way, key = path
    # What is a list stands behind the brackets, with the number of the item.
    first = next((place for place, each in enumerate(way) if isinstance(each, int)), len(way) + 1)
    inside, outside = way[: first - 1], way[first - 1 :]
    words = [f"[{'.'.join(map(str, inside))}]"] if inside else []
    for each in outside:
        shown = "[[routes]]" if each == "routes" and not words else each
        words.append(f"no. {each + 1}" if isinstance(each, int) else str(shown))
    return " ".join(words), str(key)
