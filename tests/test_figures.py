"""Figures that workers share: names, sums that never fall, histograms, the last requests; what the options may be."""

from __future__ import annotations

import os
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from conftest import PATIENCE

from greensock.http.server.http_stats import HTTPStatistics
from greensock.operations import worker_watch
from greensock.operations.figures import NAME_BYTES, Board, figure_name
from greensock.operations.histograms import BOUNDS, Histogram, histogram_names
from greensock.operations.last_requests import MOST, SPAN, LastRequests, read_last_requests
from greensock.operations.operations_options import OperationsOptions
from greensock.operations.status_report import _written
from greensock.operations.worker_watch import WorkerWatch, _Group
from greensock.shared_pages import SharedPages

TOKEN = "a-token-of-32-characters-in-all."


def in_child(call):
    """Run it in a child of this process, and wait for that."""
    child = os.fork()
    if not child:
        try:
            call()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_names_that_workers_give():
    """The first who needs a name gives it, and all others read it so."""
    pages = SharedPages(4)
    board = Board(pages, "counters", is_kept=True)
    first, second = pages.take(), pages.take()
    board.write(first, {"requests": 1, "refused|method": 2})
    in_child(lambda: Board(pages, "counters", is_kept=True).write(second, {"refused|host": 5, "requests": 3.0}))
    assert board.of(second) == {"requests": 3, "refused|method": 0, "refused|host": 5}
    before = board.total([first, second])
    assert before == {"requests": 4, "refused|method": 2, "refused|host": 5}
    board.write(first, {"requests": 0})  # as of somebody who began anew
    pages.give_back(second)
    assert pages.read_whole(lambda: board.total([first])) == before
    assert board.of(second)["requests"] == 0


def test_a_worker_that_holds_the_lock_makes_nobody_wait():
    """What could not be named now is named by the next look."""
    pages = SharedPages(2)
    board = Board(pages, "counters")
    reader, writer = os.pipe()
    held, holder = os.pipe()
    child = os.fork()
    if not child:
        board._try_lock()
        os.write(holder, b".")
        os.read(reader, 1)
        os._exit(0)
    os.read(held, 1)
    board.write(0, {"a": 1})
    assert board.of(0) == {}
    os.write(writer, b".")
    os.waitpid(child, 0)
    board.write(0, {"a": 1})
    assert board.of(0) == {"a": 1}
    for fd in (reader, writer, held, holder):
        os.close(fd)


def test_a_board_that_is_full(caplog):
    board = Board(SharedPages(1), "small", columns=2)
    board.write(0, {"a": 1, "x": 2, "b": 3, "c": 4})
    board.write(0, {"b": 5})
    assert board.of(0) == {"a": 1, "x": 2}
    assert [record.message for record in caplog.records] == ["2 figures are counted, and no more: b is not"]


def test_names_that_are_too_long():
    """Each has one column, whoever writes it, and is found by all of its name."""
    pages = SharedPages(2)
    first, second = pages.take(), pages.take()
    long = "server_requests|app|/é" + "x" * NAME_BYTES
    for length in (0, 1, 60, NAME_BYTES - 1):
        assert figure_name("x" * length) == "x" * length
    assert len({figure_name(long), figure_name(long + "y"), figure_name(long[:-1])}) == 3
    assert all(len(figure_name(long[:length]).encode()) < NAME_BYTES for length in range(len(long)))
    boards = [Board(pages, "long") for _ in range(2)]
    boards[0].write(first, {long: 2, "a": 1})
    boards[1].write(second, {long + "y": 9, long: 5})
    boards[0].write(first, {long: 3})
    expected = {figure_name(long): 8, "a": 1, figure_name(long + "y"): 9}
    assert boards[0].total([first, second]) == boards[1].total([first, second]) == expected
    assert Board(pages, "long").of(second)[figure_name(long)] == 5


