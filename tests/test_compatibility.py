"""What docs/compatibility.md promises: the names that programs import, and the keywords that they give."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import greensock
import greensock.http
import greensock.proxy

HERE = Path(__file__).resolve().parent
#: What was promised so far. Add to it what is new; what is taken out was named in the changelog a version before.
PROMISED = HERE / "promised.json"
PACKAGES = (greensock, greensock.http, greensock.proxy)


def members(value: object) -> list[str]:
    """Return the public methods, properties and attributes of a class; for a function, its parameters."""
    if inspect.isclass(value):
        return sorted(
            {
                name
                for cls in value.__mro__
                if cls.__module__.startswith("greensock")
                for name in vars(cls)
                if not name.startswith("_")
            }
        )
    if inspect.isfunction(value):
        return list(inspect.signature(value).parameters)
    return []


def offered() -> dict[str, dict[str, list[str]]]:
    return {
        package.__name__: {name: members(getattr(package, name)) for name in sorted(package.__all__)}
        for package in PACKAGES
    }


def test_nothing_that_was_promised_is_gone():
    now = offered()
    gone = [
        f"{package}.{name}" + (f".{member}" if member else "")
        for package, names in json.loads(PROMISED.read_text()).items()
        for name, promised in names.items()
        for member in (promised if name in now[package] else [""])
        if name not in now[package] or member not in now[package][name]
    ]
    assert not gone


def test_what_is_new_is_promised():
    """Run this module as a program to write it down."""
    assert json.loads(PROMISED.read_text()) == offered()


def test_programs_import_from_what_is_promised():
    for root in ("examples", "loadtests"):
        for path in (HERE.parent / root).rglob("*.py"):
            for line in path.read_text().splitlines():
                if line.lstrip().startswith(("from greensock", "import greensock")):
                    assert line.split()[1] in {package.__name__ for package in PACKAGES}, f"{path}: {line}"


if __name__ == "__main__":
    PROMISED.write_text(json.dumps(offered(), indent=1) + "\n")
