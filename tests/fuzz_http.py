"""Fuzzes the parsers of HTTP with atheris (libFuzzer), from the corpus on.

``pip install atheris`` beside greensock, then ``python tests/fuzz_http.py -max_total_time=3600``; what follows goes to
libFuzzer, and a directory among it keeps what it finds. pytest collects nothing here. Held for every input:

- events and outcome are the same whole, in pieces and byte by byte;
- nothing is raised but BadRequest by the one parser and BadResponse by the other, and then the same again;
- what is held while more is waited for is no more than the longest section that the limits allow;
- no piece of a body is empty, and together they are not longer than what came.

An input is four bytes that choose (parser and limits, two places to split at, the request that is answered), then the
message. A finding is cut down with ``-minimize_crash=1``, judged, and becomes a file of the corpus with its outcome.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["greensock.http"]):
    from http_messages import CORPUS, Parser, answering, cases, play

    from greensock.http import BadMessage, BadRequest, BadResponse, Limits, RequestParser

#: Small enough that mutations cross them.
TIGHT = Limits(
    max_target=24,
    max_head=200,
    max_fields=4,
    max_body=16,
    max_trailers=40,
    max_chunk_extension=8,
    max_chunk_excess=8,
    max_interim=1,
)
METHODS = ("GET", "HEAD", "CONNECT", "POST")
#: What libFuzzer puts in.
WORDS = (
    *(b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"\0", b"\t", b" ", b":", b",", b";", b"#", b'"', b"*"),
    *(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 \r\n", b"HTTP/1.0 304 \r\n"),
    *(b"GET ", b"POST ", b"HEAD ", b"OPTIONS * ", b"CONNECT a:1 ", b"http://a/"),
    *(b"0\r\n\r\n", b"3\r\nabc\r\n", b";a=b", b"chunked", b"gzip", b"identity"),
    *(b"close", b"keep-alive", b"upgrade", b"100-continue"),
)
FIELDS = (b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"Expect", b"Trailer", b"TE")


class Watched:
    """A parser whose behaviour is checked while it is played."""

    def __init__(self, parser: Parser, limits: Limits, blame: type[Exception]) -> None:
        self.parser = parser
        self.blame = blame
        # A head may be one request line too long before that shows; the line's rest is 64, a chunk's size 16 digits.
        self.most = (
            max(limits.max_head, limits.max_target + 66, limits.max_trailers, limits.max_chunk_extension + 18) + 4
        )
        self.fed = self.given = 0

    def feed(self, piece: bytes) -> None:
        self.fed += len(piece)
        self.parser.feed(piece)

    def feed_eof(self) -> None:
        self.parser.feed_eof()

    def next_event(self) -> Any:
        try:
            event = self.parser.next_event()
        except BadMessage as error:
            if type(error) is not self.blame:
                raise AssertionError("the other's fault") from error
            raise
        data = getattr(event, "data", None)
        if data is not None:
            assert data, "an empty piece"
            self.given += len(data)
            assert self.given <= self.fed, "more than came"
        if getattr(event, "value", "") == "need-data":
            assert self.parser.pending <= self.most, f"{self.parser.pending} bytes held"
        return event


def outcome(choice: bytes, pieces: list[bytes]) -> tuple[Any, ...]:
    """Play the pieces; return all that can be told of it."""
    eof, limits = bool(choice[0] & 2), TIGHT if choice[0] & 4 else Limits()
    if choice[0] & 1:
        parser: Any = answering(METHODS[choice[3] & 3], upgrade=bool(choice[3] & 4), limits=limits)
        found = play(Watched(parser, limits, BadResponse), pieces, eof=eof)  # type: ignore[arg-type]
        return (*found, parser.is_reusable, _rest(parser, found))
    parser = RequestParser(limits)
    found = play(Watched(parser, limits, BadRequest), pieces, eof=eof)  # type: ignore[arg-type]
    return (*found, _rest(parser, found))


def _rest(parser: Parser, found: tuple[Any, Any]) -> bytes:
    """What is left over; of a refused message that depends on how much was fed before it was refused."""
    return b"" if isinstance(found[1], dict) else parser.take_rest()


def check(data: bytes) -> None:
    """Hold one input to the rules."""
    choice, message = data[:4], data[4:]
    if len(choice) < 4:
        return
    whole = outcome(choice, [message])
    first, second = sorted((choice[1] * len(message) // 255, choice[2] * len(message) // 255))
    for pieces in (
        [message[:first], message[first:second], message[second:]],
        [message[place : place + 1] for place in range(len(message))],
    ):
        found = outcome(choice, [piece for piece in pieces if piece])
        assert found == whole, (found, whole)


def seeds(folder: Path) -> None:
    """Write the corpus as inputs."""
    for kind, parser in ("requests", 0), ("responses", 1):
        for name, message, expected in cases(kind):
            if len(message) > 4096:
                continue
            asked = METHODS.index(expected.get("method", "GET")) | (4 if expected.get("upgrade") else 0)
            flags = parser | (2 if expected.get("eof") else 0)
            for tight in 0, 4:
                choice = bytes((flags | tight, 85, 170, asked))
                (folder / f"{kind}-{name}-{tight}").write_bytes(choice + message)


def dictionary(path: Path) -> None:
    """Write the words for libFuzzer."""
    words = [*WORDS, *(b"\r\n" + name + b": " for name in FIELDS)]
    path.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words))


def main() -> None:
    """Fuzz until libFuzzer has had enough."""
    with tempfile.TemporaryDirectory() as place:
        folder, words = Path(place) / "seeds", Path(place) / "words"
        folder.mkdir()
        seeds(folder)
        dictionary(words)
        assert CORPUS.is_dir()
        # Directories in this order: new inputs go to the first.
        atheris.Setup([*sys.argv, "-max_len=4100", f"-dict={words}", str(folder)], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
