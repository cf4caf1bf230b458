"""What the command lines of the load tests check in the same way."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

__all__ = ["at_least"]

Number = TypeVar("Number", int, float)


def at_least(least: Number, kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """Return a type for ``add_argument``: a number that is not below ``least``."""

    def parse(text: str) -> Number:
        number = kind(text)
        if not number >= least:
            raise argparse.ArgumentTypeError(f"{text}: at least {least:g} expected")
        return number

    parse.__name__ = "number"  # argparse says so: "invalid number value"
    return parse