def test_what_is_counted_of_a_server():
    """All that it tells has a figure, what its limits refused, too."""
    told = HTTPStatistics(
        accepted=1,
        connected=2,
        active=3,
        errors=5,
        accept_pauses=6,
        bytes_received=7,
        bytes_sent=8,
        messages=9,
        workers=10,
        workers_busy=11,
        handshakes=12,
        requests=15,
        handshakes_unfinished=13,
        dropped={"EVICTED": 4},
        handshakes_failed={"alert": 14},
        statuses={200: 17, 204: 100, 503: 18},
        refused={"head-timeout": 16},
        limited={"evicted": 19, "head-timeout": 100},
    )
    counters, gauges = Counter({"accepted": 100}), Counter()
    server = SimpleNamespace(statistics=lambda: told, started=False)
    group = _Group([server], SimpleNamespace(counters=lambda: {"retries": 20}, gauges=lambda: {"in_hand": 1}))
    assert group.is_over
    server.started = True
    assert not group.is_over
    group.add(counters, gauges)
    assert counters == {
        "accepted": 101,
        "connected": 2,
        "dropped|evicted": 4,
        "errors": 5,
        "accept_pauses": 6,
        "bytes_in": 7,
        "bytes_out": 8,
        "messages": 9,
        "handshakes": 12,
        "handshakes_failed|alert": 14,
        "requests": 15,
        "refused|head-timeout": 116,
        "refused|evicted": 19,
        "statuses|2xx": 117,
        "statuses|5xx": 18,
        "retries": 20,
    }
    assert gauges == {"connections": 3, "in_hand": 12, "greenlets": 10, "handshakes_unfinished": 13}


def test_when_it_is_written(monkeypatch):
    """Who asks gets what was written just before; and who is followed no more is told."""
    monkeypatch.setattr(worker_watch, "FRESH", PATIENCE)
    pages, left, written = SharedPages(1), [], []
    WorkerWatch.share(pages)
    watch = WorkerWatch(pages, 0, None)
    began = watch.started_at
    assert 0 <= time.time() - began < PATIENCE
    WorkerWatch.share(pages)
    assert watch.started_at == began
    watch.follow([], SimpleNamespace(leave=lambda: left.append("left"), counters=dict, gauges=dict))
    assert not left
    watch.follow([])
    assert left == ["left"]
    watch.write()
    monkeypatch.setattr(watch, "write", lambda: written.append("written"))
    watch.refresh()
    assert not written
    watch._written_at -= PATIENCE + 1
    watch.refresh()
    assert written == ["written"]


def test_what_is_read_while_a_worker_is_counted_out():
    """It is read anew, and after so many times taken as it is: the master may have been killed within it."""
    pages = SharedPages(2)
    numbers, readings = pages.numbers("n", 1, is_kept=True), []
    numbers.row(pages.take())[0] = 7

    def read():
        readings.append(numbers.row(0)[0] + numbers.row(-1)[0])
        if len(readings) == 1:
            pages.give_back(0)
        return readings[-1]

    assert pages.read_whole(read) == 7
    assert len(readings) == 2
    pages._steps[0] += 1
    assert pages.read_whole(read) == 7


@pytest.mark.parametrize(
    ("address", "written"),
    [
        (("192.0.2.1", 80), "192.0.2.1:80"),
        (("2001:db8::1", 80, 0, 0), "[2001:db8::1]:80"),
        (b"\0abstract\xff", "\0abstract\ufffd"),
        ("/run/socket", "/run/socket"),
        (None, "None"),
    ],
)
def test_how_addresses_are_shown(address, written):
    assert _written(address) == written


@pytest.mark.parametrize("name", BOUNDS)
def test_histograms(name):
    bounds = BOUNDS[name]
    assert list(bounds) == sorted(set(bounds))
    histogram = Histogram(bounds)
    for seconds in (0.0, bounds[0], bounds[0] * 1.01, bounds[-1], bounds[-1] + 1):
        histogram.note(seconds)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-2], histogram.counts[-1]) == (2, 1, 1, 1)
    assert histogram.sum == pytest.approx(bounds[0] * 2.01 + 2 * bounds[-1] + 1)
    assert len(histogram_names(name)) == len(histogram.counts)


def record(seconds, status=200, at=0.0, reason="", **more):
    told = {"method": "GET", "host": b"a", "target": b"/", "client": "192.0.2.1", "upstream": "b:80", **more}
    return SimpleNamespace(started=at, duration=seconds, status=status, reason=reason, **told)


