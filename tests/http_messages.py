"""Plays bytes into the parsers of HTTP and tells what came out in plain values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from greensock.http import (
    END_OF_INPUT,
    NEED_DATA,
    SWITCHED,
    BadMessage,
    Data,
    EndOfMessage,
    Limits,
    RequestParser,
    ResponseParser,
)

CORPUS = Path(__file__).parent / "corpus"

Parser = RequestParser | ResponseParser


def cases(folder: str) -> list[tuple[str, bytes, dict[str, Any]]]:
    """Return name, bytes and expected outcome of each file of the corpus."""
    index = json.loads((CORPUS / folder / "index.json").read_text())
    return [(name, (CORPUS / folder / f"{name}.http").read_bytes(), expected) for name, expected in index.items()]


def text(raw: bytes) -> str:
    return raw.decode("latin-1")


def plain_fields(headers: Any) -> list[list[str]] | None:
    return None if headers is None else [[text(name), text(value)] for name, value in headers.raw]


def plain(event: Any) -> dict[str, Any]:
    """Return an event as plain values."""
    if isinstance(event, Data):
        return {"body": text(bytes(event.data))}
    if isinstance(event, EndOfMessage):
        return {"end": plain_fields(event.trailers)}
    told = {
        name: getattr(event, name) for name in ("version", "content_length", "is_chunked", "has_body", "keep_alive")
    }
    told["headers"] = plain_fields(event.headers)
    told["upgrade"] = [text(name) for name in event.upgrade]
    if hasattr(event, "status"):
        told |= {name: getattr(event, name) for name in ("status", "is_interim", "is_until_close", "is_switch")}
        return told | {"phrase": text(event.phrase)}
    told |= {"method": event.method, "expects_continue": event.expects_continue}
    return told | {"target": text(event.target), "authority": text(event.authority)}


def pull(parser: Parser, out: list[dict[str, Any]]) -> str | dict[str, Any]:
    """Take events until there are none; return the signal's value, or what the error says."""
    while True:
        try:
            event = parser.next_event()
        except BadMessage as error:
            return {"refused": error.reason.value, "status": error.status, "text": str(error)}
        if event in (NEED_DATA, END_OF_INPUT, SWITCHED):
            return event.value
        told = plain(event)
        if "body" in told and out and "body" in out[-1]:
            out[-1] = {"body": out[-1]["body"] + told["body"]}
        else:
            out.append(told)


def play(parser: Parser, pieces: Iterable[bytes], *, eof: bool = False) -> tuple[list[dict[str, Any]], Any]:
    """Feed the pieces; return the events (data joined) and how it ended."""
    out: list[dict[str, Any]] = []
    end = pull(parser, out)
    for piece in pieces:
        if isinstance(end, dict):
            break
        parser.feed(piece)
        end = pull(parser, out)
    if eof and not isinstance(end, dict):
        parser.feed_eof()
        end = pull(parser, out)
    if isinstance(end, dict):
        again = pull(parser, [])
        assert again == end, "a parser that has raised raises the same again"
    return out, end


def answering(method: str = "GET", *, upgrade: bool = False, limits: Limits | None = None) -> ResponseParser:
    """Return a parser that expects one answer."""
    parser = ResponseParser(limits or Limits())
    parser.expect(method, upgrade=upgrade)
    return parser


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Go through the ways to feed the bytes: whole, byte by byte, in two (of long ones not at every place)."""
    yield [data]
    yield [data[place : place + 1] for place in range(len(data))]
    for place in range(1, len(data)):
        if len(data) < 2000 or place < 200 or place > len(data) - 200 or place % 61 == 0:
            yield [data[:place], data[place:]]


def matches(told: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether an event has every value that is expected of it."""
    return all(name in told and told[name] == value for name, value in expected.items())
