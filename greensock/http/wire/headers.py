"""The fields of a head or of trailers."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

from greensock.http.wire.syntax import is_token, is_value

__all__ = ["Headers"]

new = object.__new__


class Headers:
    """Fields in order, with duplicates and their spelling kept; names are told apart without regard to case.

    Names and values are stored as the bytes that go over the wire and read as ``str`` (Latin-1, so that every byte
    survives); both are taken as either. White space around a value is dropped. ``raw`` gives the bytes.

    Raises (from every method that adds):
        ValueError: a name that is no token, or a value with CR, LF, NUL or another control character, which would
            split the message; a ``str`` outside Latin-1.
    """

    __slots__ = ("_index", "_pairs")

    def __init__(self, pairs: Iterable[tuple[str | bytes, str | bytes]] = ()) -> None:
        self._pairs: list[tuple[bytes, bytes]] = [(_name(name), _value(name, value)) for name, value in pairs]
        # Lower-case name to its last value, made when first needed. Every name is in it once, so that there are
        # repeated names exactly if it is shorter than the list.
        self._index: dict[bytes, bytes] | None = None

    @classmethod
    def of_raw(cls, pairs: list[tuple[bytes, bytes]], index: dict[bytes, bytes] | None = None) -> Headers:
        """Wrap a list of fields that have been checked; the list is not copied.

        ``index``, if given, maps each lower-case name to its last value.
        """
        headers = new(cls)
        headers._pairs = pairs
        headers._index = index
        return headers

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        """The fields as bytes. The list itself: not to be changed."""
        return self._pairs

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the field's value; the values of repeated fields joined by a comma (RFC 9110 section 5.2).

        Cookie is joined by ``; ``. Set-Cookie can't be joined at all: ask :meth:`get_all`.
        """
        value = self.get_raw(_lower(name))
        return default if value is None else value.decode("latin-1")

    def get_raw(self, name: bytes) -> bytes | None:
        """Return the value as :meth:`get` does, in bytes; ``name`` must be lower-case."""
        index = self._index
        if index is None:
            index = self._index = {key.lower(): value for key, value in self._pairs}
        value = index.get(name)
        if value is None or len(index) == len(self._pairs):
            return value
        return (b"; " if name == b"cookie" else b", ").join(self.all_raw(name))

    def get_all(self, name: str) -> list[str]:
        """Return the value of each field of that name, in order."""
        return [value.decode("latin-1") for value in self.all_raw(_lower(name))]

    def all_raw(self, name: bytes) -> list[bytes]:
        """Return the values as :meth:`get_all` does, in bytes; ``name`` must be lower-case."""
        return [value for key, value in self._pairs if key.lower() == name]

    def tokens(self, name: bytes) -> list[bytes]:
        """Return the elements of a comma-separated field, lower-case; ``name`` must be lower-case, too."""
        value = self.get_raw(name)
        if value is None:
            return []
        return [token for part in value.lower().split(b",") if (token := part.strip(b" \t"))]

    def add(self, name: str | bytes, value: str | bytes) -> None:
        """Add a field at the end."""
        self._pairs.append((_name(name), _value(name, value)))
        self._index = None

    def set(self, name: str | bytes, value: str | bytes) -> None:
        """Put this value in the place of the first field of that name, and drop the others."""
        new = (_name(name), _value(name, value))
        lower = new[0].lower()
        place = next((place for place, (key, _) in enumerate(self._pairs) if key.lower() == lower), len(self._pairs))
        rest = [pair for pair in self._pairs[place:] if pair[0].lower() != lower]
        self._pairs[place:] = [new, *rest]
        self._index = None

    def remove(self, name: str | bytes) -> int:
        """Drop every field of that name; return how many there were."""
        lower = _lower(name)
        before = len(self._pairs)
        self._pairs[:] = [pair for pair in self._pairs if pair[0].lower() != lower]
        self._index = None
        return before - len(self._pairs)

    def copy(self) -> Headers:
        """Return a copy that can be changed by itself."""
        return Headers.of_raw(self._pairs.copy(), self._index)

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str | bytes) and self.get_raw(_lower(name)) is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((name.decode("latin-1"), value.decode("latin-1")) for name, value in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        """Whether both have the same fields in the same order; names compare without regard to case."""
        if not isinstance(other, Headers):
            return NotImplemented
        return [(name.lower(), value) for name, value in self._pairs] == [
            (name.lower(), value) for name, value in other._pairs
        ]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Headers({self._pairs!r})"


def _lower(name: str | bytes) -> bytes:
    # A name outside Latin-1 is no token: it is nowhere in here, which "?" says as well.
    return (name.encode("latin-1", "replace") if isinstance(name, str) else name).lower()


def _name(name: str | bytes) -> bytes:
    return _name_of_str(name) if isinstance(name, str) else _checked_name(name)


@functools.lru_cache(maxsize=1024)
def _name_of_str(name: str) -> bytes:
    """Programs add the same few names to every answer."""
    return _checked_name(name.encode("latin-1", "replace"))


def _checked_name(name: bytes) -> bytes:
    if not is_token(name):
        raise ValueError(f"field name {name!r}: a token expected (letters, digits, hyphens)")
    return bytes(name)


def _value(name: str | bytes, value: str | bytes) -> bytes:
    try:
        raw = value.encode("latin-1") if isinstance(value, str) else value
    except UnicodeEncodeError:
        raise ValueError(f"field {name!r}: value {value!r} cannot be written in Latin-1") from None
    if not is_value(raw):
        raise ValueError(f"field {name!r}: value {value!r} has a control character (CR, LF, NUL or another)")
    return bytes(raw.strip(b" \t"))
