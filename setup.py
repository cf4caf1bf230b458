"""Build file; what is static is in pyproject.toml.

Each module that has a ``.pxd`` beside the ``.py`` is compiled by Cython, where there is a C compiler. What comes of it
goes to ``_compiled`` in its package, which looks there first (``greensock/choice.py``). Nothing of it is needed:
without a compiler this says so, and the ``.py`` are what runs. ``GREENSOCK_PURE=1`` compiles nothing.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "greensock"
BUILD = ROOT / "build" / "cython"


class BuildEngine(build_ext):
    """Compiles the engine, all of it or nothing."""

    def run(self) -> None:
        self.parallel = self.parallel or os.cpu_count()
        for each in self.extensions:
            Path(*each.name.split(".")[:-1]).mkdir(exist_ok=True)
        try:
            super().run()
        except Exception as error:
            # Half of an engine is none: its modules know each other's fields. Nor is one of an earlier build.
            for each in self.extensions:
                for place in (ROOT, Path(self.build_lib)):
                    (place / self.get_ext_filename(each.name)).unlink(missing_ok=True)
            print(f"greensock: the engine is not compiled, and runs in Python: {error}")
            self.extensions = []


def extensions() -> list[Extension]:
    """Return what is to be compiled: nothing if that is not wanted, or cannot be done."""
    if os.environ.get("GREENSOCK_PURE", "0") != "0":
        return []
    try:
        import greenlet
        from Cython.Build import cythonize
    except ImportError as error:
        print(f"greensock: the engine is not compiled, and runs in Python: {error}")
        return []
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.copytree(PACKAGE, BUILD / "greensock", ignore=shutil.ignore_patterns("__pycache__", "_compiled"))
    (BUILD / "greensock" / "__init__.py").write_text("")
    modules = [path.relative_to(ROOT) for path in sorted(PACKAGE.rglob("*.pxd")) if path.with_suffix(".py").exists()]
    for module in modules:
        hide_imports(BUILD / module.with_suffix(".py"), BUILD / module)
    options: dict[str, Any] = {
        "include_dirs": [str(Path(greenlet.__file__).resolve().parent.parent)],
        # Greenlets are switched within a function: what Cython keeps of the thread's state would be another's.
        "define_macros": [("CYTHON_FAST_THREAD_STATE", "0")],
        "extra_compile_args": ["-O2", "-g0", "-Wno-unreachable-code", "-Wno-unused-function"],
    }
    here = os.getcwd()
    os.chdir(BUILD)  # so that tracebacks name the files as they lie in the package
    try:
        made = cythonize(
            [Extension(dotted(module), [str(module.with_suffix(".py"))], **options) for module in modules],
            compiler_directives={"language_level": 3, "annotation_typing": False, "embedsignature": False},
            quiet=True,
        )
    except Exception as error:  # a Cython that does not know what this one does
        print(f"greensock: the engine is not compiled, and runs in Python: {error}")
        return []
    finally:
        os.chdir(here)
    for each in made:
        each.sources = [str((BUILD / source).relative_to(ROOT)) for source in each.sources]
        package, _, name = each.name.rpartition(".")
        each.name = f"{package}._compiled.{name}"
    return list(made)


def dotted(module: Path) -> str:
    """Return the name of a module."""
    return ".".join(module.with_suffix("").parts)


def hide_imports(module: Path, types: Path) -> None:
    """Blank out, in a copy of a module, what its .pxd takes from C: imports of functions, and functions of its own."""
    text = types.read_text()
    taken = set(re.findall(r"^cdef inline .*\b(\w+)\(", text, re.MULTILINE))
    for names in re.findall(r"^from greensock.core._\w+ cimport (.*)$", text, re.MULTILINE):
        taken.update(name.strip() for name in names.split(","))
    source = module.read_text()
    lines = source.split("\n")
    for node in ast.parse(source).body:
        kept = ""
        if isinstance(node, ast.ImportFrom) and not taken.isdisjoint(alias.name for alias in node.names):
            node.names = [alias for alias in node.names if alias.name not in taken]
            kept = ast.unparse(node) if node.names else ""
        elif not isinstance(node, ast.FunctionDef) or node.name not in taken:
            continue
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        lines[first:last] = [kept] + [""] * (last - first - 1)
    module.write_text("\n".join(lines))


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildEngine})
