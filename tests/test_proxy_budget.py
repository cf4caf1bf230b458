"""The retry budget, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensock.proxy.upstream.retry_budget import RetryBudget


def retries(budget, now):
    """Return how many retries are allowed in a row."""
    count = 0
    while count < 10_000 and budget.may_retry(now):
        count += 1
    return count


@pytest.mark.parametrize(
    ("ratio", "least", "window", "requests", "allowed"),
    [
        (0.0, 0, 10, 100, 0),
        (0.2, 0, 10, 0, 0),
        (0.2, 0, 10, 4, 0),
        (0.2, 0, 10, 5, 1),
        (0.2, 0, 10, 9, 1),
        (0.2, 0, 10, 10, 2),
        (0.1, 0, 10, 30, 3),
        (0.0, 10, 10, 0, 100),
        (0.2, 10, 10, 1000, 300),
        (0, 0.1, 10, 0, 1),
        (0, 0.05, 10, 100, 0),
        (1, 0, 10, 7, 7),
        (2.5, 0, 1, 2, 5),
    ],
)
def test_how_many_retries_are_allowed(ratio, least, window, requests, allowed):
    budget = RetryBudget(ratio, least, window)
    for _ in range(requests):
        budget.request(50.0)
    assert retries(budget, 50.0) == allowed
    assert (budget.retries, budget.refused) == (allowed, 1)


def test_a_retry_is_no_request():
    budget = RetryBudget(0.5, 0)
    for _ in range(4):
        budget.request(0.0)
    assert retries(budget, 0.0) == 2


def test_the_window_slides():
    budget = RetryBudget(1.0, 0, 10.0)
    budget.request(0.0)
    for second in range(1, 9):
        budget.request(float(second))
    assert retries(budget, 8.0) == 9
    assert retries(budget, 8.9) == 0
    for second in (9.0, 9.1, 9.2):
        budget.request(second)
    assert retries(budget, 9.5) == 3
    budget.request(100.0)
    assert retries(budget, 100.0) == 1


def test_retries_are_forgotten_with_the_window():
    budget = RetryBudget(0.0, 1.0, 10.0)
    assert retries(budget, 0.0) == 10
    assert retries(budget, 8.9) == 0
    assert retries(budget, 10.1) == 10
    assert retries(budget, 1e9) == 10


@pytest.mark.parametrize("window", [0.5, 1.0, 100.0])
def test_windows_of_any_length(window):
    budget = RetryBudget(1.0, 0, window)
    budget.request(7.0)
    budget.request(7.0 + 0.5 * window)
    assert retries(budget, 7.0 + 0.85 * window) == 2
    budget.request(7.0 + 1.2 * window)
    assert retries(budget, 7.0 + 1.2 * window) == 0, "two requests in the window, and two retries"
    assert retries(budget, 7.0 + 1.9 * window) == 1


def test_the_defaults():
    budget = RetryBudget()
    for _ in range(50):
        budget.request(7.0)
    assert retries(budget, 7.0) == 0.2 * 50 + 10.0 * 10
    assert retries(budget, 17.5) == 100


@pytest.mark.parametrize("now", [0.0, 1e-9, 5.0, 1e6, 1e15])
def test_the_clock_may_begin_anywhere(now):
    budget = RetryBudget(1.0, 0, 10.0)
    for _ in range(3):
        budget.request(now)
    assert retries(budget, now) == 3


@given(
    steps=st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=200),
    ratio=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    least=st.sampled_from([0.0, 0.3, 2.0]),
)
def test_never_more_than_allowed_in_a_window(steps, ratio, least):
    budget, now, requests, taken = RetryBudget(ratio, least, 10.0), 1000.0, [], []
    for pause, is_request in steps:
        now += pause
        if is_request:
            budget.request(now)
            requests.append(now)
        elif budget.may_retry(now):
            taken.append(now)
            # What is counted covers nine tenths of the window at least, and all of it at the most.
            counted = len([at for at in requests if at > now - 10.001])
            retried = len([at for at in taken if at > now - 8.999])
            assert retried <= ratio * counted + least * 10 + 0.001


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ratio": -0.1}, "ratio=-0.1: a number, 0 or more expected"),
        ({"ratio": float("nan")}, "ratio=nan: a number, 0 or more expected"),
        ({"least": "1"}, "least='1': a number, 0 or more expected"),
        ({"least": True}, "least=True: a number, 0 or more expected"),
        ({"window": 0}, "window=0: seconds, more than 0 expected"),
        ({"window": float("inf")}, "window=inf: seconds, more than 0 expected"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError) as caught:
        RetryBudget(**options)
    assert str(caught.value) == text
