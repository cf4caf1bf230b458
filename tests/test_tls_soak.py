"""A short one of ``make soak-tls``: nothing is left of many handshakes."""

from __future__ import annotations

from tls_soak import play


def test_nothing_is_left_of_many_handshakes_of_all_kinds():
    trouble, line = play(1000)
    assert not trouble, f"{trouble} {line}"
