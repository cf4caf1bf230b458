"""What docs/compatibility.md promises: the names that programs import and call, their parameters and defaults."""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import pure_only

import greensock
import greensock.http
import greensock.locust
import greensock.proxy
from greensock.http import Phase, Reason
from greensock.proxy import ConfigError, parse_config

#: They look at the sources, and at what only functions of Python tell of themselves.
pytestmark = pure_only

HERE = Path(__file__).resolve().parent
#: What was promised so far. Add to it what is new; what is taken out was named in the changelog a version before.
PROMISED = HERE / "promised.json"
PACKAGES = (greensock, greensock.http, greensock.locust, greensock.proxy)
DOCUMENT = (HERE.parent / "docs" / "compatibility.md").read_text()
#: The public names that are there for the library's own layers, by class.
OF_THE_LIBRARY = {
    name: set(re.findall(r"`(\w+)`", row))
    for name, row in re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT, re.MULTILINE)
}
#: Classes whose objects a program gets and never makes.
MADE_BY_THE_LIBRARY = set(re.findall(r"`(\w+)`", re.search(r"\*\*To make objects of(.*?)\n- ", DOCUMENT, re.DOTALL)[1]))
#: Enums of which the values are promised, and not only the names.
TOKENS = (Phase, Reason)
#: What stands for a default that is no plain value: there is one, and that is all that is promised of it.
SOME = "..."

#: What a member is: its parameters, its default, or "" if it is only there.
Member = list[str] | str


def plain(value: object, otherwise: str) -> str:
    if isinstance(value, tuple | list | frozenset) and any(plain(each, "") == "" for each in value):
        return otherwise
    if isinstance(value, frozenset):
        return f"frozenset({sorted(value, key=repr)})"
    is_plain = value is None or type(value) in (bool, int, float, str, bytes, tuple, list)
    return repr(value).replace(greensock.__version__, "VERSION") if is_plain else otherwise


def parameters(call: Callable[..., Any], is_method: bool = False) -> list[str]:
    """Return them as they are written, with ``*`` before those that are given by keyword only."""
    found: list[str] = []
    is_keyword = False
    for each in list(inspect.signature(call).parameters.values())[is_method:]:
        if each.kind is each.VAR_POSITIONAL or (each.kind is each.KEYWORD_ONLY and not is_keyword):
            found += ["*"] if each.kind is each.KEYWORD_ONLY else []
            is_keyword = True
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        default = "" if each.default is each.empty else f"={plain(each.default, SOME)}"
        found.append(f"{stars}{each.name}{default}")
    return found


def assigned(cls: type) -> Iterator[str]:
    """Go through the attributes that a class gives to its objects when they are made."""
    if not inspect.isfunction(vars(cls).get("__init__")) or dataclasses.is_dataclass(cls):
        return
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls.__init__)))):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                yield target.attr


def member(owner: type, name: str, value: object) -> Member:
    if isinstance(value, staticmethod | classmethod):
        return parameters(getattr(owner, name))
    if inspect.isfunction(value):
        return parameters(value, is_method=True)
    if isinstance(value, enum.Enum):
        return repr(value.value) if isinstance(value, TOKENS) else ""
    for field in dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ():
        if field.name == name:
            return plain(field.default, SOME if field.default_factory is not dataclasses.MISSING else "")
    return plain(value, "")


