"""The fields of a query, ``a=1&b=2``: by name the first value, or all of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl

__all__ = ["MAX_QUERY_FIELDS", "QueryFields"]

#: How many fields a query may have.
MAX_QUERY_FIELDS = 1000


class QueryFields(Mapping[str, str]):
    """The first value of each name, decoded as UTF-8; what is none becomes U+FFFD. ``get_all`` has the others, too.

    Raises:
        ValueError: more than ``MAX_QUERY_FIELDS``.
    """

    __slots__ = ("_pairs",)

    def __init__(self, query: str) -> None:
        self._pairs = parse_qsl(query, keep_blank_values=True, errors="replace", max_num_fields=MAX_QUERY_FIELDS)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Names and values in their order."""
        return self._pairs

    def get_all(self, name: str) -> list[str]:
        """Return the values of that name, in order."""
        return [value for key, value in self._pairs if key == name]

    def __getitem__(self, name: str) -> str:
        for key, value in self._pairs:
            if key == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key for key, _ in self._pairs))

    def __len__(self) -> int:
        return len({key for key, _ in self._pairs})

    def __repr__(self) -> str:
        return f"QueryFields({self._pairs!r})"
