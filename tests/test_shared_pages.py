"""Memory that the processes of one server share."""

from __future__ import annotations

import os

import pytest

from greensock.shared_pages import SharedPages


def test_what_a_worker_writes_is_seen_and_counted_out():
    pages = SharedPages(4)
    served, connections = pages.numbers("served", 2, is_kept=True), pages.numbers("connections", 1, "d")
    first, second = pages.take(), pages.take()
    child = os.fork()
    if not child:
        pages.enter(first)
        served.row(first)[1] = 3
        connections.row(first)[0] = 0.5
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    served.row(second)[1] = 4
    connections.row(second)[0] = 2
    assert pages.taken() == {first: child}
    assert (served.total(), connections.total()) == ([0, 7], [2.5])
    pages.give_back(first)
    assert (served.total(), connections.total(), pages.taken()) == ([0, 7], [2], {})
    assert pages.take() == first
    assert list(served.row(first)) == [0, 0]


def test_what_is_there_already_is_gone_on_with():
    pages = SharedPages(1)
    assert pages.numbers("a", 2) is pages.numbers("a", 2)
    assert pages.numbers("a", 3) is not pages.numbers("a", 2)
    pages.block("b", 100)[3] = 7
    assert pages.block("b", 100)[3] == 7
    pages.take()
    assert not pages.has_room
    with pytest.raises(RuntimeError, match="at most 1 expected"):
        pages.take()


def test_what_a_worker_leaves_in_a_block_is_taken_away():
    pages, gone = SharedPages(2), []
    pages.on_gone("a b", gone.append)
    pages.on_gone("a c", lambda slot: gone.append(-slot))
    pages.block("a b", 10)[0] = pages.block("a c", 10)[0] = pages.block("d", 10)[0] = 1
    pages.take()
    pages.give_back(pages.take())
    assert gone == [1, -1]
    pages.forget("a ", but=["a b"])
    assert [pages.block(name, 10)[0] for name in ("a b", "a c", "d")] == [1, 0, 1]
    pages.give_back(0)
    assert gone == [1, -1, 0]