def of_class(cls: type) -> dict[str, Member]:
    """Return the public methods, properties and attributes of a class, and in parentheses what has no name.

    That is: what it is made with, what options it takes, and, for an error, what it is caught by.
    """
    found: dict[str, Member] = {}
    hidden: set[str] = set()
    for base in reversed([each for each in cls.__mro__ if each.__module__.startswith("greensock")]):
        hidden |= OF_THE_LIBRARY.get(base.__name__, set())
        for name in (*inspect.get_annotations(base), *assigned(base)):
            found.setdefault(name, "")
        found.update({name: member(base, name, value) for name, value in vars(base).items()})
        if "__init__" in vars(base) and not getattr(cls, "_is_protocol", False):
            found["()"] = parameters(base.__init__, is_method=True)
    if issubclass(cls, enum.Enum):
        found.update({name: member(cls, name, value) for name, value in cls.__members__.items()})
    names = sorted(name for name in found if not name.startswith("_") and name not in hidden)
    if cls.__name__ in MADE_BY_THE_LIBRARY:
        names = [name for name in names if name != "()"]
    if rules := getattr(cls, "option_rules", None):
        found["(options)"] = sorted(rules)
        names.append("(options)")
    if issubclass(cls, Exception):
        found["(bases)"] = sorted(base.__name__ for base in cls.__mro__[1:-1])
        names.append("(bases)")
    return {name: found[name] for name in names}


def of_name(value: object) -> dict[str, Member]:
    if inspect.isclass(value):
        return of_class(value)
    return {"()": parameters(value)} if inspect.isfunction(value) else {}


def configuration() -> dict[str, list[str]]:
    """Return the keys of each table of the proxy's configuration, as it names them where a key is none of them."""
    wrong = {"?": 1}
    route = dict.fromkeys(("timeouts", "request_fields", "response_fields", "guard"), wrong)
    upstream = {"servers": [wrong], "health": wrong, "sticky": wrong, **wrong}
    one_level = ("server", "log", "limits", "answer_limits", "timeouts", "forwarding", "guard", "operations")
    routes = [{**route, "upstream": "NAME", **wrong}, {"answer": wrong}, {"redirect": wrong}]
    with pytest.raises(ConfigError) as caught:
        parse_config({**wrong, **dict.fromkeys(one_level, wrong), "upstreams": {"NAME": upstream}, "routes": routes})
    return {
        re.sub(r" no\. \d+", "", problem.table): sorted(re.findall(r"\w+", problem.expected)[5:-1])
        for problem in caught.value.errors
        if problem.key == "?"
    }


def offered() -> dict[str, dict[str, Any]]:
    return {
        **{
            package.__name__: {name: of_name(getattr(package, name)) for name in sorted(package.__all__)}
            for package in PACKAGES
        },
        "the configuration": configuration(),
    }


