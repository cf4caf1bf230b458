"""The lines of a configuration: each key that tomllib finds has its line, and so has each problem."""

from __future__ import annotations

import importlib
import random
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greensock.proxy import ConfigError, check_listeners, load_config
from greensock.proxy.key_lines import KeyLines, name_of, path_of

toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

#: Keys as they are written.
KEYS = ("a", "b-c", '"d.e"', "'f] = g'", '"h\\u00e9\\"#"', "12")
#: What may stand between things.
GAPS = ("", " ", "\t", "  ")
#: What looks like something else within a string, around its mark.
ODD = ("# no comment {}", "[no.table]{}", "k = {}", "{{ {} }}", "{} ]")


class Document:
    """A document of TOML that is made by chance; each of its values has a number of its own on its line."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.count = 10000
        parts = [self.pairs("top", 0)]
        for number in range(chance.randrange(5)):
            parts.append(self.section(f"t{number}"))
        self.text = chance.choice(["", "\n# first\n"]) + "".join(parts)
        if chance.random() < 0.2:
            self.text = self.text.replace("\n", "\r\n")

    def gap(self) -> str:
        return self.chance.choice(GAPS)

    def end(self) -> str:
        return self.gap() + self.chance.choice(["", "# [x]", "# a = 1", "#"]) + "\n" * self.chance.choice([1, 1, 2])

    def section(self, name: str) -> str:
        kind = self.chance.randrange(4)
        if kind == 0:
            return f"[{self.gap()}{name}]{self.end()}" + self.pairs("x", 0)
        if kind == 1:
            return f"[{name}.sub.'p.q']{self.end()}{self.pairs('x', 0)}[{name}]{self.end()}{self.pairs('y', 0)}"
        parts = []
        for _ in range(self.chance.randrange(1, 4)):
            parts += [f"[[{name}]]{self.end()}", self.pairs("x", 0)]
            if kind == 2:
                parts += [f"[{name}.in]{self.end()}", self.pairs("y", 0)]
            else:
                for _ in range(self.chance.randrange(3)):
                    parts += [f"[[ {name} . deep ]]{self.end()}", self.pairs("y", 0)]
                parts += [f'[{name}.other."more"]{self.end()}', self.pairs("z", 0)]
        return "".join(parts)

    def pairs(self, prefix: str, depth: int) -> str:
        made = []
        for key in self.chance.sample(KEYS, self.chance.randrange(len(KEYS))):
            dotted = f"{prefix}{self.gap()}.{self.gap()}{key}" if self.chance.random() < 0.3 else key
            made.append(f"{self.gap()}{dotted}{self.gap()}={self.gap()}{self.value(depth)}{self.end()}")
        return "".join(made)

    def value(self, depth: int, within: bool = False) -> str:
        self.count += 1
        mark = str(self.count)
        odd = self.chance.choice(ODD).format(mark)
        simple = [
            *(mark, f'"{mark}"', f"'{mark}'", f'"{odd}"', f"'{odd}\"'", f'"\\"{odd}\\\\"', f"'{odd}'"),
            *(f"0x{mark}", f"{mark}.5e1", f"2020-01-02T03:04:05.{mark}Z", f"2020-01-02 03:04:05.{mark}"),
        ]
        several = [
            f'"""{odd}\n[no]\na = 1\n"""',
            f"'''{odd}\n]] }} \\\n'''",
            f'"""{odd} ""\n\\""" \\\\"""',
            f'"""""{mark}"""""',
            f"'''''{mark}'''''",
        ]
        kind = self.chance.randrange(8)
        if kind < 4 or depth > 2:
            return self.chance.choice(simple)
        if kind < 6 and not within:
            return self.chance.choice(several)
        if kind == 6:
            gap = self.gap if within else self.end
            items = [f"{gap()}{self.value(depth + 1, within)}{gap()}" for _ in range(self.chance.randrange(4))]
            comma = "," if items and self.chance.random() < 0.5 else ""
            return f"[{','.join(items)}{comma}{gap()}]"
        keys = self.chance.sample(KEYS, self.chance.randrange(4))
        inner = ",".join(f"{self.gap()}{key} ={self.gap()}{self.value(depth + 1, True)}{self.gap()}" for key in keys)
        return f"{{{inner}}}"


