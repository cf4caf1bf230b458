"""What an experiment is: a plan of cases, and how much of them is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests.measure import Values

__all__ = ["Case", "Plan", "Scale"]

#: Seconds per connection in three passes of a server that takes 25 us for a message.
PASSES_SECONDS = 75e-6

#: How often each case is measured, unless somebody asks for something else.
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to measure. With these five rounds all experiments together take under 30 minutes."""

    rounds: int = ROUNDS
    #: Of each measurement.
    seconds: float = 0.5
    warmup: float = 0.1
    #: Tiny: to see that it works, not to measure.
    quick: bool = False

    def count(self, connections: int) -> int:
        """Return so many connections, or few if quick."""
        return min(connections, 200) if self.quick else connections

    def few(self, rounds: int) -> int | None:
        """Return how often a case is measured at the most that has no time for more; who asks for more gets them."""
        return None if self.rounds > ROUNDS else rounds

    def counts(self, connections: Sequence[int]) -> list[int]:
        """Return those that differ."""
        return list(dict.fromkeys(self.count(each) for each in connections))

    def timed(self, connections: int) -> Values:
        """Return the generator's options for a measurement that lasts a time.

        With many connections it lasts several passes of the slowest server over all of them: within a pass, a server
        that first reads from all and then answers all seems to do now the one for nothing, now the other.
        """
        return {"seconds": max(self.seconds, self.count(connections) * PASSES_SECONDS), "warmup": self.warmup}

    def estimate(self, connections: int) -> float:
        """Seconds that such a measurement takes, from the server's start to its end."""
        return sum(self.timed(connections).values()) + 0.12 + self.count(connections) / 25_000


@dataclass(frozen=True, slots=True)
class Case:
    """One point of an experiment."""

    label: str
    #: What tells it from the other cases; goes into every sample.
    parameters: Mapping[str, Any]
    measure: Callable[[str], Values]
    servers: tuple[str, ...]
    #: Seconds that one measurement will take, until it is known.
    estimate: float = 2.0
    #: How often, at most.
    rounds: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """An experiment."""

    name: str
    title: str
    cases: tuple[Case, ...]
    rounds: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    #: Called with the servers before the first round; returns further parameters.
    prepare: Callable[[Sequence[str]], Mapping[str, Any]] | None = None
