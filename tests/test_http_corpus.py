"""Hostile and odd messages, as files: each has one outcome, however it is split and whatever came before it."""

from __future__ import annotations

from typing import Any

import pytest
from http_messages import CORPUS, answering, cases, matches, play, splits

from greensock.http import Reason, RequestParser

REQUESTS = cases("requests")
RESPONSES = cases("responses")

FIRST_REQUEST = b"GET /first HTTP/1.1\r\nHost: first\r\n\r\n"
FIRST_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst"


def check(found: tuple[list[dict[str, Any]], Any], expected: dict[str, Any]) -> None:
    events, end = found
    wanted = expected.get("events", [])
    assert len(events) == len(wanted), (events, end)
    for told, event in zip(events, wanted, strict=True):
        assert matches(told, event), (told, event)
    if "refused" in expected:
        assert isinstance(end, dict), end
        assert (end["refused"], end["status"]) == (expected["refused"], expected["status"]), end
    else:
        assert end == expected["ends"]


def named(found):
    return [pytest.param(data, expected, id=name) for name, data, expected in found]


@pytest.mark.parametrize(("data", "expected"), named(REQUESTS))
def test_request(data, expected):
    eof = expected.get("eof", False)
    whole = play(RequestParser(), [data], eof=eof)
    check(whole, expected)
    for pieces in splits(data):
        parser = RequestParser()
        assert play(parser, pieces, eof=eof) == whole, pieces
        if "rest" in expected:
            assert parser.take_rest() == expected["rest"].encode("latin-1")


@pytest.mark.parametrize(("data", "expected"), named(REQUESTS))
def test_request_behind_another(data, expected):
    for pieces in [FIRST_REQUEST + data], [FIRST_REQUEST, data], [FIRST_REQUEST[:9], FIRST_REQUEST[9:] + data]:
        events, end = play(RequestParser(), pieces, eof=expected.get("eof", False))
        assert [event.get("target") for event in events[:2]] == ["/first", None]
        check((events[2:], end), expected)


def parser_for(expected):
    return answering(expected.get("method", "GET"), upgrade=expected.get("upgrade", False))


@pytest.mark.parametrize(("data", "expected"), named(RESPONSES))
def test_response(data, expected):
    eof = expected.get("eof", False)
    parser = parser_for(expected)
    whole = play(parser, [data], eof=eof)
    check(whole, expected)
    if "reusable" in expected:
        assert parser.is_reusable is expected["reusable"]
    for pieces in splits(data):
        parser = parser_for(expected)
        assert play(parser, pieces, eof=eof) == whole, pieces
        if "rest" in expected:
            assert parser.take_rest() == expected["rest"].encode("latin-1")


@pytest.mark.parametrize(("data", "expected"), named(RESPONSES))
def test_response_behind_another(data, expected):
    parser = answering()
    play(parser, [FIRST_RESPONSE])
    assert parser.is_reusable
    parser.expect(expected.get("method", "GET"), upgrade=expected.get("upgrade", False))
    check(play(parser, [data], eof=expected.get("eof", False)), expected)


def test_the_corpus_is_whole():
    for folder, found in ("requests", REQUESTS), ("responses", RESPONSES):
        files = {path.stem for path in (CORPUS / folder).glob("*.http")}
        assert files == {name for name, _, _ in found}
    assert len(REQUESTS) + len(RESPONSES) >= 120
    assert sum("refused" in expected for _, _, expected in REQUESTS) >= 59


def test_every_reason_has_a_file():
    used = {expected.get("refused") for _, _, expected in REQUESTS + RESPONSES}
    by_limit_only = {Reason.BODY_TOO_LARGE, Reason.FIELD_TOO_LARGE}
    by_applications = {Reason.BODY_MALFORMED}  # what json() and the like are given
    by_clients = {Reason.CONTENT_CODING, Reason.LOCATION, Reason.TOO_MANY_REDIRECTS}  # what an answer means
    without = by_limit_only | by_applications | by_clients
    assert {reason for reason in Reason if reason.value not in used} == without