def broken(promised: Any, now: Any, path: str) -> Iterator[str]:
    """Go through what no longer does for who relies on what was promised; more may have been added."""
    if isinstance(promised, dict) and isinstance(now, dict):
        for key, value in promised.items():
            if key in now:
                yield from broken(value, now[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(promised, list) and isinstance(now, list):
        new = [each for each in now if each not in promised]
        is_call = not path.endswith((".(options)", ".(bases)")) and not path.startswith("the configuration")
        if [each for each in now if each in promised] != promised or (is_call and any("=" not in each for each in new)):
            yield f"{path}: {promised}, and now {now}"
    elif promised != now:
        yield f"{path}: {promised!r}, and now {now!r}"


def test_nothing_that_was_promised_is_gone():
    promised, now = json.loads(PROMISED.read_text()), offered()
    assert not [each for key in promised for each in broken(promised[key], now[key], key)]


def test_what_is_new_is_promised():
    """Run this module as a program to write it down."""
    assert json.loads(PROMISED.read_text()) == offered()


@pytest.mark.parametrize(
    "now",
    [
        {"()": ["a", "c=2", "*", "b=1"], "(options)": ["x", "y"], "value": "1.0"},
        {"()": ["a", "*", "b=1"], "(options)": ["x"], "value": "1.0", "more": ""},
    ],
)
def test_what_is_added_breaks_nothing(now):
    assert not [*broken({"()": ["a", "*", "b=1"], "(options)": ["x"], "value": "1.0"}, now, "greensock.Name")]


@pytest.mark.parametrize(
    "now",
    [
        {"()": ["a", "*", "b=1"]},
        {"()": ["a", "*", "b=2"], "value": "1.0"},
        {"()": ["a", "*", "b"], "value": "1.0"},
        {"()": ["a", "*"], "value": "1.0"},
        {"()": ["A", "*", "b=1"], "value": "1.0"},
        {"()": ["a", "c", "*", "b=1"], "value": "1.0"},
        {"()": ["*", "a", "b=1"], "value": "1.0"},
        {"()": ["a", "*", "b=1"], "value": "2.0"},
        {"()": "", "value": "1.0"},
    ],
)
def test_what_breaks_a_promise(now):
    assert len([*broken({"()": ["a", "*", "b=1"], "value": "1.0"}, now, "greensock.Name")]) == 1


def test_the_errors_say_what_the_documents_name():
    promised = {name: of_name(getattr(package, name)) for package in PACKAGES for name in package.__all__}
    for name, attributes in {
        "GreensockError": "connection",
        "ConnectionClosed": "connection reason",
        "ConnectFailed": "address",
        "IncompleteMessage": "partial expected",
        "ProtocolError": "status",
        "WouldBlock": "connection limit value",
        "OperationTimeout": "operation seconds sent",
        "BadRequest": "connection reason status",
        "HeadTimeout": "phase seconds status",
        "HTTPError": "response",
        "ConfigError": "errors",
    }.items():
        assert set(attributes.split()) <= set(promised[name]), name


def test_the_tables_of_the_configuration_are_all_there():
    tables = json.loads(PROMISED.read_text())["the configuration"]
    assert {"listen", "server", "upstreams", "routes"} <= set(tables[""])
    assert {"upstream", "answer", "redirect", "path"} <= set(tables["[[routes]]"])
    assert {"url", "weight"} <= set(tables["[upstreams.NAME] servers"])
    assert len(tables) == 20, sorted(tables)


def test_the_names_of_the_librarys_own_are_there():
    """So that the list does not outlive them, and names no other."""
    exported = {name: getattr(package, name) for package in PACKAGES for name in package.__all__}
    for owner, names in OF_THE_LIBRARY.items():
        there = {*dir(exported[owner]), *(name for base in exported[owner].__mro__ for name in assigned(base))}
        assert names <= there, f"{owner}: {sorted(names - there)}"
        assert not [name for name in names if name.startswith("_")], owner


def test_what_programs_are_shown_is_not_the_librarys_own():
    shown = (HERE.parent / "README.md").read_text()
    shown += "".join(path.read_text() for path in (HERE.parent / "examples").glob("*.py"))
    for variable, owner in (("conn", "Connection"), ("relay", "Relay"), ("request", "Request"), ("gateway", "Gateway")):
        used = set(re.findall(rf"\b{variable}\.(\w+)", shown))
        assert used, variable
        assert not used & OF_THE_LIBRARY[owner], variable


def test_the_seam_of_the_http_server_is_no_promise():
    seam = re.findall(r"``(\w+)``", greensock.http.server.__doc__.partition("need none of these:")[2])
    assert len(seam) > 10
    assert set(seam) <= OF_THE_LIBRARY["HTTPServer"]


def test_the_loggers_are_those_that_are_promised():
    row = next(line for line in DOCUMENT.split("\n- ") if line.startswith("**Loggers.**"))
    promised = set(re.findall(r"`(greensock\.\w+)`", row))
    sources = "".join(path.read_text() for path in (HERE.parent / "greensock").rglob("*.py"))
    assert promised == set(re.findall(r'getLogger\("([^"]+)"\)', sources))


def test_programs_import_from_what_is_promised():
    for root in ("examples", "loadtests"):
        for path in (HERE.parent / root).rglob("*.py"):
            for line in path.read_text().splitlines():
                if line.lstrip().startswith(("from greensock", "import greensock")):
                    assert line.split()[1] in {package.__name__ for package in PACKAGES}, f"{path}: {line}"


if __name__ == "__main__":
    PROMISED.write_text(json.dumps(offered(), indent=1) + "\n")