def places(value, path=()):
    """Go through all that is in a document, with the way there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key), each
        yield from places(each, (*path, key))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 64))
def test_every_key_that_tomllib_finds_has_its_line(seed):
    text = Document(random.Random(seed)).text
    there = dict(places(toml.loads(text)))
    lines = KeyLines(text)
    assert set(lines.paths) == set(there)
    numbers = {
        number: line for line, written in enumerate(text.split("\n"), 1) for number in re.findall(r"1\d{4}", written)
    }
    for path, value in there.items():
        if not isinstance(value, dict | list):
            shown = hex(value) if isinstance(value, int) and value > 65535 else str(value)
            mark = re.search(r"1\d{4}", shown)
            assert mark is not None, shown
            assert lines.find(path) == numbers[mark[0]], path


def test_what_is_missing_stands_where_it_would():
    lines = KeyLines('a = 1\n\n[b.c]\nd = [\n  1,\n  { e = 2 },\n]\n[[f]]\n[[f]]\ng."h.i" = 3\n')
    for path, line in {
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 3,
        ("b", "c", "x", "y"): 3,
        ("b", "c", "d", 1, "e"): 6,
        ("b", "c", "d", 7): 4,
        ("f",): 8,
        ("f", 1): 9,
        ("f", 1, "g", "h.i"): 10,
        ("z",): 0,
    }.items():
        assert lines.find(path) == line, path


def test_names_lead_there_and_back():
    mapping = {
        "listen": ["a", {"tls": {"key": "x"}}],
        "upstreams": {"a": {"servers": ["x", {"url": "y"}], "health": {"path": "/"}}, "a.b": {"balance": "x"}},
        "routes": [{"answer": {"status": 1}}, {"path": "/"}],
        "log": {"path": "x"},
    }
    for table, key, path in [
        ("", "listen", ("listen",)),
        ("listen no. 2 tls", "key", ("listen", 1, "tls", "key")),
        ("[log]", "path", ("log", "path")),
        ("[upstreams.a]", "servers", ("upstreams", "a", "servers")),
        ("[upstreams.a] servers no. 2", "url", ("upstreams", "a", "servers", 1, "url")),
        ("[upstreams.a.health]", "path", ("upstreams", "a", "health", "path")),
        ("[upstreams.a.b]", "balance", ("upstreams", "a.b", "balance")),
        ("[[routes]] no. 1 answer", "status", ("routes", 0, "answer", "status")),
        ("[[routes]] no. 2", "path", ("routes", 1, "path")),
    ]:
        assert path_of(mapping, table, key) == path
        assert name_of(path) == (table, key)
    assert path_of(mapping, "[upstreams.c.health]", "path") == ("upstreams", "path"), "as far as there is a way"
    assert name_of(("upstreams", "a", "servers", 0)) == ("[upstreams.a]", "servers")


WRONG = """\
listen = ["127.0.0.1:0"]
abort_on_eof = 1

[log]
# a comment
formt = "json"

[upstreams.app]
servers = [
    "http://127.0.0.1:9000",
    { url = "http://127.0.0.1:9001", weight = 0 },
    "nonsense",
]
[upstreams.app.health]
interval = "5M"

[[routes]]
path = "/a"
answer = { status = 200, body = '''
[no.table]
''' }

[[routes]]
path = "/b"
upstream = "ap"
response_fields = { set = { "X A" = "b" } }
"""


def test_problems_have_their_lines(tmp_path):
    file = tmp_path / "proxy.toml"
    file.write_text(WRONG)
    with pytest.raises(ConfigError) as caught:
        load_config(str(file))
    assert [(each.line, each.key) for each in caught.value.errors] == [
        (2, "abort_on_eof"),
        (6, "formt"),
        (11, "weight"),
        (12, "url"),
        (15, "interval"),
        (25, "upstream"),
        (26, "set"),
    ]
    text = str(caught.value).splitlines()
    assert text[1] == f'{file}:6: [log] formt = "json": no such key: format?'
    start = f'{file}:15: [upstreams.app.health] interval = "5M": seconds, more than 0 expected (a number'
    assert text[4].startswith(start)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"a = 1\nb = \n", 2),
        (b"a = 1\n\n[b\nc = 1\n", 3),
        (b'a = 1\nb = """\n\n', 4),
        (b"a = 1\n# \xff\n", 2),
        (b"a = 1\na = 2\n", 2),
    ],
)
def test_what_is_no_toml_has_its_line(tmp_path, data, line):
    file = tmp_path / "proxy.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_config(str(file))
    (problem,) = caught.value.errors
    assert str(problem).startswith(f"{file}:{line}: no TOML: ")


def test_what_cannot_be_listened_on_has_its_line(tmp_path):
    file = tmp_path / "proxy.toml"
    listen = 'listen = [\n  "127.0.0.1:8080",\n  { address = "192.0.2.1:8080" }\n]\n'
    file.write_text(f'# here\n{listen}[upstreams.a]\nservers = ["http://127.0.0.1:1"]\n')
    (problem,) = check_listeners(load_config(str(file)), str(file))
    assert str(problem) == f'{file}:4: listen = "192.0.2.1:8080": an address of this machine expected'