def test_the_slowest_and_the_failed():
    pages = SharedPages(3)
    one, other = LastRequests(pages, 0), LastRequests(pages, 2)
    for index in range(2 * MOST):
        one.note(record(0.1 + index / 100))
        assert (one.floor > 0) is (index >= MOST - 1)
    assert one.floor == pytest.approx(0.1 + MOST / 100)
    other.note(record(9.0, status=502, at=2.0, reason="connect-failed"))
    other.note(record(8.0, status=200, at=3.0, reason="truncated"))
    for status, reason in ((404, ""), (429, "request-rate"), (499, "client-left"), (200, "")):
        other.note(record(0.001, status, reason=reason))
    one.write(1000.0)
    other.write(1000.0)
    slowest, failed = read_last_requests(pages, [0, 2])
    assert [told.seconds for told in slowest[:3]] == pytest.approx([9.0, 8.0, 0.1 + (2 * MOST - 1) / 100])
    assert len(slowest) == MOST
    assert [(told.status, told.reason, told.at) for told in failed] == [
        (200, "truncated", 3.0),
        (502, "connect-failed", 2.0),
    ]
    # Those of the last span are told for one more, and then forgotten; failures stay.
    other.write(1000.0 + SPAN)
    assert read_last_requests(pages, [2])[0]
    other.write(1000.0 + 2 * SPAN)
    slowest, failed = read_last_requests(pages, [2])
    assert (len(slowest), len(failed), other.floor) == (0, 2, 0.0)
    LastRequests(pages, 2).forget()
    assert read_last_requests(pages, [2]) == ([], [])


def test_what_clients_say_is_cut():
    pages = SharedPages(1)
    kept = LastRequests(pages, 0)
    hostile = bytes(range(256)) * 40
    texts = {"client": "\udc80" * 100, "method": "X" * 99, "upstream": "é" * 99}
    kept.note(record(1.0, 70000, host=hostile, target=hostile, **texts))
    kept.write(0.0)
    (told,), (failed,) = read_last_requests(pages, [0])
    assert told == failed
    assert all(len(getattr(told, name)) <= 160 for name in ("method", "host", "target", "client", "server", "reason"))
    assert (told.status, told.method, told.server) == (65535, "X" * 16, "é" * 32)
    assert told.as_dict()["seconds"] == 1.0


def test_what_is_half_written_is_not_read():
    pages = SharedPages(1)
    kept = LastRequests(pages, 0)
    kept.note(record(1.0))
    kept.write(0.0)
    block = pages.block("last requests", len(kept._block))
    block[0] += 1  # it began to write once more
    assert read_last_requests(pages, [0]) == ([], [])


@pytest.mark.parametrize(
    ("address", "place", "is_local"),
    [
        ("127.0.0.1:9180", ("127.0.0.1", 9180), True),
        ("127.8.8.8:0", ("127.8.8.8", 0), True),
        ("[::1]:9180", ("::1", 9180), True),
        ("localhost:9180", ("localhost", 9180), True),
        ("/run/greensock.sock", "/run/greensock.sock", True),
        ("unix:/run/greensock.sock", "/run/greensock.sock", True),
        ("0.0.0.0:9180", ("0.0.0.0", 9180), False),
        (":9180", ("", 9180), False),
        ("*:9180", ("", 9180), False),
        ("10.0.0.1:9180", ("10.0.0.1", 9180), False),
        ("[::]:9180", ("::", 9180), False),
        ("localhost.example.org:9180", ("localhost.example.org", 9180), False),
    ],
)
def test_where_operators_ask(address, place, is_local):
    for more in ({"token": TOKEN}, {"allow_remote": True}):
        options = OperationsOptions(address, **more)
        assert (options.place, options.is_local) == (place, is_local)
        assert options.needs_token is ("token" in more and not is_local)
    if is_local:
        assert OperationsOptions(address).token is None
    else:
        with pytest.raises(ValueError, match=r"one of this machine .*, a token, or allow_remote=True"):
            OperationsOptions(address)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"address": "9180"}, "address='9180': HOST:PORT, [v6]:PORT or the path of a socket expected"),
        ({"address": "a:99999"}, "address='a:99999': HOST:PORT"),
        ({"address": ""}, "address='': HOST:PORT"),
        ({"address": 9180}, "address=9180: HOST:PORT"),
        ({"token": "short"}, "token: at least 16 letters, digits and -._~+/"),
        ({"token": "with white space in it"}, "token: at least 16"),
        ({"token": 7}, "token: at least 16"),
        ({"allow_remote": 1}, "allow_remote=1: True or False expected"),
        ({"names": ("a:80",)}, "names=('a:80',): a tuple of host names without a port expected"),
        ({"names": "a"}, "names='a': a tuple of host names"),
        ({"ready_upstreams": "some"}, "ready_upstreams='some': 'any', 'all' or 'none' expected"),
        ({"max_hold": 0}, "max_hold=0: seconds, more than 0, or None expected"),
    ],
)
def test_what_the_options_may_not_be(options, text):
    with pytest.raises(ValueError) as caught:
        OperationsOptions(**{"address": "127.0.0.1:9180", **options})
    assert str(caught.value).startswith(text)
    assert "short" not in str(caught.value)
