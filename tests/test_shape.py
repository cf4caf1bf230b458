"""The shape of the code: which way imports go, what is exported, what is documented, what importing does not do."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from gevent import monkey
from served import pure_only

import greensock
import greensock.http
import greensock.locust
import greensock.proxy
from greensock import Connection
from greensock.core import syscalls
from greensock.core.poller import Endpoint
from greensock.http.wire.message_parser import ParserState
from greensock.pool_state import Action
from greensock.server_options import OPTIONS

#: They look at the sources, and at what only functions of Python tell of themselves.
pytestmark = pure_only

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "greensock"
#: Modules that stand beside the layers: who may import them is said here and not in the table.
TOLD = ("exposition", "status_report")
BESIDE = {"version": {"greensock", "greensock.cli", *(f"greensock.operations.{name}" for name in TOLD)}}
#: Packages that are built on what greensock exports.
BUILT_ON_IT = ("greensock.http", "greensock.proxy", "greensock.gunicorn", "greensock.locust")
#: Modules that talk to whoever started the program.
COMMAND_LINE = {"cli", "__main__"}
#: Modules that run as a process of their own, and do in it, when it begins, what is a program's to do.
PROCESSES = {"greensock.gunicorn.base_worker", "greensock.gunicorn.master"}
PROGRAMS = sorted([*(ROOT / "examples").rglob("*.py"), *(ROOT / "loadtests").rglob("*.py")])


def name_of(path: Path) -> str:
    """Return the name of a module by which it is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


#: Every module, packages too, by its name.
MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py"]
LIBRARY = [name for name in MODULES if name.rpartition(".")[2] not in COMMAND_LINE]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def layers(package: str) -> list[str]:
    """Return what the table in a package's ``__init__.py`` names, lowest first."""
    doc = ast.get_docstring(tree(MODULES[package])) or ""
    _, table, _ = re.split(r"^=+  =+$", doc, flags=re.MULTILINE)
    return [f"{package}.{row.split('  ')[0]}" for row in table.strip().splitlines()]


def in_order(package: str) -> Iterator[str]:
    """Go through all modules below a package, lowest first; a package itself comes behind its modules."""
    for name in layers(package):
        if name in PACKAGES:
            yield from in_order(name)
        yield name


ORDER = [*in_order("greensock"), "greensock"]


def imports(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Go through the modules that are imported, for types only and inside functions too, and the names from each."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, "") for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            yield from ((module, alias.name) for alias in child.names)


def of_greensock(path: Path) -> list[tuple[str, str]]:
    return [(module, name) for module, name in imports(tree(path)) if module.split(".")[0] in ("greensock", "")]


def exported(path: Path) -> list[str] | None:
    """Return ``__all__`` as it is written; None if there is none."""
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


# -- the layers


@pytest.mark.parametrize("package", PACKAGES)
def test_the_table_names_every_module_once(package):
    beside = {f"greensock.{name}" for name in {*BESIDE, *COMMAND_LINE}}
    below = [name for name in MODULES if name.rpartition(".")[0] == package and name not in beside]
    assert sorted(layers(package)) == sorted(below)


@pytest.mark.parametrize("importer", ORDER)
def test_imports_go_one_way(importer):
    """So there is no circle. Of the engine, what stands on it imports what greensock exports, and no module of it."""
    above = ORDER[: ORDER.index(importer)]
    for module, name in of_greensock(MODULES[importer]):
        if module.removeprefix("greensock.") in BESIDE:
            assert importer in BESIDE[module.removeprefix("greensock.")]
            continue
        if module == "greensock":
            assert importer.startswith(BUILT_ON_IT), f"{importer}: written in full expected"
            assert name in greensock.__all__, f"{importer} imports {name}, which greensock does not export"
            continue
        assert module in above, f"{importer} imports {module}, which does not stand above it"
        assert module not in PACKAGES, f"{importer} imports from {module}: from the module itself expected"
        assert name in (exported(MODULES[module]) or []), f"{importer} imports {name} from {module}"
        if importer.startswith(tuple(f"{package}." for package in BUILT_ON_IT)):
            beside = ("greensock.choice", "greensock.limits.", "greensock.shared_pages", "greensock.sources")
            beside += ("greensock.operations.",)
            allowed = (*(f"{package}." for package in BUILT_ON_IT), *beside)
            assert module.startswith(allowed), f"{importer} imports {module}"


def private_names() -> dict[str, set[Path]]:
    """Return the folders in which each name with an underscore is defined: as a function, an attribute or a slot."""
    found: dict[str, set[Path]] = {}
    for path in MODULES.values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                name = node.name
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node):
                name = node.attr
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                name = node.value
            else:
                continue
            if re.match(r"_[^_]", name):
                found.setdefault(name, set()).add(path.parent)
    return found


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_an_underscore_is_private_to_its_folder():
    homes = private_names()
    assert len(homes) > 300
    reaches = [
        f"{name}:{node.lineno} {node.attr}"
        for name, path in MODULES.items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in homes and path.parent not in homes[node.attr]
    ]
    assert not reaches


