"""The frozen snapshot of what an HTTP server counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from greensock import ServerStatistics

__all__ = ["HTTPStatistics"]


@dataclass(frozen=True, slots=True)
class HTTPStatistics(ServerStatistics):
    """What one HTTP server counted since it was made, beside what every server counts."""

    #: Requests whose head was whole and sound.
    requests: int
    #: Requests that were refused, by the value of the :class:`~greensock.http.errors.Reason`, or one of
    #: ``head-timeout``, ``body-timeout``, ``method``, ``expectation``.
    refused: Mapping[str, int]
    #: Final answers that were begun, by status; those to refused requests too.
    statuses: Mapping[int, int]
