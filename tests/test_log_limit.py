"""A bound on the log lines that strangers can cause."""

from __future__ import annotations

import pytest

from greensock.log_limit import LogLimit


def test_a_burst_passes_and_then_so_many_a_second():
    limit = LogLimit(3, 2.0)
    assert [limit.left_out(100.0) for _ in range(5)] == [0, 0, 0, -1, -1]
    assert limit.left_out(100.4) == -1
    assert limit.left_out(100.5) == 3, "told with the next one that passes"
    assert limit.left_out(101.0) == 0


@pytest.mark.parametrize("pause", [1.5, 10.0, 1e9])
def test_a_pause_fills_it_again_and_no_more(pause):
    limit = LogLimit(3, 2.0)
    for _ in range(4):
        limit.left_out(100.0)
    assert [limit.left_out(100.0 + pause) for _ in range(4)] == [1, 0, 0, -1]