def private_names_of(node: ast.ClassDef, used: bool) -> set[str]:
    """Return the names with an underscore that a class defines; with ``used`` those that it uses of itself, too."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef):
            found.add(inner.name)
        elif isinstance(inner, ast.Attribute) and is_own(inner) and (used or isinstance(inner.ctx, ast.Store)):
            found.add(inner.attr)
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str) and inner.value.isidentifier():
            found.add(inner.value)
    return {name for name in found if re.match(r"_[^_]", name)}


def test_no_class_uses_what_is_private_to_another_folder():
    """Of a base class of its own; where a name is used, it is not at home by that."""
    nodes = {
        (module, node.name): node
        for module, path in MODULES.items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
    }
    found = []
    for (module, name), node in nodes.items():
        cls = getattr(importlib.import_module(module), name, None)
        if cls is None:
            continue  # within a function, or for type checkers
        used = private_names_of(node, used=True)
        for base in cls.__mro__[1:]:
            there = nodes.get((base.__module__, base.__name__))
            if there is not None and MODULES[base.__module__].parent != MODULES[module].parent:
                both = used & private_names_of(there, used=False)
                found += [f"{module}.{name}: {each}, of {base.__name__}" for each in sorted(both)]
    assert not found


def test_no_class_overrides_what_is_private_to_another_folder():
    found = []
    for module in MODULES:
        for cls in vars(importlib.import_module(module)).values():
            if not isinstance(cls, type) or cls.__module__ != module:
                continue
            folder = MODULES[module].parent
            for base in cls.__mro__[1:]:
                if base.__module__ in MODULES and MODULES[base.__module__].parent != folder:
                    both = {name for name in vars(cls).keys() & vars(base).keys() if re.match(r"_[^_]", name)}
                    found += [f"{cls.__qualname__}.{name}, of {base.__qualname__}" for name in both]
    assert not found


def test_what_stands_beside_is_imported_by_few():
    for name, allowed in BESIDE.items():
        found = {who for who, path in MODULES.items() if f"greensock.{name}" in dict(of_greensock(path))}
        assert found <= allowed


def test_what_is_not_used_is_not_loaded():
    """Who serves lines loads no HTTP, and who serves HTTP no proxy."""
    for package, not_loaded in (
        ("greensock", "greensock.http"),
        ("greensock.http", "greensock.proxy"),
        ("greensock.http", "requests"),
        ("greensock.http", "locust"),
        ("greensock.proxy", "gunicorn"),
        ("greensock.gunicorn", "greensock.proxy"),
        ("greensock.http", "greensock.operations"),
        ("greensock.proxy", "prometheus_client"),
    ):
        program = f"import sys, {package}; sys.exit('{not_loaded}' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0, package


def test_a_connection_is_one_line_of_inheritance():
    """A compiler of classes refuses a diamond."""
    line = [Connection]
    while line[-1] is not Endpoint:
        (base,) = line[-1].__bases__
        line.append(base)
    assert [cls.__name__ for cls in line] == ["Connection", "Receiving", "Sending", "Lifecycle", "Endpoint"]


#: Bytes in, events out, or no more than words: no I/O of any kind.
PURE = [
    *(f"greensock.{name}" for name in ("errors", "framing", "server_options", "stats")),
    *layers("greensock.http.wire"),
]


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_know_neither_clock_nor_socket(name):
    found = {module.split(".")[0] for module, _ in imports(tree(MODULES[name]))}
    assert not found & {"gevent", "greenlet", "socket", "time", "os", "select", "logging"}, name


def test_programs_import_public_names_only():
    packages = {each.__name__: each for each in (greensock, greensock.http, greensock.locust, greensock.proxy)}
    for path in PROGRAMS:
        for module, name in of_greensock(path):
            public = packages.get(module)
            assert public is not None, f"{path}: from greensock import {name} expected, not from {module}"
            assert name == "" or name in public.__all__, path


def kinds_of(cls: type) -> dict[str, str]:
    """Return what each name is that a class brings: a method, a property, a slot, a value."""
    found = {}
    for name, value in vars(cls).items():
        if name.startswith("__"):
            continue
        if isinstance(value, types.FunctionType | classmethod | staticmethod):
            found[name] = "method"
        elif isinstance(value, types.MemberDescriptorType):
            found[name] = "slot"
        elif isinstance(value, property | functools.cached_property):
            found[name] = "property"
        else:
            found[name] = "value"
    try:
        source = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return found
    for node in ast.walk(source):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.setdefault(node.attr, "set")
    return found


#: Kinds that may stand for each other: a class attribute is the default of what is set, a slot is set.
ALIKE = [{"value", "set"}, {"value", "slot"}, {"slot", "set"}]
#: Methods that a server replaces on itself, with one of the same kind that costs less or that the program gave.
REPLACED = {"connection_recv", "written_head"}


def test_no_name_hides_another():
    """A slot once hid a method of a base class, which then was no method any more where it was needed."""
    classes = [
        value
        for name in MODULES
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and value.__module__.startswith("greensock")
    ]
    assert len(classes) > 150
    hidden = []
    for cls in set(classes):
        mine = kinds_of(cls)
        for base in cls.__mro__[1:]:
            if not base.__module__.startswith(("greensock", "gevent")):
                continue
            theirs = kinds_of(base)
            hidden += [
                f"{cls.__qualname__}.{name}, a {mine[name]}, hides {base.__qualname__}'s {theirs[name]}"
                for name in mine.keys() & theirs.keys() - REPLACED
                if mine[name] != theirs[name] and {mine[name], theirs[name]} not in ALIKE
            ]
    assert not hidden


# -- what is exported


@pytest.mark.parametrize("name", MODULES)
def test_all_is_true(name):
    module = importlib.import_module(name)
    without = name in PACKAGES or name in ("greensock.version", "greensock.__main__")
    if exported(Path(module.__file__)) is None and without:
        return
    assert module.__all__ == exported(Path(module.__file__))
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert hasattr(module, public), public
        home = getattr(getattr(module, public), "__module__", None) or module.__name__
        assert name in PACKAGES or not home.startswith("greensock") or home == module.__name__, public


def defined(path: Path) -> set[str]:
    """Return the names that are defined at the top level of a module."""
    names = set()
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))
        elif isinstance(node, ast.AnnAssign):
            names.add(ast.unparse(node.target))
    return names


def test_all_of_programs_is_true():
    """Read, not imported: what one of them needs may not be installed."""
    for path in PROGRAMS:
        assert set(exported(path) or []) <= defined(path), path


# -- what is documented


def public_members() -> Iterator[tuple[str, object]]:
    for name in LIBRARY:
        module = importlib.import_module(name)
        yield module.__name__, module
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public)
            if not (inspect.isclass(value) or inspect.isfunction(value)) or value.__module__ != module.__name__:
                continue
            yield f"{module.__name__}.{public}", value
            with_members = inspect.isclass(value) and not getattr(value, "_is_protocol", False)
            for member, attribute in vars(value).items() if with_members else ():
                if not member.startswith("_") and (inspect.isfunction(attribute) or isinstance(attribute, property)):
                    yield f"{module.__name__}.{public}.{member}", getattr(value, member)


def test_everything_public_has_a_docstring():
    """Its own, or that of the method it overrides."""
    missing = [name for name, value in public_members() if not (inspect.getdoc(value) or "").strip()]
    assert not missing


def attributes_without_comment(kind: type) -> tuple[list[str], list[str]]:
    """Return the attributes that are assigned in the body of the class, and those without a line ``#:`` above them."""
    lines, _ = inspect.getsourcelines(kind)
    (body,) = ast.parse("".join(lines)).body
    found, bare = [], []
    for node in body.body:
        if isinstance(node, ast.AnnAssign | ast.Assign):
            name = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
            above = lines[node.lineno - 2].strip()
            found.append(name)
            if not re.match(r"#: \S.*\.", above):
                bare.append(name)
    return found, bare


