"""Sizes and times as people write them in a configuration: ``"64k"``, ``"10M"``, ``"30s"``, ``"1h30m"``. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["SIZE", "TIME", "Unit", "unit_of"]

#: Digits before and behind the point: what has more is no number that anybody means.
_parts = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)([A-Za-z]+)")


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number is of."""

    #: What a number without a unit is, and the result.
    name: str
    #: What each unit stands for, in small letters if ``ignores_case``.
    factors: Mapping[str, Fraction]
    #: How a value is written, for who wrote it in another way.
    examples: str
    #: Whether large letters are the same as small ones.
    ignores_case: bool

    def read(self, text: str) -> int | float | None:
        """Return what a text says, such as ``"1h30m"``: a whole number where it is one; None: it says nothing."""
        found = Fraction(0)
        at = 0
        while match := _parts.match(text, at):
            unit = match[2].lower() if self.ignores_case else match[2]
            if unit not in self.factors:
                return None
            found += Fraction(match[1]) * self.factors[unit]
            at = match.end()
        if at == 0 or at != len(text):
            return None
        return int(found) if found.denominator == 1 else float(found)


#: Times, in seconds.
TIME = Unit(
    "seconds",
    {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600), "d": Fraction(86400)},
    'a number of seconds, or a text such as "250ms", "30s", "5m", "1h", "1d"',
    ignores_case=False,
)
#: Sizes, in bytes. A k is 1,024, as with nginx, whatever follows it.
SIZE = Unit(
    "bytes",
    {"b": Fraction(1)}
    | {letter + rest: Fraction(1 << 10 * power) for power, letter in enumerate("kmgt", 1) for rest in ("", "b", "ib")},
    'a number of bytes, or a text such as "64k", "10M", "1G"',
    ignores_case=True,
)

#: Keys that are bytes, or bytes a second. (test_every_size_and_time_takes_units finds those that are missing.)
SIZES = frozenset(
    {
        *("max_target", "max_head", "max_body", "max_trailers", "max_chunk_extension", "max_chunk_excess", "max_field"),
        *("max_buffered", "max_replay", "min_body_rate", "memory", "file", "max_answer_memory", "max_answer_files"),
    }
)
#: Keys that are whole seconds. Those that are seconds and no whole ones are told by their type.
WHOLE_SECONDS = frozenset({"ttl", "hsts"})
#: How the names of other numbers end that need not be whole.
NO_TIMES = ("_rate", "_ratio", "_budget", "_share")


def unit_of(name: str, annotation: str) -> Unit | None:
    """Return the unit of a key, given its name and its type as it is written; None: it has none."""
    if annotation.startswith("int"):
        return SIZE if name in SIZES else TIME if name in WHOLE_SECONDS else None
    return TIME if annotation.startswith("float") and not name.endswith(NO_TIMES) else None
