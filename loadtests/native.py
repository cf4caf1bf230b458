"""Compile the C programs of the load tests on first use, and again when their source has changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["BuildError", "build"]

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
FLAGS = ("-O2", "-std=c11", "-Wall", "-Wextra", "-pthread")


HINT = "The traffic generator is written in C: install a compiler (Debian: apt install gcc libc6-dev)"


class BuildError(RuntimeError):
    """The compiler is missing or has refused the source; the message has what it said, and what to do."""


def build(source: str, libraries: Sequence[str] = ()) -> Path:
    """Return the program made from ``source`` (a path within loadtests), compiling it if need be.

    The program's name carries a hash of source, compiler and flags, so a stale one is never run.
    """
    path = HERE / source
    compiler = os.environ.get("CC", "cc")
    digest = hashlib.sha256(path.read_bytes() + " ".join((compiler, *FLAGS, *libraries)).encode()).hexdigest()[:16]
    program = BUILD / f"{path.stem}-{digest}"
    if not program.exists():
        compile_to(program, path, compiler, libraries)
    return program


def compile_to(program: Path, path: Path, compiler: str, libraries: Sequence[str] = ()) -> None:
    BUILD.mkdir(exist_ok=True)
    partial = program.with_suffix(f".{os.getpid()}")
    try:
        result = subprocess.run(
            [compiler, *FLAGS, str(path), "-o", str(partial), *libraries], capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise BuildError(f"no C compiler: {compiler}\n{HINT}") from error
    if result.returncode != 0:
        raise BuildError(f"{path.name}: {result.stderr}\n{HINT}")
    partial.replace(program)  # at once: another process may be building the same
    for stale in BUILD.glob(f"{path.stem}-*"):
        if stale != program:
            stale.unlink(missing_ok=True)