def test_every_option_is_documented_in_place_and_checked():
    found, bare = attributes_without_comment(greensock.Server)
    assert not bare
    assert [name for name in found if name not in ("connection_class", "option_rules")] == list(OPTIONS)


@pytest.mark.parametrize(
    "kind",
    [
        greensock.Verdict,
        greensock.State,
        greensock.DropReason,
        greensock.http.Phase,
        greensock.http.Reason,
        greensock.http.Signal,
        Action,
        ParserState,
    ],
)
def test_every_member_of_an_enum_is_documented_in_place(kind):
    found, bare = attributes_without_comment(kind)
    assert not bare
    assert found == list(kind.__members__)


def test_the_tests_that_comments_name_are_there():
    """A rule stands above the code that keeps it, with the test that fails without."""
    named = {name for path in MODULES.values() for name in re.findall(r"\btest_\w+", path.read_text())}
    texts = {path.stem: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    missing = [
        name for name in named if name not in texts and not any(f"def {name}(" in text for text in texts.values())
    ]
    assert len(named) > 20
    assert not missing


def unnamed_sleeps(path: Path) -> Iterator[str]:
    """Go through the sleeps of a number that no name explains, those of programs in strings too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for call, number in re.findall(r"(sleep[(](\d[\d.e]*)[^)]*)", node.value):
                if float(number):
                    yield f"{path.name}:{node.lineno}: {call})"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "sleep":
            within = [each for argument in node.args for each in ast.walk(argument)]
            called = [each.func for each in within if isinstance(each, ast.Call)]
            named = [each for each in within if isinstance(each, ast.Name | ast.Attribute) and each not in called]
            numbers = [each for each in within if isinstance(each, ast.Constant) and each.value]
            parts = [inner for each in within if isinstance(each, ast.BinOp | ast.Compare) for inner in ast.walk(each)]
            if numbers and (not named or any(each not in parts and isinstance(each.value, float) for each in numbers)):
                yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def test_no_test_sleeps_for_luck(tmp_path):
    """It waits for a condition; where a pause is what is tested, a name says so."""
    sample = tmp_path / "sample.py"
    sample.write_text(
        "sleep(0), time.sleep(PAUSE), gevent.sleep(2 * limit), gevent.sleep(job.seconds / 3)\n"
        "sleep(1)\ngevent.sleep(0.5 * draw())\nsleep(chance.choice([0, 0.001]))\n'x; sleep(0); sleep(0.1)'\n"
    )
    assert [found.split(": ")[1] for found in unnamed_sleeps(sample)] == [
        "sleep(1)",
        "gevent.sleep(0.5 * draw())",
        "sleep(chance.choice([0, 0.001]))",
        "sleep(0.1)",
    ]
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert not [found for path in tests if path.name != "test_shape.py" for found in unnamed_sleeps(path)]


def test_the_seam_of_the_http_server_is_as_it_is_described():
    doc = ast.get_docstring(tree(MODULES["greensock.http.server"])) or ""
    named = re.findall(r"``(\w+)``", doc.partition("need none of these")[2])
    server = greensock.http.HTTPServer(0)
    assert len(named) > 12
    assert not [name for name in named if not hasattr(server, name)]


# -- what importing does not do


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_neither_patches_nor_prints_nor_configures_logging(name):
    if name in PROCESSES:
        return
    path = MODULES[name]
    calls = [ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    found = [call for call in calls if re.search(r"(^|\.)(patch_\w+|print|basicConfig|addHandler|setLevel)$", call)]
    assert not found


def test_descriptors_are_closed_at_once():
    """gevent's ``os.close`` (since 25.8) closes in a later pass of the loop, and the peer gets our FIN only then."""
    for name in ("read", "readv", "write", "writev", "close"):
        assert getattr(syscalls, name) is monkey.get_original("os", name), name
    for name in LIBRARY:
        path = MODULES[name]
        assert "os.close" not in [ast.unparse(node) for node in ast.walk(tree(path))], name


def test_importing_changes_nothing():
    """But for what imports Locust, which patches when it is imported."""
    program = """if True:
        import importlib, logging, sys, threading
        for name in sys.argv[1:]:
            importlib.import_module(name)
        from gevent import monkey
        assert not monkey.saved, monkey.saved
        assert not logging.getLogger().handlers
        names = [name for name in logging.Logger.manager.loggerDict if name.startswith("greensock")]
        assert not [name for name in names if logging.getLogger(name).handlers]
        from gevent._hub_local import get_hub_if_exists
        assert get_hub_if_exists() is None, "a supervisor never creates a hub"
        assert threading.active_count() == 1
    """
    names = [name for name in MODULES if not name.endswith(".__main__") and not name.startswith("greensock.locust")]
    command = [sys.executable, "-W", "error", "-c", program, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_class_and_no_module_has_a_twin():
    """Whoever reads a name knows what is meant. Of modules ``errors`` is there twice, told apart by its folder."""
    classes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name.lstrip("_"), []).append(module)
    assert not {name: there for name, there in classes.items() if len(there) > 1}
    names = [module.rpartition(".")[2] for module in MODULES if module not in PACKAGES]
    assert {name for name in names if names.count(name) > 1} == {"errors"}


def test_test_files_are_below_a_thousand_lines():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert not {name: length for name, length in lengths.items() if length >= 1000}
